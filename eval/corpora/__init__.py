"""Corpora as tables: :func:`load` gives one row an utterance, from a manifest or from a corpus in its published folder layout.

Every table has the columns ``id``, ``path``, ``start``, ``samples`` and those of its task (:mod:`eval.corpora.manifest` lists
them). Three tasks need more than one row an utterance, each from a function of its own whose ids are those of the table:

- ASV: :func:`trials` gives ``target`` (1: same speaker, 0: not), ``enroll``, ``test``. The table has splits train and test; train
  and test have different speakers, and only the utterances of the trials are in test.
- SD: :func:`segments` gives ``id``, ``start``, ``end`` (seconds from the start of the recording), ``speaker``, a row each time that
  a speaker talks; those of one recording may overlap. A speaker's name is unique within the recording at least.
- QbE: :func:`truth` gives ``query``, ``doc``, ``relevant`` (1: the query's words are said in the document, 0: not), a row for every
  pair that is to be scored, and no other. The table has ``kind`` query or doc, and ``split`` dev or eval (QbE has no training), or
  ``both`` for a document that the queries of both sets are searched in. A pair belongs to the split of its query.

ER has no ``split``: ``fold`` (1 to 5) is the fold in which an utterance is tested; dev is the caller's share of the other four.

A corpus is one module with

- ``NAME``: what to search for; ``LICENCE``: its terms, in a phrase;
- ``FOLDERS``: the folder names, below the data folder, that it is looked for under, first choice first;
- ``COUNTS``: for each task that it serves, the rows of each split that the published corpus has (None: not known);
- ``read(folder, task) -> DataFrame``: the table, with the columns that :mod:`eval.corpora.manifest` describes.

Another task's corpus is another such module in ``CORPORA``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from star_upstream.errors import StarError, nearest

from . import librispeech, manifest, speech_commands, voxceleb1

CORPORA = (speech_commands, voxceleb1, librispeech)
BY_TASK = {task: corpus for corpus in CORPORA for task in corpus.COUNTS}


def load(task: str, root: str | Path) -> pd.DataFrame:
    """The utterances of ``task``: columns id, path, start, samples, split and the task's own (see :mod:`eval.corpora.manifest`).

    ``root`` holds ``manifests/<task>.tsv``, or the corpus in its published layout (``LibriSpeech/``, ``VoxCeleb1/``,
    ``speech_commands_v0.01/`` ...). Where both are there the manifest is read, and a line on stderr says so.

    Raises :class:`StarError` when neither is there, and for a table that cannot be used (see :func:`manifest.check`).
    """
    if task not in BY_TASK:
        raise StarError(f"unknown task {task!r}{nearest(task, BY_TASK)} (tasks with a corpus: {', '.join(sorted(BY_TASK))})")
    corpus, root = BY_TASK[task], Path(root).expanduser().absolute()
    table = root / "manifests" / f"{task}.tsv"
    folder = next((root / name for name in corpus.FOLDERS if (root / name).is_dir()), None)
    if table.is_file():
        if folder is not None:
            print(f"{task}: reads {table}, not {folder} (rename the manifest to read the corpus itself)", file=sys.stderr)
        return manifest.read(table, task)
    if folder is None:
        raise StarError(_missing(task, corpus, root))
    return manifest.check(corpus.read(folder, task), task, str(folder))


def _missing(task: str, corpus, root: Path) -> str:
    if not root.is_dir():
        return f"{root}: no such folder; give the one that holds the corpora, or use `--data mini`"
    if root.name in corpus.FOLDERS:
        return f"{root}: this is the corpus itself; give the folder that holds it, {root.parent}"
    return (
        f"{root}: no data for {task}: neither manifests/{task}.tsv nor {' nor '.join(corpus.FOLDERS)} is there; "
        f"put {corpus.NAME} there under that name (search for that title; licence: {corpus.LICENCE}), or use `--data mini`"
    )


def trials(root: str | Path) -> pd.DataFrame:
    """Speaker verification's pairs: columns target (int, 0 or 1), enroll and test (ids of ``load("asv", root)``, split test)."""
    raise StarError("the ASV trials are not read yet")


def segments(root: str | Path) -> pd.DataFrame:
    """Who speaks when: columns id (of ``load("sd", root)``), start, end (seconds, float) and speaker."""
    raise StarError("the SD segments are not read yet")


def truth(root: str | Path) -> pd.DataFrame:
    """Which query is in which document: columns query, doc (ids of ``load("qbe", root)``) and relevant (int, 0 or 1)."""
    raise StarError("the QbE truth is not read yet")
