"""Fluent Speech Commands as published: ``data/{train,valid,test}_data.csv`` and ``wavs/speakers/<speaker>/<name>.wav``.

The csv files have a header line with the columns path (below the corpus folder), speakerId, transcription, action,
object and location, and a first column without a name. The published split has different speakers in each.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import StarError, first_line
from .manifest import lengths

NAME = "Fluent Speech Commands"
LICENCE = "Fluent Speech Commands licence (academic research; read it where you get the corpus)"
FOLDERS = ("fluent_speech_commands_dataset", "fluent_speech_commands", "fluent")
COUNTS = {"ic": {"train": 23_132, "dev": 3_118, "test": 3_793}}
FILES = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
COLUMNS = {"path": "path", "speakerId": "speaker", "transcription": "text"} | {
    c: c for c in ("action", "object", "location")
}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every command, by the name of its file: speaker, text and the three parts of the intent. Raises
    :class:`StarError`."""
    parts = []
    for split, name in FILES.items():
        file = folder / "data" / name
        try:
            part = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except FileNotFoundError:
            raise StarError(f"{file} is missing; it comes with {NAME}: unpack the corpus again") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise StarError(f"{file}: no table ({first_line(error)}); unpack {NAME} again") from None
        missing = [column for column in COLUMNS if column not in part]
        if missing:
            raise StarError(
                f"{file}: column {missing[0]!r} is missing (found: {', '.join(part.columns)}); unpack {NAME} again"
            )
        parts.append(part[list(COLUMNS)].rename(columns=COLUMNS).assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    table["id"] = [Path(path).stem for path in table["path"]]
    table["path"] = [str(folder / path) for path in table["path"]]
    table["samples"] = lengths(table["path"], folder)
    return table
