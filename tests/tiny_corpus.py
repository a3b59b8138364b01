"""Tones instead of speech, and an upstream that hears them: the evaluation's tests run on these in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import nn

WORDS = {"yes": 400.0, "no": 900.0, "up": 1800.0}
SPEAKERS = {"anna": 300.0, "ben": 1100.0}
LETTERS = {"A": 400.0, "B": 1200.0, " ": 2600.0}
SPLITS = {"train": 12, "dev": 4, "test": 4}


def tone(hertz: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * hertz * rng.uniform(0.97, 1.03) * time + rng.uniform(0, 6))
    return (wave + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def make(root: Path) -> Path:
    """``root/manifests/{ks,sid,asr}.tsv`` and the wav files they name."""
    rng = np.random.default_rng(0)
    (root / "manifests").mkdir(parents=True)
    (root / "wav").mkdir()

    def write(task: str, items: list[tuple[str, np.ndarray, dict]]) -> None:
        rows = []
        for i, (split, wave, columns) in enumerate(items):
            name = f"wav/{task}{i:03d}.wav"
            soundfile.write(root / name, wave, 16_000)
            rows.append({"id": f"{task}{i}", "path": name, "samples": len(wave), "split": split, **columns})
        pd.DataFrame(rows).to_csv(root / "manifests" / f"{task}.tsv", sep="\t", index=False)

    splits = [(split, i) for split, count in SPLITS.items() for i in range(count)]
    write("ks", [(s, tone(WORDS[w], 0.5, rng), {"label": w}) for s, _ in splits for w in WORDS])
    lengths = {"train": 8.5, "dev": 0.7, "test": 0.6}
    write("sid", [
        (s, tone(f, lengths[s] if i == 0 else 0.5, rng), {"speaker": n}) for s, i in splits for n, f in SPEAKERS.items()
    ])  # fmt: skip
    texts = ["AB BA", "BA", "AB", "B A", "ABA", "A BB"]
    spoken = [(split, texts[i % 6]) for split, i in splits]
    write(
        "asr",
        [
            (s, np.concatenate([tone(LETTERS[c], 0.15, rng) for c in text]), {"speaker": "x", "text": text})
            for s, text in spoken
        ],
    )
    return root


class TinyUpstream(nn.Module):
    """Three layers of random linear maps of log power spectra, in frames of 25 ms every 10 ms."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.maps = nn.ParameterList(torch.randn(201, 24, generator=generator) / 8 for _ in range(3))
        self.calls = 0

    def get_downsample_rates(self, key):
        return 160

    def forward(self, wavs):
        self.calls += 1
        padded = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
        power = torch.fft.rfft(padded.unfold(1, 400, 160) * torch.hann_window(400)).abs()
        return {"hidden_states": [torch.log(power + 0.1) @ m for m in self.maps]}


def upstream() -> TinyUpstream:
    return TinyUpstream()


def not_an_upstream() -> nn.Module:
    return nn.Linear(2, 2)
