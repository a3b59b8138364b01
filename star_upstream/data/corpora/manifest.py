"""The table that every task reads: one row an utterance, from tsv files or from a corpus, and the checks that it must
pass.

Columns:

- ``id``: unique within the table
- ``path``: the audio file, or a member of a shard (:mod:`star_upstream.members`), absolute (in a tsv file: absolute, or
  relative to the folder that holds ``manifests/``)
- ``start``: first sample of the utterance in the file, counted at 16 kHz (optional in a tsv file: 0)
- ``samples``: length of the utterance at 16 kHz
- ``split``: train, dev or test (ASV: train or test; QbE: dev, eval or both; ER has ``fold`` instead: two or more, of
  any names)
- the task's own, in ``TABLES``: ks ``label``; sid, asv ``speaker``; asr ``speaker``, ``text``; pr those and ``phones``
  (ARPAbet symbols with spaces between); ic ``action``, ``object``, ``location``; sf ``text`` and ``slots`` (one of
  ``B-x``, ``I-x``, ``O`` a word, with spaces between); er ``speaker``, ``label``; qbe ``kind`` (query or doc). sd has
  none.

A task's tsv file is ``<task>.tsv``, but for asv ``asv_train.tsv`` and ``asv_test.tsv`` (no ``split``), and for qbe
``qbe_queries.tsv`` and ``qbe_docs.tsv`` (``set`` for ``split``, no ``kind``); sd's has ``rttm_path`` besides. What
links utterances, ``asv_trials.tsv``, the rttm files and ``qbe_truth.tsv``, is read by
:mod:`star_upstream.data.corpora.relations`.

A tsv file has one header line and no quoting, and is UTF-8, with a byte-order mark or without. Columns besides these
are ignored. Words, phones and slots are separated by any Unicode space; in the table there is one plain space between
them.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd

from ... import audio, members
from ...errors import StarError, first_line, nearest
from . import own


@dataclass(frozen=True)
class Table:
    """What a task's table holds besides id, path, start and samples."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Kept where they are there; may be empty in a row."""
    classes: tuple[str, ...] = ()
    """The columns that the task predicts as one of a closed set: each of their values must occur in training."""
    group: str = "split"
    groups: tuple = ("train", "dev", "test")
    """The values of ``group``; each must have a row. Empty: two or more, of any names."""
    files: tuple[tuple[str, dict[str, str]], ...] = ()
    """The tsv files, and what is the same in each of their rows; none: ``<task>.tsv``."""


TABLES = {
    "pr": Table(("speaker", "text", "phones")),
    "asr": Table(("speaker", "text")),
    "ks": Table(("label",), ("speaker",), ("label",)),
    "qbe": Table(
        ("kind",),
        groups=("dev", "eval"),
        files=(("qbe_queries.tsv", {"kind": "query"}), ("qbe_docs.tsv", {"kind": "doc"})),
    ),
    "sid": Table(("speaker",), classes=("speaker",)),
    "asv": Table(
        ("speaker",),
        groups=("train", "test"),
        files=(("asv_train.tsv", {"split": "train"}), ("asv_test.tsv", {"split": "test"})),
    ),
    "sd": Table(),
    "ic": Table(("action", "object", "location"), ("speaker", "text"), ("action", "object", "location")),
    "sf": Table(("text", "slots"), ("speaker",)),
    "er": Table(("speaker", "label"), classes=("label",), group="fold", groups=()),
}
SPACED = ("text", "phones", "slots")
"""Columns of words."""
BOTH = "both"
"""The split of a QbE document that the queries of dev and of eval are searched in."""


def files(task: str) -> tuple[str, ...]:
    """The names of the task's tsv files."""
    return tuple(name for name, _ in TABLES[task].files) or (f"{task}.tsv",)


