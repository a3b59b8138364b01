"""IEMOCAP as published: ``Session<1-5>`` with ``sentences/wav/<dialogue>/<utterance>.wav`` and
``dialog/EmoEvaluation/<dialogue>.txt``.

A line ``[<start> - <end>]<tab><utterance><tab><emotion><tab>...`` of an EmoEvaluation file is the label that most annotators gave.
SUPERB keeps four: neutral, happy, sad, angry, with excited counted as happy. Its five folds are the five sessions, each with two
speakers of its own. s3prl reads the same list from files that it downloads; this one is made of the corpus.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..errors import StarError
from .manifest import lengths, lines

NAME = "IEMOCAP"
LICENCE = "IEMOCAP release form of the University of Southern California (on request, academic research)"
FOLDERS = ("IEMOCAP", "IEMOCAP_full_release", "iemocap")
COUNTS = {"er": {1: 1_085, 2: 1_023, 3: 1_151, 4: 1_031, 5: 1_241}}
LABELS = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every utterance of the four classes, by name: fold (1 to 5), speaker (``Ses01F`` ...), label. Raises :class:`StarError`."""
    rows = []
    for fold in COUNTS["er"]:
        session = folder / f"Session{fold}"
        files = sorted((session / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
        if not files:
            raise StarError(f"{session}: no dialog/EmoEvaluation/Ses*.txt; unpack all five sessions of {NAME} in {folder}")
        rows += [row for file in files for row in _dialogue(file, session, fold)]
    table = pd.DataFrame(sorted(rows), columns=["id", "path", "fold", "speaker", "label"])
    table["samples"] = lengths(table["path"], folder)
    return table


def _dialogue(file: Path, session: Path, fold: int) -> list[tuple[str, str, int, str, str]]:
    rows = []
    for number, line in lines(file, NAME):
        if not line.startswith("["):
            continue  # the header, and the single annotators' labels
        fields = line.split("\t")
        if len(fields) < 4 or "_" not in fields[1]:
            raise StarError(f"{file}: line {number}: expected '[start - end]<tab>utterance<tab>emotion<tab>...', got {line!r}")
        name, label = fields[1].strip(), LABELS.get(fields[2].strip())
        if label is not None:
            dialogue, _, turn = name.rpartition("_")
            # The letter in the dialogue's name is who wore the markers; the one of the turn is who speaks.
            wav = session / "sentences" / "wav" / dialogue / f"{name}.wav"
            rows.append((name, str(wav), fold, f"Ses{fold:02d}{turn[:1]}", label))
    return rows
