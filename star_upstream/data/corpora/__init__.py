"""Corpora as tables: :func:`load` gives one row an utterance, from a manifest or from a corpus in its published folder
layout.

Every table has the columns ``id``, ``path``, ``start``, ``samples`` and those of its task
(:mod:`star_upstream.data.corpora.manifest` lists them). Three tasks need more than one row an utterance, each from a
function of its own whose ids are those of the table:

- ASV: :func:`trials` gives ``target`` (1: same speaker, 0: not), ``enroll``, ``test``. The table has splits train and
  test; train and test have different speakers, and only the utterances of the trials are in test.
- SD: :func:`segments` gives ``id``, ``start``, ``end`` (seconds from the start of the recording), ``speaker``, a row
  each time that a speaker talks; those of one recording may overlap. A speaker's name is unique within the recording at
  least.
- QbE: :func:`truth` gives ``query``, ``doc``, ``relevant`` (1: the query's words are said in the document, 0: not), a
  row for every pair that is to be scored, and no other. The table has ``kind`` query or doc, and ``split`` dev or eval
  (QbE has no training), or ``both`` for a document that the queries of both sets are searched in. A pair belongs to the
  split of its query.

ER has no ``split``: ``fold`` (IEMOCAP: 1 to 5; own data: two or more, of any names) is the fold in which an utterance
is tested; dev is the caller's share of the others.

A table of own data has in ``attrs["remarks"]`` what its numbers suffer from (:mod:`star_upstream.data.corpora.own`), a
line each.

A corpus is one module with

- ``NAME``: what to search for; ``LICENCE``: its terms, in a phrase;
- ``FOLDERS``: the folder names, below the data folder, that it is looked for under, first choice first;
- ``COUNTS``: for each task that it serves, the rows of each split that the published corpus has (None: not known);
- ``read(folder, task) -> DataFrame``: the table, with the columns that :mod:`star_upstream.data.corpora.manifest`
  describes;
- for ASV, SD and QbE a function ``trials``, ``segments`` or ``truth`` of the folder.

Another task's corpus is another such module in ``CORPORA``. Of another package, it is added by :func:`register`, or is
found where that package is installed and declares an entry point ``mine = my_package.my_corpus`` of the group
``star_upstream.corpora``. For tasks that are not here it has ``TABLES``: of each, the
:class:`star_upstream.data.corpora.manifest.Table` of its columns.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import StarError, nearest
from ...files import home
from ...say import say
from . import (
    audio_snips,
    fluent_commands,
    iemocap,
    libri2mix,
    librispeech,
    manifest,
    own,
    quesst14,
    relations,
    speech_commands,
    voxceleb1,
)

CORPORA = (librispeech, speech_commands, quesst14, voxceleb1, libri2mix, fluent_commands, audio_snips, iemocap)
BY_TASK: dict[str, Any] = {}
"""The corpus of each task."""
GROUP = "star_upstream.corpora"
_MINI = "python -m eval.data.mini FOLDER makes small ones; star-eval run takes --data mini"


def register(corpus) -> None:
    """Add a corpus. Raises :class:`StarError` for a task that another one serves (which one is read must not depend on
    their order), for one without columns, and for what is no corpus."""
    missing = [name for name in ("NAME", "LICENCE", "FOLDERS", "COUNTS", "read") if not hasattr(corpus, name)]
    if missing:
        raise StarError(f"{corpus!r} has no {', '.join(missing)}; star_upstream.corpora says what a corpus has")
    tables = getattr(corpus, "TABLES", {})
    for task in corpus.COUNTS:
        if BY_TASK.get(task, corpus) is not corpus:
            raise StarError(
                f"{task}: two corpora serve it, {BY_TASK[task].NAME} and {corpus.NAME}; one of them has to go"
            )
        if task not in tables and task not in manifest.TABLES:
            raise StarError(f"{corpus.NAME}: {task} is no task of this package, so its columns must be in TABLES")
    manifest.TABLES.update({task: table for task, table in tables.items() if task not in manifest.TABLES})
    BY_TASK.update(dict.fromkeys(corpus.COUNTS, corpus))


for corpus in CORPORA:
    register(corpus)


@functools.cache
def _find_installed() -> None:
    """The corpora of installed packages, once."""
    for entry in entry_points(group=GROUP):
        try:
            corpus = entry.load()
        except Exception as error:
            raise StarError(f"corpus {entry.name!r}: {entry.value} cannot be loaded ({error}); mend it") from error
        register(corpus)


def load(task: str, root: str | Path) -> pd.DataFrame:
    """The utterances of ``task``: columns id, path, start, samples, split and the task's own (see
    :mod:`star_upstream.data.corpora.manifest`).

    ``root`` holds ``manifests/<task>.tsv``, or the corpus in its published layout (``LibriSpeech/``, ``VoxCeleb1/``,
    ``speech_commands_v0.01/`` ...). Where both are there the manifest is read, and a line on stderr says so.

    Raises :class:`StarError` when neither is there, for a table that cannot be used (see :func:`manifest.check`), and
    for own data by which nothing is measured (see :func:`own.remarks`).
    """
    folder = _published(task, root)
    if folder is None:
        if (unread := find(BY_TASK[task], root)) is not None:
            names = " and ".join(f"manifests/{name}" for name in manifest.files(task))
            say(f"{task}: reads {names}, not {unread} (to read that, rename the manifest)")
        table = manifest.read(_manifests(root), task)
        table.attrs["remarks"] = own.remarks(table, task, str(_manifests(root)))
        return table
    return manifest.check(BY_TASK[task].read(folder, task), task, str(folder))


def trials(root: str | Path) -> pd.DataFrame:
    """Speaker verification's pairs: columns target (int, 0 or 1), enroll and test (ids of ``load("asv", root)``, split
    test)."""
    folder = _published("asv", root)
    return relations.read_trials(_manifests(root)) if folder is None else voxceleb1.trials(folder)


def segments(root: str | Path) -> pd.DataFrame:
    """Who speaks when: columns id (of ``load("sd", root)``), start, end (seconds, float) and speaker."""
    folder = _published("sd", root)
    return relations.read_segments(_manifests(root)) if folder is None else libri2mix.segments(folder)


def truth(root: str | Path) -> pd.DataFrame:
    """Which query is in which document: columns query, doc (ids of ``load("qbe", root)``) and relevant (int, 0 or
    1)."""
    folder = _published("qbe", root)
    return relations.read_truth(_manifests(root)) if folder is None else quesst14.truth(folder)


def slots(root: str | Path) -> tuple[str, ...] | None:
    """The names of slot filling's slots, where the corpus has a list of them."""
    folder = _published("sf", root)
    return None if folder is None else audio_snips.slots(folder)


