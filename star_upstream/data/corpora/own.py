"""Whether own data measures anything: what makes a number meaningless is an error, what weakens it a remark beside the
number.

Published corpora are not judged here; s3prl's own recipes take some of their audio twice.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NoReturn

import pandas as pd

from ... import members
from ...errors import StarError
from ...files import sha256

CLASSES = {
    "ks": ("label",),
    "sid": ("speaker",),
    "ic": ("action", "object", "location"),
    "er": ("label",),
    "asv": ("speaker",),
}
"""The columns that make a task's class, those of one row taken together."""
TEXTS = {"asr": "text", "pr": "phones", "sf": "slots"}
"""What else a task predicts."""
NAMES = ("label", "speaker", "action", "object", "location")
MIDDLE = 4096
"""Bytes from a file's middle that tell most files of one size apart."""


def check_parts(table: pd.DataFrame, task: str, fail: Callable[[int, str], NoReturn]) -> None:
    """Refuses a part of a file that has two ids within a split or fold, and, where speakers are told apart, one with
    two speakers."""
    group = "fold" if "fold" in table else "split"
    seen: dict[tuple, int] = {}
    kinds = table["kind"] if "kind" in table else [""] * len(table)
    paths = table["path"].map(os.path.normpath)
    parts = zip(paths, table["start"], table["samples"], table[group], kinds)
    for row, part in enumerate(parts):
        if (first := seen.setdefault(part, row)) != row:
            fail(
                row,
                f"{table['path'].iloc[row]} is the audio of {table['id'].iloc[first]!r} already; "
                "a recording has one id, remove one row",
            )
    if "speaker" not in table or task not in ("sid", "asv"):
        return
    spoken = defaultdict(list)
    for row, (path, start, samples) in enumerate(zip(paths, table["start"], table["samples"])):
        spoken[path].append((start, start + samples, row))
    for stretches in spoken.values():
        stretches.sort()
        for (_, end, before), (start, _, row) in pairwise(stretches):
            one, other = table["speaker"].iloc[before], table["speaker"].iloc[row]
            if start < end and one != other:
                fail(
                    row,
                    f"{table['path'].iloc[row]} has speaker {other!r} here "
                    f"and {one!r} in {table['id'].iloc[before]!r}; correct one",
                )


def remarks(table: pd.DataFrame, task: str, source: str) -> list[str]:
    """What the numbers on this table suffer from, a line each.

    Raises :class:`StarError` where no number can mean anything: one class or one text alone, every test recording also
    in training.
    """
    return [*_answers(table, task, source), *_spellings(table), *_heard_before(table, task, source)]


def _answers(table: pd.DataFrame, task: str, source: str) -> list[str]:
    split = table["split"] if "split" in table else pd.Series("train", table.index)
    if task in CLASSES:
        answers, what = table[list(CLASSES[task])].astype(str).agg(" ; ".join, axis=1), " ".join(CLASSES[task])
    elif task in TEXTS:
        answers, what = table[TEXTS[task]].astype(str), TEXTS[task]
    else:
        return []
    trained = answers[split == "train"]
    if trained.nunique() == 1 and task == "asv":
        return [f"train has one speaker alone ({trained.iloc[0][:60]!r}): the head learns to tell nobody apart"]
    if answers.nunique() == 1:
        raise StarError(
            f"{source}: {task}: all rows have one {what} alone ({answers.iloc[0][:60]!r}), so nothing is measured; "
            "add others"
        )
    tested = answers[split == "test"]
    if task != "asv" and len(tested) and tested.nunique() == 1:
        return [f"every test row has the same {what} ({tested.iloc[0][:60]!r}): a constant answer would be right"]
    return []


def _spellings(table: pd.DataFrame) -> list[str]:
    """Classes that a reader would take for one."""
    found = []
    for name in (name for name in NAMES if name in table):
        forms = defaultdict(set)
        for value in table[name].astype(str).unique():
            forms[" ".join(unicodedata.normalize("NFKC", value).split()).casefold()].add(value)
        pairs = [sorted(values) for values in forms.values() if len(values) > 1]
        if pairs:
            some = ", ".join(" and ".join(map(repr, values)) for values in pairs[:3]) + " ..." * (len(pairs) > 3)
            found.append(f"{name}: {some} differ by case, spaces or accents' encoding alone, and count as different")
    return found


def _heard_before(table: pd.DataFrame, task: str, source: str) -> list[str]:
    contents = _contents(table["path"].unique())
    parts = list(zip(table["path"].map(contents), table["start"], table["start"] + table["samples"]))
    if task == "qbe":
        queries, docs = (table.index[table["kind"] == kind] for kind in ("query", "doc"))
        same = _shared(parts, queries, docs)
        if same == len(queries):
            raise StarError(
                f"{source}: {task}: every query is itself one of the documents, so nothing is measured; say them anew"
            )
        return [f"{same} of {len(queries)} queries are themselves documents"] if same else []
    if "fold" in table:
        folds = table["fold"]
        same = sum(_shared(parts, table.index[folds == f], table.index[folds != f]) for f in folds.unique())
        if same == len(table):
            raise StarError(
                f"{source}: {task}: every recording is in several folds, so it is tested on what it learnt; "
                "keep each in one"
            )
        said = f"{same} of {len(table)} recordings are in several folds: they are tested on what was learnt"
        return [said] if same else []
    rows = {name: table.index[table["split"] == name] for name in ("train", "dev", "test")}
    found = []
    for one, other, follows in (
        ("test", "train", ": they were learnt"),
        ("dev", "train", ""),
        ("test", "dev", ": the head was chosen by them"),
    ):
        same = _shared(parts, rows[one], rows[other])
        if same and same == len(rows[one]) and (one, other) == ("test", "train"):
            raise StarError(
                f"{source}: {task}: every test recording is also in train, so nothing is measured; test on others"
            )
        if same:
            found.append(f"{same} of {len(rows[one])} {one} recordings are also in {other}{follows}")
    files = {name: set(table["path"][rows[name]].map(os.path.realpath)) for name in ("train", "test")}
    if not found and (both := files["train"] & files["test"]):
        found.append(f"train and test take different parts of the same {len(both)} files")
    return found


def _shared(parts: Sequence[tuple[tuple, int, int]], rows: Iterable[int], others: Iterable[int]) -> int:
    """How many of ``rows`` have a sound that is, in part at least, also that of one of ``others``: one file, or files
    of one content. ``parts``: of each row the content's name, the first sample and the end."""
    heard = defaultdict(list)
    for content, first, last in (parts[row] for row in others):
        heard[content].append((first, last))
    return sum(
        any(first < end and start < last for first, last in heard[content])
        for content, start, end in (parts[row] for row in rows)
    )


def _contents(paths: Iterable[str]) -> dict[str, tuple]:
    """For each path a name that those of one content share: its size; where several have that, with what is in its
    middle; where several still have that, with the digest of all."""
    real = {path: os.path.realpath(path) for path in paths}
    names: dict[str, tuple] = {
        # a member of a shard is told by its place alone
        file: (file,) if members.split(file) else (os.path.getsize(file),)
        for file in set(real.values())
    }
    for digest in (_middle, sha256):
        count = Counter(names.values())
        alike = [file for file, name in names.items() if count[name] > 1]
        with ThreadPoolExecutor(8) as pool:
            for file, found in zip(alike, pool.map(digest, alike)):
                names[file] += (found,)
    return {path: names[file] for path, file in real.items()}


def _middle(file: str) -> int:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) // 2 - MIDDLE // 2))
        return zlib.crc32(stream.read(MIDDLE))
