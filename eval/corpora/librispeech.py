"""LibriSpeech as published: ``<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac``, one ``.trans.txt`` a chapter.

SUPERB's split: train-clean-100, dev-clean, test-clean.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from star_upstream.errors import StarError

from .manifest import lengths

NAME = "LibriSpeech ASR corpus"
LICENCE = "CC BY 4.0"
FOLDERS = ("LibriSpeech",)
SUBSETS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
COUNTS = {"asr": {"train": 28_539, "dev": 2_703, "test": 2_620}}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every transcribed utterance of the three subsets, by id: upper-case text, speaker number. Raises :class:`StarError`."""
    rows = []
    for split, subset in SUBSETS.items():
        files = sorted((folder / subset).glob("*/*/*.trans.txt"))
        if not files:
            raise StarError(f"{folder / subset}: no <speaker>/<chapter>/*.trans.txt; unpack that part of {NAME} there")
        rows += [row for file in files for row in _chapter(file, split)]
    table = pd.DataFrame(rows, columns=["id", "path", "split", "speaker", "text"])
    table["samples"] = lengths(table["path"], folder)
    return table


def _chapter(file: Path, split: str) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, text = line.strip().partition(" ")
        if not text.strip():
            raise StarError(f"{file}: line {number}: expected an utterance id and its text, got {line!r}")
        rows.append((name, str(file.parent / f"{name}.flac"), split, name.split("-")[0], text.strip()))
    return sorted(rows)