def from_manifest(task: str, root: str | Path) -> bool:
    """Whether ``load(task, root)`` reads tsv files, and not a corpus in its published layout. Raises
    :class:`StarError` for a task that no corpus serves."""
    _find_installed()
    if task not in BY_TASK:
        raise StarError(
            f"unknown task {task!r}{nearest(task, BY_TASK)} (tasks with a corpus: {', '.join(sorted(BY_TASK))})"
        )
    return any((_manifests(root) / name).is_file() for name in manifest.files(task))


def sizes(table: pd.DataFrame) -> dict:
    """Rows of each split (of ER: of each fold), to be compared with the corpus's ``COUNTS``."""
    return table["split" if "split" in table else "fold"].value_counts().to_dict()


def find(corpus, root: str | Path) -> Path | None:
    """The folder of a corpus below ``root``, None where there is none."""
    return next((folder for name in corpus.FOLDERS if (folder := home(root).absolute() / name).is_dir()), None)


def _published(task: str, root: str | Path) -> Path | None:
    """The corpus folder that the task's data are read from; None where manifests are read. Raises :class:`StarError`
    where neither is there."""
    if from_manifest(task, root):
        return None
    if (folder := find(BY_TASK[task], root)) is None:
        raise StarError(_missing(task, BY_TASK[task], home(root).absolute()))
    return folder


def _manifests(root: str | Path) -> Path:
    return home(root).absolute() / "manifests"


def misplaced(root: str | Path) -> str:
    """Which folder is meant where ``root`` is a manifest, or the folder that they are in; empty where it is neither."""
    root = home(root).absolute()
    _find_installed()
    known = {name for task in BY_TASK for name in manifest.files(task)}
    if root.is_file():
        if root.parent.name == "manifests":
            return f"{root}: is a manifest; give the folder that holds manifests/, {root.parent.parent}"
        return f"{root}: is a file; give a folder that holds the corpora, or own data as manifests/TASK.tsv"
    if not root.is_dir() or (root / "manifests").is_dir() or not known & {entry.name for entry in root.iterdir()}:
        return ""
    if root.name == "manifests":
        return f"{root}: holds the manifests themselves; give the folder above, {root.parent}"
    return f"{root}: manifests are looked for in {root / 'manifests'}; move them there"


def _missing(task: str, corpus, root: Path) -> str:
    if wrong := misplaced(root):
        return wrong
    if not root.is_dir():
        return f"{root}: no such folder; give the one that holds the corpora ({_MINI})"
    if root.name in corpus.FOLDERS:
        return f"{root}: this is the corpus itself; give the folder that holds it, {root.parent}"
    tables = " and ".join(f"manifests/{name}" for name in manifest.files(task))
    return (
        f"{root}: no data for {task}: neither {tables} nor {' nor '.join(corpus.FOLDERS)} is there; "
        f"put {corpus.NAME} there under that name (search for that title; licence: {corpus.LICENCE}), "
        f"or take others: {_MINI}"
    )