def rows(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The tsv file as text, without blank lines, and each row's file and line. Raises :class:`StarError` for what is
    no such file, and for a column that is missing."""
    reading = {
        "sep": "\t",
        "dtype": str,
        "keep_default_na": False,
        "quoting": csv.QUOTE_NONE,
        "skip_blank_lines": False,
    }
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", **reading)
    except FileNotFoundError:
        raise StarError(f"{path} is missing; put it beside the other manifests") from None
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror})") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: not a tab-separated UTF-8 table with one header line ({first_line(error)})") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first field of every row for an index
        raise StarError(f"{path}: the rows have more fields than the header line; name every column in the header")
    for name in columns:
        if f"{name}.1" in table:  # what pandas makes of a second one
            raise StarError(f"{path}: the header line has column {name!r} twice; remove one")
        if name not in table:
            raise StarError(
                f"{path}: column {name!r} is missing{nearest(name, table.columns)} (found: {', '.join(table.columns)})"
            )
    table = table[(table != "").any(axis=1)]
    return table.reset_index(drop=True), [f"{path}: line {row + 2}" for row in table.index]


def read(folder: str | Path, task: str) -> pd.DataFrame:
    """The table of ``task`` from the tsv files in ``folder`` (``<data>/manifests``), checked. Raises
    :class:`StarError`."""
    folder, spec = Path(folder).absolute(), TABLES[task]
    parts, places = [], []
    for name, same in spec.files or ((f"{task}.tsv", {}),):
        group = "set" if task == "qbe" else spec.group
        needed = [
            "id",
            "path",
            "samples",
            *([] if "split" in same else [group]),
            *(c for c in spec.required if c not in same),
        ]
        part, found = rows(folder / name, needed)
        parts.append(part.rename(columns={"set": "split"} if task == "qbe" else {}).assign(**same))
        places += found
    table = pd.concat(parts, ignore_index=True)
    if "start" in table:  # one of two files may have it
        table["start"] = table["start"].fillna("0")
    table["path"] = [str(folder.parent / p) if isinstance(p, str) and p.strip() else "" for p in table["path"]]
    return check(table, task, str(folder / files(task)[0] if len(files(task)) == 1 else folder), places.__getitem__)


def check(table: pd.DataFrame, task: str, source: str, place: Callable[[int], str] | None = None) -> pd.DataFrame:
    """``table`` with exactly the columns of ``task`` and integer ``start`` and ``samples``, or a :class:`StarError`.

    Refused, each by naming ``source`` and the row: an empty field, a number that is none, fewer than one sample, an
    unknown split, a split without rows, an id used twice, a file that is not there, a class that dev or test has and
    train has not, and what makes no sense for the task. ``place`` gives the file and the line of a row of a tsv file;
    there, lengths are checked against the files' headers, too, and a part of a file may have one id and one speaker
    only.
    """
    spec, group = TABLES[task], TABLES[task].group

    def fail(row: int, message: str) -> NoReturn:
        where = place(row) if place else f"{source}: item {table['id'].iloc[row]!r}"
        raise StarError(f"{where}: {message}")

    optional = [name for name in spec.optional if name in table]
    table = table.reset_index(drop=True)
    if "start" not in table:
        table["start"] = 0
    table = table[["id", "path", "start", "samples", group, *optional, *spec.required]]

    for name in ("id", "path", "samples", group, *spec.required):
        if (row := _first(table[name].isna() | (table[name].astype(str).str.strip() == ""))) is not None:
            fail(row, f"{name} is empty; fill it in or remove the row")
    for name, least in (("start", 0), ("samples", 1)):
        value = pd.to_numeric(table[name], errors="coerce")
        if (row := _first(value.isna() | (value % 1 != 0) | (value < least))) is not None:
            fail(
                row,
                f"{name} is {table[name].iloc[row]!r}; it must be a whole number, at least {least} (samples at 16 kHz)",
            )
        table[name] = value.astype("int64")
    for name in (name for name in SPACED if name in table):
        # a word joiner or zero-width space within would make another word of one that looks the same
        table[name] = [" ".join(re.sub("[\u200b\u2060\ufeff]", "", str(text)).split()) for text in table[name]]
    allowed = [*spec.groups, *([BOTH] if task == "qbe" else [])]
    if allowed and (row := _first(~table[group].isin(allowed))) is not None:
        fail(row, f"unknown {group} {table[group].iloc[row]!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
    if not allowed:
        table[group] = _numbered(table[group])
    if (row := _first(table["id"].duplicated())) is not None:
        fail(row, f"id {table['id'].iloc[row]!r} is used twice; ids must be unique")
    for value in spec.groups:
        if not (table[group] == value).any():
            raise StarError(f"{source}: no row has {group} {value!r}; {task} needs {', '.join(spec.groups)}")
    if not spec.groups and table[group].nunique() < 2:
        raise StarError(
            f"{source}: one {group} alone ({table[group].iloc[0] if len(table) else 'no row'}); "
            f"{task} needs two or more"
        )
    if (row := _first(~_are_files(table["path"]))) is not None:
        path = table["path"].iloc[row]
        gone = f" ({audio.DANGLING})" if audio.dangling(path) else ""
        fail(row, f"{path} is not there{gone}; put the file in its place or remove the row")
    if place:  # lengths of a published corpus are those of the headers
        _check_lengths(table, fail)
        own.check_parts(table, task, fail)
    for name in spec.classes:
        _closed_set(table, name, spec, fail)
    if task in RULES:
        RULES[task](table, source, fail)
    return table


def _numbered(folds: pd.Series) -> pd.Series:
    """Folds as integers where all are written as such, else as text."""
    texts = folds.astype(str).str.strip()
    return texts.astype("int64") if texts.str.fullmatch(r"0|-?[1-9]\d{0,17}").all() else texts


def _check_lengths(table: pd.DataFrame, fail: Callable[[int, str], NoReturn]) -> None:
    """Refuses a row that goes on beyond its file's end, and files whose rows count at another rate than 16 kHz."""
    rows = {path: row for row, path in reversed(list(enumerate(table["path"])))}

    def one(path: str) -> audio.Header | str:
        try:
            return audio.header(path)
        except StarError as error:
            return str(error)

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        headers = dict(zip(rows, pool.map(one, rows)))
    ends = table["start"] + table["samples"]
    last = ends.groupby(table["path"]).max()
    for row, (path, start, samples, end) in enumerate(zip(table["path"], table["start"], table["samples"], ends)):
        header = headers[path]
        if isinstance(header, str):
            fail(row, header)
        own_rate = header.rate != audio.RATE and last[path] == header.frames != header.samples
        why = f"as counted at the file's {header.rate} Hz, it seems; " if own_rate else ""
        if (
            start >= header.samples
            or end > header.samples + header.slack
            or (own_rate and start + samples == header.frames)
        ):
            where = f"samples is {samples}" + (f" from {start} on" if start else "")
            fail(row, f"{where}, {why}{path} has {header.samples} at 16 kHz, and that is how they are counted")


def _closed_set(table: pd.DataFrame, name: str, spec: Table, fail: Callable[[int, str], NoReturn]) -> None:
    if spec.group == "fold":  # each fold is tested by what was learnt from the others
        folds = table.groupby(name)["fold"].nunique()
        if (row := _first(table[name].map(folds) < 2)) is not None:
            fold, value = table["fold"].iloc[row], table[name].iloc[row]
            fail(
                row, f"{name} {value!r} is in fold {fold} alone, so it cannot be learnt for that; add rows or remove it"
            )
        return
    known = table.loc[table["split"] == "train", name].unique()
    if (row := _first(~table[name].isin(known))) is not None:
        split, value = table["split"].iloc[row], table[name].iloc[row]
        fail(
            row, f"{name} {value!r} is in {split} but not in train, so it cannot be learnt; add train rows or remove it"
        )


def _unheard_speakers(table: pd.DataFrame, source: str, fail: Callable[[int, str], NoReturn]) -> None:
    known = table.loc[table["split"] == "train", "speaker"].unique()
    if (row := _first((table["split"] == "test") & table["speaker"].isin(known))) is not None:
        fail(
            row,
            f"speaker {table['speaker'].iloc[row]!r} is in train and in test; verification is tested on other speakers",
        )


def _one_slot_a_word(table: pd.DataFrame, source: str, fail: Callable[[int, str], NoReturn]) -> None:
    for row, (text, slots) in enumerate(zip(table["text"], table["slots"])):
        words, tags = text.split(), slots.split()
        if len(words) != len(tags):
            fail(row, f"{len(words)} words but {len(tags)} slots; give one slot a word")
        for before, tag in zip(["O", *tags], tags):
            if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
                fail(row, f"slot {tag!r} is none of B-<name>, I-<name> and O")
            if tag[:2] == "I-" and before[2:] != tag[2:]:
                fail(row, f"slot {tag!r} follows {before!r}; a slot begins with B-{tag[2:]}")


def _queries_and_documents(table: pd.DataFrame, source: str, fail: Callable[[int, str], NoReturn]) -> None:
    if (row := _first(~table["kind"].isin(("query", "doc")))) is not None:
        fail(row, f"unknown kind {table['kind'].iloc[row]!r}; it must be query or doc")
    if (row := _first((table["kind"] == "query") & (table["split"] == BOTH))) is not None:
        fail(row, "a query is in dev or in eval; only a document can be in both")
    for split in TABLES["qbe"].groups:
        for kind in ("query", "doc"):
            if not ((table["kind"] == kind) & table["split"].isin((split, BOTH))).any():
                raise StarError(f"{source}: no {kind} in {split}; qbe needs queries and documents in dev and in eval")


RULES = {"asv": _unheard_speakers, "sf": _one_slot_a_word, "qbe": _queries_and_documents}
"""What a task's table must fulfil besides."""


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


def lines(file: Path, corpus: str) -> list[tuple[int, str]]:
    """The numbers and the texts of a list's lines that are not blank. Raises :class:`StarError` when it is not there or
    no text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError:
        raise StarError(f"{file} is missing; it comes with {corpus}: unpack the corpus again") from None
    except UnicodeDecodeError:
        raise StarError(f"{file}: not UTF-8 text; unpack {corpus} again") from None
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _first(wrong: pd.Series) -> int | None:
    return int(wrong.to_numpy().argmax()) if wrong.any() else None


def _are_files(paths: pd.Series) -> pd.Series:
    unique = paths.unique()
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        there = dict(zip(unique, pool.map(lambda path: os.path.isfile(members.container(path)), unique)))
    return paths.map(there).astype(bool)
