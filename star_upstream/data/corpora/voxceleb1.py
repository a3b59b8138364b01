"""VoxCeleb1 as published: ``{dev,test}/wav/<speaker>/<video>/<number>.wav``; ``wav/...`` with both parts merged is read
too.

Identification (SID): ``iden_split.txt``, published beside the audio, is the split: ``1`` (train), ``2`` (dev) or ``3``
(test), a space, ``<speaker>/<video>/<number>.wav``, one line an utterance. It must be in the corpus folder.

Verification (ASV): ``voxceleb1_test_v2.txt`` (the cleaned trials; the first list, ``veri_test.txt``, is not the one
that SUPERB uses) has ``1`` (same speaker) or ``0`` and two such paths a line. It must be in the corpus folder. Its
utterances are the test set; every utterance of a speaker whom it does not name is training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import lengths, lines
from .relations import check_trials

NAME = "VoxCeleb1"
LICENCE = "metadata CC BY 4.0; the audio is from public videos and stays their owners'"
FOLDERS = ("VoxCeleb1", "Voxceleb1", "voxceleb1")
COUNTS = {"sid": {"train": 138_361, "dev": 6_904, "test": 8_251}, "asv": {"train": 148_642, "test": 4_708}}
TRIALS = 37_611
SPLIT_FILE = "iden_split.txt"
TRIAL_FILE = "voxceleb1_test_v2.txt"
SPLITS = {"1": "train", "2": "dev", "3": "test"}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every utterance of the task, by id: speaker is ``id10001`` and so on. Raises :class:`StarError`."""
    rows = _verification(folder) if task == "asv" else _identification(folder)
    table = pd.DataFrame(sorted(rows), columns=["id", "path", "split", "speaker"])
    table["samples"] = lengths(table["path"], folder / (TRIAL_FILE if task == "asv" else SPLIT_FILE))
    return table


def trials(folder: Path) -> pd.DataFrame:
    """Columns target, enroll, test in the order of the trial file. Raises :class:`StarError`."""
    rows, places = [], []
    for number, target, enroll, test in _trials(folder):
        rows.append((target, _id(enroll), _id(test)))
        places.append(f"{folder / TRIAL_FILE}: line {number}")
    return check_trials(
        pd.DataFrame(rows, columns=["target", "enroll", "test"]), str(folder / TRIAL_FILE), places.__getitem__
    )


Row = tuple[str, str, str, str]


def _identification(folder: Path) -> list[Row]:
    listing = _listing(folder, SPLIT_FILE)
    home = _homes(folder)
    rows = []
    for number, line in lines(listing, NAME):
        fields = line.split()
        if len(fields) != 2 or fields[0] not in SPLITS or not _is_utterance(fields[1]):
            raise StarError(f"{listing}: line {number}: expected '1|2|3 <speaker>/<video>/<number>.wav', got {line!r}")
        speaker = fields[1].split("/")[0]
        rows.append(
            (_id(fields[1]), str(_home(home, speaker, listing, number) / fields[1]), SPLITS[fields[0]], speaker)
        )
    return rows


def _verification(folder: Path) -> list[Row]:
    listing, home = _listing(folder, TRIAL_FILE), _homes(folder)
    test = {}
    for number, _, *pair in _trials(folder):
        for name in pair:
            speaker = name.split("/")[0]
            test[name] = (_id(name), str(_home(home, speaker, listing, number) / name), "test", speaker)
    tested = {speaker for *_, speaker in test.values()}
    train = [
        (_id(f"{speaker}/{video.name}/{name}"), f"{video.path}/{name}", "train", speaker)
        for speaker, wav in home.items()
        if speaker not in tested
        for video in os.scandir(wav / speaker)
        if video.is_dir()
        for name in os.listdir(video.path)
        if name.endswith(".wav")
    ]
    if not train:
        raise StarError(f"{folder}: no speakers besides those of {TRIAL_FILE}; unpack the dev part of {NAME} there")
    return [*train, *test.values()]


def _trials(folder: Path) -> Iterator[tuple[int, str, str, str]]:
    listing = _listing(folder, TRIAL_FILE)
    for number, line in lines(listing, NAME):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ("0", "1") or not all(map(_is_utterance, fields[1:])):
            raise StarError(f"{listing}: line {number}: expected '0|1 <path> <path>', got {line!r}")
        yield number, fields[0], fields[1], fields[2]


def _listing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise StarError(f"{folder}: {name} is missing; get it from the {NAME} site and put it in this folder")
    return folder / name


def _homes(folder: Path) -> dict[str, Path]:
    """The folder that holds each speaker's; a speaker's recordings are all in one part."""
    parts = [wav for wav in (folder / "wav", *sorted(folder.glob("*/wav"))) if wav.is_dir()]
    if not parts:
        raise StarError(f"{folder}: no dev/wav or test/wav folder; unpack the audio of {NAME} there")
    return {speaker.name: wav for wav in parts for speaker in sorted(wav.iterdir()) if speaker.is_dir()}


def _home(home: dict[str, Path], speaker: str, listing: Path, number: int) -> Path:
    if speaker not in home:
        raise StarError(
            f"{listing}: line {number}: no folder of speaker {speaker} in {listing.parent}; unpack all parts of {NAME}"
        )
    return home[speaker]


def _is_utterance(name: str) -> bool:
    return name.count("/") == 2 and ".." not in name


def _id(name: str) -> str:
    speaker, video, file = name.split("/")
    return f"{speaker}-{video}-{Path(file).stem}"
