"""Libri2Mix in the layout of s3prl's diarization recipe: a Kaldi data folder for each of train, dev and test.

``{train,dev,test}/`` (or ``data/{train,dev,test}/``) hold

- ``wav.scp``: a recording's name and its file, absolute or relative to that folder
- ``segments``: a segment's name, its recording, start and end in seconds
- ``utt2spk``: a segment's name and its speaker
- ``reco2dur``: a recording's name and its length in seconds

SUPERB's data are the mixtures of two speakers of train-100, dev and test at 16 kHz. LibriMix is made by its own scripts
from LibriSpeech and WHAM noise, and s3prl's preparation script then writes these files; nothing is downloaded ready.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import lengths, lines
from .relations import as_number, check_segments

NAME = "LibriMix (Libri2Mix, with s3prl's diarization preparation)"
LICENCE = "CC BY 4.0 (LibriSpeech); the scripts are MIT"
FOLDERS = ("Libri2Mix", "libri2mix", "LibriMix")
COUNTS = {"sd": {"train": 13_900, "dev": 3_000, "test": 3_000}}
SPLITS = ("train", "dev", "test")


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every recording, by name. Raises :class:`StarError`."""
    rows = []
    for split in SPLITS:
        data = _data(folder, split)
        for name, path in _pairs(data / "wav.scp", "a recording and its file").items():
            if path.endswith("|"):
                raise StarError(f"{data}/wav.scp: {name} is a command, which is not run; write its audio to a file")
            rows.append((name, str(data / path), split))
    table = pd.DataFrame(rows, columns=["id", "path", "split"])
    table["samples"] = lengths(table["path"], folder)
    return table


def segments(folder: Path) -> pd.DataFrame:
    """Columns id, start, end, speaker of all three splits. Raises :class:`StarError`."""
    found, places, recordings = [], [], list[str]()
    for split in SPLITS:
        data = _data(folder, split)
        files = _pairs(data / "wav.scp", "a recording and its file")
        speakers = _pairs(data / "utt2spk", "a segment and its speaker")
        seconds = _pairs(data / "reco2dur", "a recording and its seconds")
        recordings += files
        for number, line in lines(data / "segments", NAME):
            fields = line.split()
            start, end = (as_number(f) for f in fields[2:]) if len(fields) == 4 else (None, None)
            place = f"{data / 'segments'}: line {number}"
            if start is None or end is None:
                raise StarError(f"{place}: expected '<segment> <recording> <start> <end>', got {line!r}")
            if fields[1] not in files:
                raise StarError(f"{place}: recording {fields[1]} is not in wav.scp; prepare the corpus again")
            if fields[0] not in speakers:
                raise StarError(f"{place}: segment {fields[0]} is not in utt2spk; prepare the corpus again")
            total = as_number(seconds.get(fields[1], ""))
            if total is None:
                raise StarError(f"{data / 'reco2dur'}: no length of {fields[1]} in seconds; prepare the corpus again")
            if not end <= total + 0.01:  # the files are rounded to 10 ms; nor of a length that is nan
                raise StarError(
                    f"{place}: ends at {end:g} s, but reco2dur gives {fields[1]} {total:g} s; prepare the corpus again"
                )
            found.append((fields[1], start, end, speakers[fields[0]]))
            places.append(place)
    return check_segments(found, pd.Series(recordings, dtype=str), str(folder), places.__getitem__)


def _data(folder: Path, split: str) -> Path:
    for data in (folder / split, folder / "data" / split):
        if data.is_dir():
            return data
    raise StarError(f"{folder}: no folder {split} with wav.scp, segments, utt2spk, reco2dur; prepare {NAME} there")


def _pairs(file: Path, what: str) -> dict[str, str]:
    found = {}
    for number, line in lines(file, NAME):
        fields = line.split(None, 1)
        if len(fields) != 2:
            raise StarError(f"{file}: line {number}: expected {what}, got {line!r}")
        found[fields[0]] = fields[1]
    return found
