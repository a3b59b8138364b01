"""Corpora to tasks with classes and splits, and batches that alternate between tasks, the same ones after a restart.

Shapes: B utterances, N samples (16 kHz), T frames, S states, D width.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import audio, corpora
from ..errors import StarError
from ..say import say
from .recipe import TaskConfig

CLASS = {"ks": ("label",), "sid": ("speaker",), "asv": ("speaker",), "ic": ("action", "object", "location"), "er": ("label",)}
"""The columns that make the class; several are joined."""


@dataclass
class TaskData:
    """One task's utterances. ``table``: id, path, start, samples, split (train, valid, test), target (class number; -1 where the test
    has speakers of its own)."""

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
    """The tasks' data below ``root``. Raises :class:`StarError` for a corpus that is not there, a class of dev or test that is not in
    train, and trials of utterances that are not there."""
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
    classes = table[list(CLASS[config.data])].astype(str).agg("|".join, axis=1)
    labels = sorted(classes[table["split"] == "train"].unique())
    number = {label: i for i, label in enumerate(labels)}
    table["target"] = classes.map(number).fillna(-1).astype("int64")
    if config.data != "asv" and (lost := table["target"] < 0).any():
        row = table[lost].iloc[0]
        split = {"valid": "dev"}.get(row["split"], row["split"])
        raise StarError(f"tasks.{name}: {classes[lost].iloc[0]!r} (utterance {row['id']!r}) is in {split} but not in train, so it cannot be learnt")
    if len(labels) < 2:
        raise StarError(f"tasks.{name}: one class alone ({labels[0] if labels else 'none'}) in train; there is nothing to learn")
    if not (table["split"] == "valid").any():
        _hold_out(name, table, config.valid_share)
    trials = None
    if config.data == "asv":
        trials, place = corpora.trials(root), {uid: row for row, uid in enumerate(table["id"])}
        for column in ("enroll", "test"):
            if (lost := ~trials[column].isin(place)).any():
                raise StarError(f"tasks.{name}: a trial names utterance {trials[column][lost].iloc[0]!r}, which is not among the test utterances")
        trials = pd.DataFrame({"target": trials["target"], "first": trials["enroll"].map(place), "second": trials["test"].map(place)})
    source = "manifests" if corpora.from_manifest(config.data, root) else corpora.BY_TASK[config.data].NAME
    columns = ["id", "path", "start", "samples", "split", "target"]
    return TaskData(name, config, table[columns].reset_index(drop=True), labels, source, trials)


def _hold_out(name: str, table: pd.DataFrame, share: float) -> None:
    """Mark a share of each class's training utterances as valid, always the same ones; a class of fewer than five keeps all."""
    rank = table["id"].map(lambda uid: hashlib.sha256(str(uid).encode()).hexdigest())
    held: list = []
    for _, group in rank[table["split"] == "train"].groupby(table["target"]):
        if len(group) >= 5:
            held += group.sort_values().index[: max(1, round(share * len(group)))].tolist()
    if not held:
        raise StarError(f"tasks.{name}: no class has five training utterances, so none can be held out to choose a checkpoint by")
    table.loc[held, "split"] = "valid"


Key = tuple[int, int, int, int]
"""Task number, row, first sample counted from the utterance's start, and samples."""


class Batch(NamedTuple):
    """Utterances of one task: waveforms, or states of a frozen encoder."""

    task: str
    waveforms_BN: Tensor
    """Empty where there are states."""
    lengths_B: Tensor
    """Samples; frames where there are states."""
    targets_B: Tensor
    paths: list[str]
    states_BTSD: Tensor | None = None


class Utterances(Dataset):
    """Waveforms (N) or kept states (T x S x D) of the tasks' utterances by :data:`Key`."""

    def __init__(self, tasks: Sequence[TaskData], shortest: int, waves: Mapping[str, Any] | None = None, states: Mapping[str, Any] | None = None):
        self.tasks, self.shortest, self.waves, self.states = list(tasks), shortest, waves or {}, states or {}

    def __len__(self) -> int:
        return sum(len(task.table) for task in self.tasks)

    def __getitem__(self, key: Key) -> tuple[str, Tensor, int, str]:
        number, row, first, samples = key
        task = self.tasks[number]
        line = task.table.iloc[row]
        if task.name in self.states:
            x = self.states[task.name].read(row, first, samples)
        elif task.name in self.waves:
            x = self.waves[task.name].read(row, first, samples)
        else:
            x = torch.from_numpy(audio.piece(line["path"], int(line["start"]) + first, samples))
        if task.name not in self.states and len(x) < self.shortest:
            if not len(x):
                raise StarError(f"{line['path']}: no audio where the table says that utterance {line['id']!r} is")
            x = torch.nn.functional.pad(x, (0, self.shortest - len(x)))
        return task.name, x, int(line["target"]), line["path"]


