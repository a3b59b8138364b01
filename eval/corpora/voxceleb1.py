"""VoxCeleb1 as published: ``{dev,test}/wav/<speaker>/<video>/<number>.wav``; ``wav/...`` with both parts merged is read too.

``iden_split.txt``, published beside the audio, is the identification split: ``1`` (train), ``2`` (dev) or ``3`` (test), a space,
``<speaker>/<video>/<number>.wav``, one line an utterance. It must be in the corpus folder.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from star_upstream.errors import StarError

from .manifest import lengths

NAME = "VoxCeleb1"
LICENCE = "metadata CC BY 4.0; the audio is from public videos and stays their owners'"
FOLDERS = ("VoxCeleb1", "Voxceleb1", "voxceleb1")
COUNTS = {"sid": {"train": 138_361, "dev": 6_904, "test": 8_251}}
SPLIT_FILE = "iden_split.txt"
SPLITS = {"1": "train", "2": "dev", "3": "test"}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every utterance of the identification split, by id: speaker is ``id10001`` and so on. Raises :class:`StarError`."""
    listing = folder / SPLIT_FILE
    if not listing.is_file():
        raise StarError(f"{folder}: {SPLIT_FILE} is missing; get it from the {NAME} site and put it in this folder")
    parts = [wav for wav in (folder / "wav", *sorted(folder.glob("*/wav"))) if wav.is_dir()]
    if not parts:
        raise StarError(f"{folder}: no dev/wav or test/wav folder; unpack the audio of {NAME} there")
    # A speaker's recordings are all in one part, so a part is looked up once a speaker.
    home = {speaker.name: wav for wav in parts for speaker in wav.iterdir()}
    rows = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[0] not in SPLITS or fields[1].count("/") != 2 or ".." in fields[1]:
            raise StarError(f"{listing}: line {number}: expected '1|2|3 <speaker>/<video>/<number>.wav', got {line!r}")
        speaker, video, name = fields[1].split("/")
        if speaker not in home:
            raise StarError(f"{listing}: line {number}: no folder of speaker {speaker} in {folder}; unpack all parts of {NAME}")
        rows.append((f"{speaker}-{video}-{Path(name).stem}", str(home[speaker] / fields[1]), SPLITS[fields[0]], speaker))
    table = pd.DataFrame(sorted(rows), columns=["id", "path", "split", "speaker"])
    table["samples"] = lengths(table["path"], listing)
    return table
