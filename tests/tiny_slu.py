"""Tones instead of speech for pr, ic, er and sf: manifests that a small upstream learns in a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tiny_corpus import SPLITS, tone

PHONES = {"AH": 400.0, "B": 1200.0, "S": 2600.0}
"""No stress digits: not s3prl's fixed list."""
ACTIONS, OBJECTS, PLACES = (
    {"on": 300.0, "off": 900.0},
    {"light": 1800.0, "heat": 2700.0},
    {"none": 4000.0, "kitchen": 5500.0},
)
EMOTIONS = {"angry": 400.0, "happy": 1200.0, "sad": 2600.0}
WORDS = {"PLAY": 400.0, "ANNA": 1200.0, "BELL": 2600.0, "NOW": 5000.0}
SENTENCES = (
    ("PLAY ANNA", "O B-artist"),
    ("PLAY ANNA BELL", "O B-artist I-artist"),
    ("PLAY BELL NOW", "O B-song B-time"),
    ("NOW PLAY", "O O"),
)


def make(root: Path) -> Path:
    """``root/manifests/{pr,ic,er,sf}.tsv`` and the wav files they name."""
    rng = np.random.default_rng(0)
    (root / "manifests").mkdir(parents=True)
    (root / "wav").mkdir()

    def write(task: str, items: list[tuple[list[float], dict]]) -> None:
        rows = []
        for i, (tones, columns) in enumerate(items):
            name, wave = f"wav/{task}{i:03d}.wav", np.concatenate([tone(hertz, 0.2, rng) for hertz in tones])
            soundfile.write(root / name, wave, 16_000)
            rows.append({"id": f"{task}{i}", "path": name, "samples": len(wave), "speaker": "x", **columns})
        pd.DataFrame(rows).to_csv(root / "manifests" / f"{task}.tsv", sep="\t", index=False)

    splits = [(split, i) for split, count in SPLITS.items() for i in range(count)]
    said = ["AH B", "S AH", "B S AH", "AH S B AH"]
    write(
        "pr",
        [
            ([PHONES[p] for p in said[i % 4].split()], {"split": s, "text": "WORD", "phones": said[i % 4]})
            for s, i in splits
        ],
    )
    write("ic", [
        ([ACTIONS[a], OBJECTS[o], PLACES[p]], {"split": s, "action": a, "object": o, "location": p})
        for s, i in splits if i < 4 for a in ACTIONS for o in OBJECTS for p in PLACES
    ])  # fmt: skip
    write("er", [([EMOTIONS[e]] * 2, {"fold": f, "label": e}) for f in range(1, 6) for e in EMOTIONS for _ in range(4)])
    write("sf", [
        ([WORDS[w] for w in text.split()], {"split": s, "text": text, "slots": slots})
        for s, i in splits for text, slots in [SENTENCES[i % 4]]
    ])  # fmt: skip
    return root
