"""QUESST 2014 as published (``quesst14Database``), its non-native English part, as SUPERB has it.

- ``scoring/language_key_{utterances,dev,eval}.lst``: ``quesst14Database/<file> <language>`` for every document, and
  every query of the two sets; queries of both are searched in the same documents
- ``scoring/groundtruth_quesst14_{dev,eval}/*.rttm``: ``LEXEME <document> 1 <start> <seconds> <query> ...`` where the
  query is said

Here a query that is in no document stays in the table, and its pairs are in the truth. The corpus's own scorer leaves
such queries out, and it counts all languages' queries: with scores for the English ones alone, as in SUPERB's recipe,
the value of each other query is 0, so that its mean is that of the English queries times their share.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import BOTH, lengths, lines
from .relations import check_truth

NAME = "QUESST 2014 (quesst14Database)"
LICENCE = "free for research, terms in the archive (Brno University of Technology)"
FOLDERS = ("quesst14Database", "quesst14")
COUNTS = {"qbe": {"dev": 138, "eval": 138, BOTH: 2_438}}
"""Queries of dev, queries of eval, documents."""
LANGUAGE = "nnenglish"


def read(folder: Path, task: str) -> pd.DataFrame:
    """Documents (split ``both``) and queries (dev, eval) by the name of their file. Raises :class:`StarError`."""
    rows = []
    for split, kind, listing in ((BOTH, "doc", "utterances"), ("dev", "query", "dev"), ("eval", "query", "eval")):
        rows += [(path.stem, str(path), split, kind) for path in _listed(folder, listing)]
    table = pd.DataFrame(rows, columns=["id", "path", "split", "kind"])
    table["samples"] = lengths(table["path"], folder)
    return table


def truth(folder: Path) -> pd.DataFrame:
    """Columns query, doc, relevant: every query of dev and eval with every document. Raises :class:`StarError`."""
    docs = [path.stem for path in _listed(folder, "utterances")]
    rows, splits = [], list[str]()
    for split in ("dev", "eval"):
        said = _said(folder, split)
        for query in (path.stem for path in _listed(folder, split)):
            rows += [(query, doc, int((query, doc) in said)) for doc in docs]
        splits += [split] * (len(rows) - len(splits))
    table = pd.DataFrame(rows, columns=["query", "doc", "relevant"])
    return check_truth(
        table, pd.Series(splits, dtype=str), str(folder / "scoring"), lambda row: str(folder / "scoring")
    )


def _listed(folder: Path, name: str) -> list[Path]:
    listing = folder / "scoring" / f"language_key_{name}.lst"
    paths = []
    for number, line in lines(listing, NAME):
        fields = line.split()
        if len(fields) != 2 or "/" not in fields[0] or ".." in fields[0]:
            raise StarError(f"{listing}: line {number}: expected 'quesst14Database/<file> <language>', got {line!r}")
        if fields[1] == LANGUAGE:
            paths.append(folder / fields[0].partition("/")[2])
    if not paths:
        raise StarError(f"{listing}: no line has the language {LANGUAGE}; unpack {NAME} again")
    return paths


def _said(folder: Path, split: str) -> set[tuple[str, str]]:
    truth = folder / "scoring" / f"groundtruth_quesst14_{split}"
    files = sorted(truth.glob("*.rttm"))
    if not files:
        raise StarError(f"{truth}: no rttm file; it comes with {NAME}: unpack the corpus again")
    said = set()
    for file in files:
        for number, line in lines(file, NAME):
            fields = line.split()
            if fields[0] != "LEXEME":
                continue
            if len(fields) < 6:
                raise StarError(
                    f"{file}: line {number}: expected 'LEXEME <document> 1 <start> <seconds> <query>', got {line!r}"
                )
            said.add((fields[5], fields[1]))
    return said
