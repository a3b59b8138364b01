"""Speech Commands v0.01 as published, with SUPERB's twelve classes.

``speech_commands_v0.01/<word>/<speaker>_nohash_<number>.wav`` holds the recordings; ``validation_list.txt`` and
``testing_list.txt`` name (``<word>/<file>``) those outside train; ``_background_noise_/*.wav`` is noise. The test set
is a corpus of its own: ``speech_commands_test_set_v0.01/<class>/*.wav``; what ``testing_list.txt`` names is not used.

``_unknown_`` is every word but the ten. ``_silence_`` in train and dev is the background noise in pieces of one second,
the same pieces in both, as s3prl's recipe has it (its last piece of a file is shorter).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...audio import RATE
from ...errors import StarError
from .manifest import lengths

NAME = "Speech Commands v0.01 (with its separate test set)"
LICENCE = "CC BY 4.0"
FOLDERS = ("speech_commands_v0.01", "gsc1")
TEST_FOLDERS = ("speech_commands_test_set_v0.01", "gsc1_test")
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
CLASSES = (*WORDS, UNKNOWN, SILENCE)
COUNTS = {"ks": {"train": None, "dev": None, "test": 3_081}}
"""None for train and dev: the number of silence pieces depends on the noise files."""


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every utterance: label is one of the twelve, speaker is the hash in the file's name or empty. Raises
    :class:`StarError`."""
    tests = [folder.with_name(name) for name in TEST_FOLDERS]
    test = next((t for t in tests if t.is_dir()), None)
    if test is None:
        raise StarError(f"{folder}: the test set is missing: put it beside this folder as {TEST_FOLDERS[0]}")
    dev, held_out = _listed(folder / "validation_list.txt"), _listed(folder / "testing_list.txt")
    rows = []
    for file in sorted(folder.glob("*/*.wav")):
        word = file.parent.name
        name = f"{word}/{file.name}"
        if word != NOISE and name not in held_out:
            rows.append(_row("dev" if name in dev else "train", file, word if word in WORDS else UNKNOWN))
    for file in sorted(test.glob("*/*.wav")):
        if file.parent.name not in CLASSES:
            raise StarError(
                f"{test}: {file.parent.name} is none of the twelve classes ({', '.join(CLASSES)}); remove that folder"
            )
        rows.append(_row("test", file, file.parent.name))
    table = pd.DataFrame(rows, columns=["id", "path", "split", "speaker", "label"])
    table["samples"] = lengths(table["path"], folder)
    table["start"] = 0
    return pd.concat([table, _silence(folder / NOISE)], ignore_index=True)


def _row(split: str, file: Path, label: str) -> tuple[str, str, str, str, str]:
    speaker, mark, _ = file.name.partition("_nohash_")
    return f"{split}/{file.parent.name}/{file.stem}", str(file), split, speaker if mark else "", label


def _silence(noise: Path) -> pd.DataFrame:
    files = sorted(noise.glob("*.wav"))
    if not files:
        raise StarError(f"{noise}: no noise recordings, so no {SILENCE} class; unpack {NAME} again")
    rows = [
        (
            f"{split}/{SILENCE}/{file.stem}-{start // RATE:03d}",
            str(file),
            split,
            "",
            SILENCE,
            min(RATE, total - start),
            start,
        )
        for split in ("train", "dev")
        for file, total in zip(files, lengths(files, noise))
        for start in range(0, total, RATE)
    ]
    return pd.DataFrame(rows, columns=["id", "path", "split", "speaker", "label", "samples", "start"])


def _listed(file: Path) -> set[str]:
    if not file.is_file():
        raise StarError(f"{file} is missing; it comes with {NAME}: unpack the corpus again")
    return set(file.read_text(encoding="utf-8-sig").split())
