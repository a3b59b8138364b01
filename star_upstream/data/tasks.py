"""Corpora to tasks with classes, splits and trials."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import StarError
from ..say import say
from . import corpora
from .corpora.own import CLASSES
from .task_config import TaskConfig


@dataclass
class TaskData:
    """One task's utterances. ``table``: id, path, start, samples, split (train, valid, test), target (class number; -1
    where the test has speakers of its own)."""

    name: str
    config: TaskConfig
    table: pd.DataFrame
    labels: list[str]
    source: str
    """Manifests, or the corpus's name."""
    trials: pd.DataFrame | None = None
    """target (1: same speaker), first, second (rows of the table)."""

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    @property
    def digest(self) -> str:
        """sha256 over what is learnt from, wherever it lies."""
        columns = self.table[["id", "start", "samples", "split", "target"]]
        return hashlib.sha256(columns.to_csv(sep="\t", index=False).encode()).hexdigest()

    @property
    def place(self) -> str:
        """sha256 over where its files lie."""
        return hashlib.sha256("\n".join(self.table["path"]).encode()).hexdigest()


def load(tasks: Mapping[str, TaskConfig], root: str) -> dict[str, TaskData]:
    """The tasks' data below ``root``. Raises :class:`StarError` for a corpus that is not there, a class of dev or test
    that is not in train, and trials of utterances that are not there."""
    if not root:
        raise StarError("data.root: name the folder that holds the corpora or manifests/, e.g. data=/data/corpora")
    tables: dict[str, pd.DataFrame] = {}
    found = {}
    for name, config in tasks.items():
        if config.data not in tables:
            tables[config.data] = corpora.load(config.data, root)
            for remark in tables[config.data].attrs.get("remarks", ()):
                say(f"{config.data}: NOTE: {remark}")
        found[name] = _task(name, config, tables[config.data], root)
    return found


def _task(name: str, config: TaskConfig, table: pd.DataFrame, root: str) -> TaskData:
    table = table.copy()
    if config.data == "er":
        table["split"] = np.where(table["fold"] == min(table["fold"]), "test", "train")
    table["split"] = table["split"].replace("dev", "valid")
    classes = table[list(CLASSES[config.data])].astype(str).agg("|".join, axis=1)
    labels = sorted(classes[table["split"] == "train"].unique())
    number = {label: i for i, label in enumerate(labels)}
    table["target"] = classes.map(number).fillna(-1).astype("int64")
    if config.data != "asv" and (lost := table["target"] < 0).any():
        row = table[lost].iloc[0]
        split = {"valid": "dev"}.get(row["split"], row["split"])
        raise StarError(
            f"tasks.{name}: {classes[lost].iloc[0]!r} (utterance {row['id']!r}) is in {split} but not in train, "
            "so it cannot be learnt"
        )
    if len(labels) < 2:
        raise StarError(
            f"tasks.{name}: one class alone ({labels[0] if labels else 'none'}) in train; there is nothing to learn"
        )
    if not (table["split"] == "valid").any():
        _hold_out(name, table, config.valid_share)
    trials = None
    if config.data == "asv":
        trials, place = corpora.trials(root), {uid: row for row, uid in enumerate(table["id"])}
        for column in ("enroll", "test"):
            if (lost := ~trials[column].isin(place)).any():
                raise StarError(
                    f"tasks.{name}: a trial names utterance {trials[column][lost].iloc[0]!r}, "
                    "which is not among the test utterances"
                )
        trials = pd.DataFrame(
            {"target": trials["target"], "first": trials["enroll"].map(place), "second": trials["test"].map(place)}
        )
    source = "manifests" if corpora.from_manifest(config.data, root) else corpora.BY_TASK[config.data].NAME
    columns = ["id", "path", "start", "samples", "split", "target"]
    return TaskData(name, config, table[columns].reset_index(drop=True), labels, source, trials)


def _hold_out(name: str, table: pd.DataFrame, share: float) -> None:
    """Mark a share of each class's training utterances as valid, always the same ones; a class of fewer than five keeps
    all."""
    rank = table["id"].map(lambda uid: hashlib.sha256(str(uid).encode()).hexdigest())
    held: list = []
    for _, group in rank[table["split"] == "train"].groupby(table["target"]):
        if len(group) >= 5:
            held += group.sort_values().index[: max(1, round(share * len(group)))].tolist()
    if not held:
        raise StarError(
            f"tasks.{name}: no class has five training utterances, so none can be held out to choose a checkpoint by"
        )
    table.loc[held, "split"] = "valid"
