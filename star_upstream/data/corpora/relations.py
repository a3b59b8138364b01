"""What links the utterances of a table: ASV's trials, SD's segments, QbE's truth; from manifests, and the checks for
any source.

- ``asv_trials.tsv``: ``target`` (1: same speaker, 0: not), ``enroll_path`` and ``test_path``, files of ``asv_test.tsv``
- ``sd.tsv``, column ``rttm_path``: a recording's segments in NIST's RTTM format, relative to the folder that holds
  ``manifests/``
- ``qbe_truth.tsv``: ``query_id``, ``doc_id``, ``relevant`` (1 or 0), a row for every pair to be scored
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ...audio import RATE
from ...errors import StarError
from .manifest import BOTH, lines, rows

Place = Callable[[int], str]
ROUNDING = 0.05
"""Seconds by which a segment may end after its recording: times are rounded."""
OTHER_LINES = (
    "SPKR-INFO", "LEXEME", "NON-LEX", "NON-SPEECH", "NOSCORE", "NO_RT_METADATA", "SEGMENT", "SU", "IP", "EDIT",
    "FILLER", "CB", "A/P",
)  # fmt: skip
"""What else a line of an rttm file may be about (NIST's RTTM format)."""


def read_trials(folder: Path) -> pd.DataFrame:
    """Columns target, enroll, test (ids) from the tsv files in ``folder``. Raises :class:`StarError`."""
    test, file = rows(folder / "asv_test.tsv", ("id", "path"))[0], folder / "asv_trials.tsv"
    table, places = rows(file, ("target", "enroll_path", "test_path"))
    base = os.path.abspath(folder.absolute().parent)

    def whole(path: str) -> str:  # ``a.wav``, ``./a.wav`` and ``/data/a.wav`` are one file
        return os.path.normpath(os.path.join(base, path.strip()))

    ids: dict[str, list[str]] = {}
    for uid, path in zip(test["id"], test["path"]):
        ids.setdefault(whole(path), []).append(uid)
    sides = []
    for name in ("enroll_path", "test_path"):
        for row, path in enumerate(table[name]):
            if (found := ids.get(whole(path))) is None:
                raise StarError(
                    f"{places[row]}: {name} {path!r} is not in asv_test.tsv; add it there or remove the row"
                )
            if len(found) > 1:
                raise StarError(
                    f"{places[row]}: {name} {path!r} is several utterances in asv_test.tsv ({', '.join(found[:3])}); "
                    "give each a file"
                )
        sides.append([ids[whole(path)][0] for path in table[name]])
    enroll, other = sides
    return check_trials(
        pd.DataFrame({"target": table["target"], "enroll": enroll, "test": other}), str(file), places.__getitem__
    )


def check_trials(table: pd.DataFrame, source: str, place: Place) -> pd.DataFrame:
    """``table`` with integer targets; refused: another target than 0 and 1, and trials of one kind only."""
    table = table.assign(target=_bits(table, "target", place))
    for target, meaning in ((1, "same speaker"), (0, "different speakers")):
        if not (table["target"] == target).any():
            raise StarError(f"{source}: no trial has target {target} ({meaning}); an error rate needs both kinds")
    return table


def read_segments(folder: Path) -> pd.DataFrame:
    """Columns id, start, end, speaker from the rttm files that ``sd.tsv`` names. Raises :class:`StarError`."""
    file = folder / "sd.tsv"
    (table, own), found, places = rows(file, ("id", "rttm_path", "samples")), [], []
    seconds = pd.to_numeric(table["samples"], errors="coerce") / RATE
    for row, (uid, name, total) in enumerate(zip(table["id"], table["rttm_path"], seconds)):
        rttm = folder.absolute().parent / name
        if not name.strip() or not rttm.is_file():
            raise StarError(f"{own[row]}: rttm_path {name!r} is no file; put it in its place or remove the row")
        for number, line in lines(rttm, "the manifest"):
            spoken = _spoken(line, uid, f"{rttm}: line {number}", file.name)
            if spoken is None:
                continue
            start, length, speaker = spoken
            if start + length > total + ROUNDING:
                hint = "; are these milliseconds?" if start + length > 20 * total else ""
                raise StarError(
                    f"{rttm}: line {number}: ends at {start + length:g} s, but {uid!r} has {total:g} s{hint}"
                )
            found.append((uid, start, start + length, speaker))
            places.append(f"{rttm}: line {number}")
    return check_segments(found, table["id"], str(file), places.__getitem__)


def _spoken(line: str, uid: str, place: str, source: str) -> tuple[float, float, str] | None:
    """Start, length and speaker of an rttm line; None where it is about something else than who speaks."""
    fields = (
        line.split("\t") if 8 <= line.count("\t") + 1 <= 10 else line.split()
    )  # between tabs, a name may hold spaces
    fields = [field.strip() for field in fields]
    if fields[0] in OTHER_LINES or fields[0].startswith(";;"):
        return None
    start, length = (as_number(f) for f in fields[3:5]) if len(fields) >= 8 else (None, None)
    if fields[0] != "SPEAKER" or start is None or length is None or fields[7] in ("", "<NA>"):
        raise StarError(f"{place}: expected 'SPEAKER <id> 1 <start> <length> <NA> <NA> <name>', got {line!r}")
    if len(fields) > 10 or not all(field == "<NA>" or _is_share(field) for field in fields[8:]):
        raise StarError(
            f"{place}: after the name {fields[7]!r} come {' '.join(fields[8:])!r}, where two fields may be <NA> "
            "or a decimal number; a name "
            "holds no space: write anna_lee"
        )
    if fields[1] != uid:
        raise StarError(f"{place}: is about {fields[1]!r}, but {source} gives this file to {uid!r}")
    return start, length, fields[7]


def _is_share(text: str) -> bool:
    """Whether it can be a confidence: a decimal number from 0 to 1, which ``speaker 2`` has none of, or a time
    ahead."""
    share = as_number(text)
    return share is not None and "." in text and share >= 0


def check_segments(
    found: list[tuple[str, float, float, str]], recordings: pd.Series, source: str, place: Place
) -> pd.DataFrame:
    """The rows (id, start, end, speaker) as a table; refused: a segment that ends before it starts, a recording without
    any."""
    for row, (_, start, end, _) in enumerate(found):
        if not 0 <= start < end < float("inf"):
            raise StarError(f"{place(row)}: from {start:g} s to {end:g} s is no segment; correct it or remove the line")
    table = pd.DataFrame(found, columns=["id", "start", "end", "speaker"])
    silent = recordings[~recordings.isin(table["id"])]
    if len(silent):
        raise StarError(f"{source}: no segment of recording {silent.iloc[0]!r}; every recording needs at least one")
    return table


def read_truth(folder: Path) -> pd.DataFrame:
    """Columns query, doc, relevant from the tsv files in ``folder``. Raises :class:`StarError`."""
    file = folder / "qbe_truth.tsv"
    table, places = rows(file, ("query_id", "doc_id", "relevant"))
    table = table.rename(columns={"query_id": "query", "doc_id": "doc"})[["query", "doc", "relevant"]]
    sets = {}
    for name, column in (("qbe_queries.tsv", "query"), ("qbe_docs.tsv", "doc")):
        known = rows(folder / name, ("id", "set"))[0]
        sets[column] = table[column].map(dict(zip(known["id"], known["set"])))
        if (unknown := sets[column].isna()).any():
            row = int(unknown.to_numpy().argmax())
            raise StarError(
                f"{places[row]}: {column} {table[column].iloc[row]!r} is not in {name}; add it there or remove the row"
            )
    if (apart := (sets["query"] != sets["doc"]) & (sets["doc"] != BOTH)).any():
        row = int(apart.to_numpy().argmax())
        query, doc = sets["query"].iloc[row], sets["doc"].iloc[row]
        raise StarError(f"{places[row]}: a query of {query} with a document of {doc}; remove the row")
    return check_truth(table, sets["query"], str(file), places.__getitem__)


def check_truth(table: pd.DataFrame, split: pd.Series, source: str, place: Place) -> pd.DataFrame:
    """``table`` with integer ``relevant``; refused: a pair twice, and a set (``split`` of each row) without a relevant
    pair."""
    table = table.assign(relevant=_bits(table, "relevant", place))
    if (again := table.duplicated(["query", "doc"])).any():
        raise StarError(
            f"{place(int(again.to_numpy().argmax()))}: this query and document were there before; remove the line"
        )
    for name in ("dev", "eval"):
        if not (table["relevant"][(split == name).to_numpy()] == 1).any():
            raise StarError(f"{source}: no query of {name} is in any document; term-weighted value needs one that is")
    return table


def _bits(table: pd.DataFrame, name: str, place: Place) -> pd.Series:
    if (wrong := ~table[name].astype(str).isin(("0", "1"))).any():
        row = int(wrong.to_numpy().argmax())
        raise StarError(f"{place(row)}: {name} is {table[name].iloc[row]!r}; it must be 1 or 0")
    return table[name].astype("int64")


def as_number(text: str) -> float | None:
    """None for what is no number; nan is one."""
    try:
        return float(text)
    except ValueError:
        return None
