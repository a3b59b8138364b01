"""Corpora as tables: :func:`load` gives one row an utterance, from a manifest or from a corpus in its published folder layout.

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
