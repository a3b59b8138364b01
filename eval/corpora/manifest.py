"""The table that every task reads: one row an utterance, from a tsv file or from a corpus, and the checks that it must pass.

Columns:

- ``id``: unique within the table
- ``path``: the audio file, absolute (in a tsv file: absolute, or relative to the folder that holds ``manifests/``)
- ``start``: first sample of the utterance in the file, counted at 16 kHz (optional in a tsv file: 0)
- ``samples``: length of the utterance at 16 kHz
- ``split``: train, dev or test
- the task's own: ks ``label``, sid ``speaker``, asr ``text`` and ``speaker``; ks may also have ``speaker``, empty where not known

A tsv file has one header line and no quoting, and is UTF-8. Columns besides these are ignored.
"""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Sequence

import pandas as pd

from star_upstream import audio
from star_upstream.errors import StarError, nearest

SPLITS = ("train", "dev", "test")
COMMON = ("id", "path", "samples", "split")
REQUIRED = {"ks": ("label",), "sid": ("speaker",), "asr": ("speaker", "text")}
OPTIONAL = {"ks": ("speaker",)}
CLASSES = {"ks": "label", "sid": "speaker"}
"""The column that a classification task predicts: each of its values must occur in train."""


def read(path: str | Path, task: str) -> pd.DataFrame:
    """The manifest ``path`` (``<folder>/manifests/<task>.tsv``) of ``task``, checked. Raises :class:`StarError`."""
    path = Path(path)
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StarError(f"{path}: not a tab-separated UTF-8 table with one header line ({reason})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first field of every row for an index
        raise StarError(f"{path}: the rows have more fields than the header line; name every column in the header")
    for name in COMMON + REQUIRED[task]:
        if name not in table:
            raise StarError(f"{path}: column {name!r} is missing{nearest(name, table.columns)} (found: {', '.join(table.columns)})")
    base = path.absolute().parent.parent
    table["path"] = [str(base / p) if isinstance(p, str) and p.strip() else "" for p in table["path"]]
    return check(table, task, str(path), first_line=2)


def check(table: pd.DataFrame, task: str, source: str, first_line: int | None = None) -> pd.DataFrame:
    """``table`` with exactly the columns of ``task`` and integer ``start`` and ``samples``, or a :class:`StarError`.

    Refused, each by naming ``source`` and the row: an empty field, a number that is none, fewer than one sample, an unknown split,
    a split without rows, an id used twice, a file that is not there, and a class that dev or test has and train has not.
    ``first_line`` is the line of row 0 in ``source`` where that is a file with lines.
    """

    def fail(row: int, message: str) -> None:
        place = f"line {first_line + row}" if first_line is not None else f"item {table['id'].iloc[row]!r}"
        raise StarError(f"{source}: {place}: {message}")

    def first(wrong: pd.Series) -> int | None:
        return int(wrong.to_numpy().argmax()) if wrong.any() else None

    optional = [name for name in OPTIONAL.get(task, ()) if name in table]
    table = table.reset_index(drop=True)
    if "start" not in table:
        table["start"] = 0
    table = table[["id", "path", "start", "samples", "split", *optional, *REQUIRED[task]]]

    for name in ("id", "path", "samples", "split", *REQUIRED[task]):
        if (row := first(table[name].isna() | (table[name].astype(str).str.strip() == ""))) is not None:
            fail(row, f"{name} is empty; fill it in or remove the row")
    for name, least in (("start", 0), ("samples", 1)):
        value = pd.to_numeric(table[name], errors="coerce")
        if (row := first(value.isna() | (value % 1 != 0) | (value < least))) is not None:
            fail(row, f"{name} is {table[name].iloc[row]!r}; it must be a whole number, at least {least} (samples at 16 kHz)")
        table[name] = value.astype("int64")
    if (row := first(~table["split"].isin(SPLITS))) is not None:
        fail(row, f"unknown split {table['split'].iloc[row]!r}; it must be train, dev or test")
    if (row := first(table["id"].duplicated())) is not None:
        fail(row, f"id {table['id'].iloc[row]!r} is used twice; ids must be unique")
    for split in SPLITS:
        if not (table["split"] == split).any():
            raise StarError(f"{source}: no row has split {split!r}; {task} needs train, dev and test")
    if (row := first(~_are_files(table["path"]))) is not None:
        fail(row, f"{table['path'].iloc[row]} is not there; put the file in its place or remove the row")
    if task in CLASSES:
        name = CLASSES[task]
        known = table.loc[table["split"] == "train", name].unique()
        if (row := first(~table[name].isin(known))) is not None:
            split, value = table["split"].iloc[row], table[name].iloc[row]
            fail(row, f"{name} {value!r} is in {split} but not in train, so it cannot be learnt; add train rows or remove it")
    return table


def lengths(paths: Sequence[str | Path], source: str | Path) -> list[int]:
    """Samples at 16 kHz of each file, from the headers, in order, read in parallel.

    Raises :class:`StarError` for a file that is not there, naming ``source``, the list or folder that promised it.
    """

    def one(path: str | Path) -> int:
        if not os.path.isfile(path):
            raise StarError(f"{source}: {path} is not there; the corpus is incomplete, unpack it again")
        return audio.length(path)

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(one, paths))


def _are_files(paths: pd.Series) -> pd.Series:
    unique = paths.unique()
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        there = dict(zip(unique, pool.map(os.path.isfile, unique)))
    return paths.map(there).astype(bool)
