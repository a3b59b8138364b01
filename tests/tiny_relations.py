"""Tones instead of speech for qbe, sd and asv: manifests with their truth, segments and trials."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tiny_corpus import tone

TERMS = {"low high low": (400.0, 1900.0, 700.0), "up": (500.0, 1100.0, 2600.0), "down": (3000.0, 1400.0, 800.0)}
TALKERS = {"ada": 500.0, "bob": 1700.0}
VOICES = {"train": tuple(300.0 * 1.22**i for i in range(12)), "test": (430.0, 1100.0, 2500.0)}


def make(root: Path) -> Path:
    """``root/manifests`` for the three tasks and the wav files that they name."""
    rng = np.random.default_rng(0)
    for name in ("manifests", "wav", "rttm"):
        (root / name).mkdir(parents=True)

    def wav(uid: str, wave: np.ndarray) -> dict:
        soundfile.write(root / "wav" / f"{uid}.wav", wave, 16_000)
        return {"id": uid, "path": f"wav/{uid}.wav", "samples": len(wave)}

    def table(name: str, rows: list[dict]) -> None:
        pd.DataFrame(rows).to_csv(root / "manifests" / f"{name}.tsv", sep="\t", index=False)

    queries, docs, truth = [], [], []
    for split in ("dev", "eval"):
        for term, pitches in TERMS.items():
            wave = np.concatenate([tone(hertz, rng.uniform(0.1, 0.14), rng) for hertz in pitches])
            queries.append({**wav(f"{split}-q-{pitches[0]:.0f}", wave), "set": split, "term": term})
        for i, (term, _other) in enumerate(itertools.product(TERMS, range(4))):
            noise = [tone(rng.uniform(300, 3500), 0.12, rng) for _ in range(6)]
            said = [tone(hertz, 0.12, rng) for hertz in TERMS[term]]
            docs.append(
                {**wav(f"{split}-d-{i}", np.concatenate([*noise[:3], *said, *noise[3:]])), "set": split, "term": term}
            )
    for query, doc in itertools.product(queries, docs):
        if query["set"] == doc["set"]:
            truth.append({"query_id": query["id"], "doc_id": doc["id"], "relevant": int(query["term"] == doc["term"])})
    table("qbe_queries", queries)
    table("qbe_docs", docs)
    table("qbe_truth", truth)

    recordings = []
    for split, count in {"train": 8, "dev": 3, "test": 4}.items():
        for i in range(count):
            uid, wave = f"sd-{split}-{i}", 0.01 * rng.standard_normal(32_000)
            lines = []
            turns = (0.2, rng.uniform(0.8, 1.3)), (rng.uniform(0.5, 1), 1.8)
            for name, (start, end) in zip(rng.permutation(list(TALKERS)), turns):
                start, end = round(start, 2), round(end, 2)
                part = tone(TALKERS[name], end - start, rng)
                wave[round(start * 16_000) :][: len(part)] += part
                lines.append(f"SPEAKER {uid} 1 {start:.2f} {end - start:.2f} <NA> <NA> {uid}-{name} <NA>\n")
            (root / "rttm" / f"{uid}.rttm").write_text("".join(lines))
            recordings.append({**wav(uid, wave), "split": split, "rttm_path": f"rttm/{uid}.rttm"})
    table("sd", recordings)

    voices = {}
    for split, pitches in VOICES.items():
        voices[split] = []
        for hertz, i in itertools.product(pitches, range(4 if split == "test" else 2)):
            silence = 0.0001 * rng.standard_normal(16_000)
            wave = np.concatenate([tone(hertz, 0.5, rng), silence, tone(1.5 * hertz, 0.4, rng)])
            voices[split].append({**wav(f"asv-{split}-{hertz:.0f}-{i}", wave), "speaker": f"{hertz:.0f} Hz"})
        table(f"asv_{split}", voices[split])
    table("asv_trials", [
        {"target": int(a["speaker"] == b["speaker"]), "enroll_path": a["path"], "test_path": b["path"]}
        for a, b in itertools.combinations(voices["test"], 2)
    ])  # fmt: skip
    return root