ROUND = 4_000
"""Waveforms are padded to a multiple of so many samples: the CPU's kernels keep something for each new shape."""


def collate(items: Sequence[tuple[str, Tensor, int, str]]) -> Batch:
    """One :class:`Batch`, padded with zeros."""
    names, values, targets, paths = zip(*items)
    x = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    if x.dim() == 2:
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % ROUND))
    lengths_B, targets_B = torch.tensor([len(v) for v in values]), torch.tensor(targets)
    if x.dim() == 2:
        return Batch(names[0], x, lengths_B, targets_B, list(paths))
    return Batch(names[0], torch.empty(0), lengths_B, targets_B, list(paths), x)


class Alternating:
    """Training batches in iterations: ``group`` batches of the first task for each of ``world`` processes, then of the second, and so on.

    A task's batches are a function of (its rows, its name, seed, number of the batch) alone: other tasks beside it change nothing, and
    a run resumes where it was by ``epoch`` and ``start`` (batches of this rank already done). An epoch is a pass over the task that
    takes longest; smaller ones begin anew. Has the form that :class:`star_upstream.data.BatchStream` reads.
    """

    def __init__(self, tasks: Sequence[TaskData], seed: int, group: int = 1, rank: int = 0, world: int = 1):
        self.tasks, self.seed, self.group, self.rank, self.world = list(tasks), seed, group, rank, world
        self.epoch = self.start = 0
        self._rows = [task.rows("train") for task in self.tasks]
        self._passes: dict[tuple[int, int], list[list[Key]]] = {}
        self.iterations = max(1, max(self._batches(i) for i in range(len(self.tasks))) // (world * group))

    def _batches(self, number: int) -> int:
        """Batches in a pass over a task; what is left over waits for the next one."""
        return max(1, len(self._rows[number]) // self.tasks[number].config.batch)

    def plan(self, epoch: int) -> list[list[Key]]:
        """All batches of an epoch, of every rank, in order."""
        share, plan = self.world * self.group, []
        for iteration in range(epoch * self.iterations, (epoch + 1) * self.iterations):
            for number in range(len(self.tasks)):
                for place in range(iteration * share, (iteration + 1) * share):
                    pass_, index = divmod(place, self._batches(number))
                    plan.append(self._pass(number, pass_)[index])
        return plan

    def _pass(self, number: int, pass_: int) -> list[list[Key]]:
        if (number, pass_) not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k[0] != number or k[1] >= pass_ - 1}
            self._passes[number, pass_] = self._draw(number, pass_)
        return self._passes[number, pass_]

    def _draw(self, number: int, pass_: int) -> list[list[Key]]:
        task, rows = self.tasks[number], self._rows[number]
        config, random = task.config, np.random.default_rng((self.seed, zlib.crc32(task.name.encode()), pass_))
        size = min(config.batch, len(rows))
        count = size * self._batches(number)
        if config.balanced:
            targets = task.table["target"].to_numpy()[rows]
            chance = 1.0 / np.bincount(targets, minlength=len(task.labels))[targets]
            order = random.choice(rows, count, p=chance / chance.sum())
        else:
            order = random.permutation(rows)[:count]
        lengths = task.table["samples"].to_numpy()[order]
        longest = lengths.max() if config.crop_seconds is None else round(config.crop_seconds * audio.RATE)
        kept = np.minimum(lengths, longest)
        first = (random.random(count) * (lengths - kept + 1)).astype(np.int64)
        keys = [(number, int(r), int(f), int(n)) for r, f, n in zip(order, first, kept)]
        return [keys[i : i + size] for i in range(0, count, size)]

    def __len__(self) -> int:
        """Batches of this rank in the epoch."""
        return self.iterations * self.group * len(self.tasks)


def whole(tasks: Sequence[TaskData], number: int, rows: Sequence[int], seconds: float = 40.0) -> list[list[Key]]:
    """Whole utterances in batches of at most ``seconds``, padding included, sorted by length."""
    samples = tasks[number].table["samples"].to_numpy()
    batches: list[list[Key]] = []
    for row in sorted(rows, key=lambda r: (samples[r], r)):
        length = int(samples[row])
        if not batches or length * (len(batches[-1]) + 1) > seconds * audio.RATE:
            batches.append([])
        batches[-1].append((number, int(row), 0, length))
    return batches
