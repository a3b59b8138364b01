"""Corpora of noise with the lengths, the label sets and the texts' sizes of SUPERB's, for timing: manifests beside a
few wav files.

What a step costs depends on how long its utterances are and on how many outputs the head has, not on what is said.
Lengths are evenly spaced quantiles of the distributions in ``LENGTHS``, shuffled; many utterances are one file under
several names, so that 1251 speakers are cheap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from star_upstream.audio import RATE
from star_upstream.errors import StarError


@dataclass(frozen=True)
class Lengths:
    """Seconds of the utterances: quantile ``q`` (0 to 1) is ``of(q)``."""

    about: str
    of: Callable[[float], float]


def _fixed(mean: float, spread: float = 0.0) -> Lengths:
    about = f"{mean:g} s" if not spread else f"{mean - spread:g} to {mean + spread:g} s"
    return Lengths(about, lambda q: mean + spread * (2 * q - 1))


def _tailed(least: float, mean: float, most: float) -> Lengths:
    about = f"at least {least:g} s, {mean:g} s on average, exponential tail to {most:g} s"
    return Lengths(about, lambda q: min(most, least - (mean - least) * math.log(1.0 - q)))


LENGTHS = {
    "ks": _fixed(1.0),
    "sid": _tailed(4.0, 8.25, 30.0),
    "ic": _tailed(1.0, 2.3, 6.0),
    "er": _tailed(1.0, 4.55, 20.0),
    "pr": _fixed(12.7, 0.5),
    "asr": _fixed(12.7, 0.5),
    "sf": _fixed(3.0, 0.5),
    "asv": _tailed(4.0, 8.25, 30.0),
    "sd": _tailed(8.0, 15.0, 30.0),
}
"""Averages are the official corpora's. LibriSpeech and SNIPS are batched by length: theirs are all near the average, so
that a few batches cost what an average one does."""

FILES = 48
"""Most wav files of a split."""
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards pack my box with five dozen liquor jugs"
WORDS = TEXT.upper().split()
INVENTORY = "AA0 AE1 AH0 B CH D DH EH1 ER0 F G HH IH1 IY0 JH K L M N NG OW1 P R S SH T TH UH1 UW0 V W Y Z ZH"
PHONES = INVENTORY.split()
SLOTS = tuple(f"slot{n:02d}" for n in range(39))
"""SNIPS has 39."""


def make(root: Path, task: str, train: int, held_out: int = 8, seconds: float | None = None) -> Path:
    """``root`` with the manifests and the audio of ``task``: at least ``train`` training utterances (more where the
    label set needs them) and ``held_out`` in dev and in test. ``seconds``: the average length, instead of the
    corpus's."""
    if task not in LENGTHS:
        raise StarError(f"speed: no generated data for {task!r} (there is for: {', '.join(LENGTHS)})")
    rng = np.random.default_rng(0)
    (root / "manifests").mkdir(parents=True, exist_ok=True)
    (root / "wav").mkdir(exist_ok=True)
    items = {
        "train": max(train, held_out, len(_labels(task)), 60 if task == "er" else 0),
        "dev": held_out,
        "test": held_out,
    }
    rows = []
    for split, count in items.items():
        waves = _waves(root, f"{task}_{split}", LENGTHS[task], min(count, FILES), rng, seconds)
        for i in range(count):
            noise, samples = waves[i % len(waves)]
            name = f"wav/{task}_{split}_{i}.wav"  # an utterance is a file of its own, as in the corpora
            (root / name).unlink(missing_ok=True)
            os.link(root / noise, root / name)
            rows.append(
                {
                    "id": f"{split}{i}",
                    "path": name,
                    "samples": samples,
                    "split": split,
                    **_columns(task, split, i, samples),
                }
            )
    table = pd.DataFrame(rows)
    if task == "er":
        table = table.drop(columns="split").assign(fold=[1 + i // len(_labels(task)) % 5 for i in range(len(table))])
    if task == "asv":
        _trials(root, table)
    elif task == "sd":
        table["rttm_path"] = [_rttm(root, row.id, row.samples / RATE) for row in table.itertuples()]
    if task != "asv":
        table.to_csv(root / "manifests" / f"{task}.tsv", sep="\t", index=False)
    return root


def _waves(
    root: Path, stem: str, lengths: Lengths, count: int, rng: np.random.Generator, seconds: float | None
) -> list[tuple[str, int]]:
    """Names and samples of a split's wav files: noise whose loudness changes as slowly as syllables do."""
    waves = []
    quantiles = (rng.permutation(count) + 0.5) / count
    scale = 1.0 if seconds is None else seconds * count / sum(lengths.of(q) for q in quantiles)
    for n, q in enumerate(quantiles):
        samples = round(lengths.of(q) * scale * RATE)
        time = np.arange(samples) / RATE
        wave = 0.1 * (1.2 + np.sin(2 * np.pi * 3 * time + n)) * rng.standard_normal(samples)
        name = f"wav/{stem}{n:02d}.wav"
        soundfile.write(root / name, wave.clip(-1, 1).astype(np.float32), RATE, subtype="PCM_16")
        waves.append((name, samples))
    return waves


def _labels(task: str) -> list[Any]:
    """Every value of the task's label columns, as many as the official corpus has."""
    if task == "ks":
        return ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"]
    if task in ("sid", "asv"):
        return [f"id{10_001 + n}" for n in range({"sid": 1251, "asv": 1211}[task])]
    if task == "ic":
        return [(f"action{n % 6}", f"object{n % 14}", f"location{n % 4}") for n in range(84)]
    if task == "er":
        return ["neu", "hap", "ang", "sad"]
    return []


def _columns(task: str, split: str, i: int, samples: int) -> dict[str, str]:
    """The task's own columns of utterance ``i``. A text has as many words as speech of that length, and dev and test
    say what train says."""
    labels, rng = _labels(task), np.random.default_rng(i)
    if task in ("ks", "er"):
        return {"speaker": "x", "label": labels[i % len(labels)]}
    if task == "sid":
        return {"speaker": labels[i % len(labels)]}
    if task == "asv":
        return {"speaker": f"{split}{i % 2}" if split != "train" else labels[i % len(labels)]}
    if task == "ic":
        return dict(zip(("action", "object", "location"), labels[i % len(labels)]))
    if task == "sd":
        return {}
    seconds = samples / RATE
    if task == "pr":
        return {"speaker": "x", "text": "A", "phones": " ".join(rng.choice(PHONES, max(2, round(9 * seconds))))}
    words = rng.choice(WORDS, max(2, round(2.7 * seconds)))
    tags = [f"B-{SLOTS[(i + n) % len(SLOTS)]}" if n % 3 == 1 else "O" for n in range(len(words))]
    return {"speaker": "x", "text": " ".join(words)} | ({"slots": " ".join(tags)} if task == "sf" else {})


def _trials(root: Path, table: pd.DataFrame) -> None:
    """asv's three files; its test speakers are none of train's, and there is no dev."""
    for split in ("train", "test"):
        part = table[table["split"] == split].drop(columns="split")
        part.to_csv(root / "manifests" / f"asv_{split}.tsv", sep="\t", index=False)
    paths = part["path"].tolist()
    pairs = [(int((i + j) % 2 == 0), paths[i], paths[j]) for i in range(len(paths)) for j in range(i)]
    trials = pd.DataFrame(pairs, columns=["target", "enroll_path", "test_path"])
    trials.to_csv(root / "manifests" / "asv_trials.tsv", sep="\t", index=False)


def _rttm(root: Path, uid: str, seconds: float) -> str:
    """Two speakers who overlap in the middle fifth."""
    (root / "rttm").mkdir(exist_ok=True)
    stretches = (("a", 0.0, 0.6), ("b", 0.4, 0.6))
    (root / "rttm" / f"{uid}.rttm").write_text(
        "".join(
            f"SPEAKER {uid} 1 {first * seconds:.2f} {share * seconds:.2f} <NA> <NA> {name} <NA>\n"
            for name, first, share in stretches
        )
    )
    return f"rttm/{uid}.rttm"
