"""What a task is to the driver: a literal that states it (:class:`Task`); its head, loss and metric on one corpus (:class:`Probe`).

Shapes: B utterances, L layers, T frames, D channels, V output classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Callable, Literal, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from star_upstream.errors import StarError


@dataclass(frozen=True)
class Schedule:
    """How heads are trained. ``superb`` is each task's published one."""

    steps: int
    """Optimizer updates."""
    batch: int
    accumulate: int
    """Batches of one update."""
    lr: float
    eval_every: int
    """Updates between two looks at the dev split; the best of them is kept."""
    head: dict[str, Any] = field(default_factory=dict)
    """Arguments of the s3prl problem's ``build_downstream``."""
    lr_grid: tuple[float, ...] = ()
    """Learning rates tried when the user names none; empty: ``lr`` alone."""
    optimizer: Literal["Adam", "AdamW"] = "Adam"
    scheduler: Literal["none", "linear"] = "none"
    """linear: up from 0 over ``warmup`` updates, then down to 0 at the last."""
    warmup: int = 0
    clip: float = 1.0
    """Largest gradient norm."""
    crops: int = 1
    """Fixed crops of a training utterance that is longer than the task's ``crop_seconds``."""


@dataclass(frozen=True)
class Task:
    """The facts of a SUPERB task. Never edited once its numbers are out: raise ``version``."""

    name: str
    title: str
    version: int
    corpus: str
    splits: str
    metric: str
    """A metric column of results/published.csv."""
    unit: str
    direction: Literal["max", "min"]
    features: Literal["means", "frames"]
    """What its head needs of an utterance (:mod:`eval.encode`)."""
    target: str
    """The table's column that is predicted."""
    probe: Callable[..., "Probe"]
    schedules: dict[str, Schedule]
    effects: tuple[tuple[str, ...], ...] = ()
    """sox effects on every waveform."""
    crop_seconds: float | None = None
    """Longest training utterance; s3prl crops longer ones at random, here they become fixed crops."""
    differences: tuple[str, ...] = ()
    """Where this differs from s3prl's recipe; kept in every record."""


class Probe:
    """A task's head, loss and metric on one corpus. ``rows`` are positions in ``table``."""

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        self.task, self.table, self.schedule, self.seed = task, table, schedule, seed
        self.targets = [str(t) for t in table[task.target]]
        self.split = {name: np.flatnonzero(table["split"] == name).tolist() for name in ("train", "dev", "test")}
        for name, rows in self.split.items():
            if not rows:
                raise StarError(f"{task.name}: the {name} split is empty")

    def head(self, width: int, stride: int) -> nn.Module:
        """s3prl's task module around its downstream model, for mixed features of ``width`` channels."""
        raise NotImplementedError

    def epoch(self, number: int) -> list[list[int]]:
        """The training batches (rows) of an epoch, the same for the same number and seed."""
        raise NotImplementedError

    def dev_rows(self) -> list[int]:
        """The rows that the head and its learning rate are chosen on; a row may come more than once."""
        return self.split["dev"]

    def loss(self, head: nn.Module, x_BTD: Tensor, lengths_B: Tensor, rows: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def predict(self, head: nn.Module, x_BTD: Tensor, lengths_B: Tensor, rows: Sequence[int]) -> list[str]:
        raise NotImplementedError

    def value(self, predictions: Sequence[str], rows: Sequence[int]) -> float:
        """The metric by s3prl's own function, in the task's unit."""
        raise NotImplementedError

    def counts(self, predictions: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Each row's share of the metric: n x 2 numbers whose summed ratio, times 100, is :meth:`value`."""
        raise NotImplementedError


class UtteranceClassification(Probe):
    """One label an utterance: s3prl's MeanPoolingLinear and cross entropy, scored by accuracy."""

    problem: str
    """Name of the s3prl problem."""

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.category import CategoryEncoder

        known = {self.targets[r] for r in self.split["train"]}
        for name in ("dev", "test"):
            for row in self.split[name]:
                if self.targets[row] not in known:
                    raise StarError(
                        f"{task.name}: {task.target} {self.targets[row]!r} is in {name} but not in train: no head can learn it"
                    )
        self.encoder = CategoryEncoder(self.targets)
        self.classes = [self.encoder.encode(t) for t in self.targets]

    def head(self, width: int, stride: int) -> nn.Module:
        import s3prl.problem

        problem = getattr(s3prl.problem, self.problem)()
        model = problem.build_downstream(self.schedule.head, width, len(self.encoder), stride)
        return problem.build_task({}, model, self.encoder)

    def epoch(self, number: int) -> list[list[int]]:
        from s3prl.dataio.sampler import FixedBatchSizeBatchSampler

        rows = self.split["train"]
        sampler = FixedBatchSizeBatchSampler(rows, self.schedule.batch, shuffle=True, seed=self.seed)
        sampler.set_epoch(number)
        return [[rows[i] for i in batch] for batch in sampler]

    def loss(self, head, x_BTD, lengths_B, rows):
        class_id = torch.tensor([self.classes[r] for r in rows], device=x_BTD.device)
        return head("train", x_BTD, lengths_B, class_id, [self.targets[r] for r in rows], [str(r) for r in rows])[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        return head.predict(x_BTD, lengths_B)[1]

    def value(self, predictions, rows):
        from s3prl.metric import accuracy

        return 100.0 * accuracy(list(predictions), [self.targets[r] for r in rows])

    def counts(self, predictions, rows):
        return np.array([[p == self.targets[r], 1] for p, r in zip(predictions, rows)], dtype=float)


def limited(table: pd.DataFrame, task: Task, limit: int) -> pd.DataFrame:
    """At most ``limit`` rows of each split, spread over the classes where the task has classes, so that train keeps every label
    that dev and test ask for."""
    train = table[table["split"] == "train"]
    if issubclass(task.probe, UtteranceClassification):
        turn = train.groupby(task.target, sort=False).cumcount()
        train = train.loc[turn.sort_values(kind="stable").index[:limit]]
        table = table[table[task.target].isin(set(train[task.target]))]
    parts = [train.iloc[:limit]]
    for name in ("dev", "test"):
        part = table[table["split"] == name]
        turn = part.groupby(task.target, sort=False).cumcount()
        parts.append(part.loc[turn.sort_values(kind="stable").index[:limit]])
    return pd.concat(parts).sort_index().reset_index(drop=True)


def schedule(task: Task, name: str, steps: int | None = None) -> Schedule:
    """The task's schedule of that name, with other ``steps`` where given. Raises :class:`StarError` for an unknown name."""
    if name not in task.schedules:
        raise StarError(f"{task.name}: unknown schedule {name!r} (there are: {', '.join(task.schedules)})")
    found = task.schedules[name]
    if steps is None:
        return found
    if steps < 1:
        raise StarError(f"--steps {steps}: must be at least 1")
    return dataclasses.replace(found, steps=steps, eval_every=min(found.eval_every, steps), warmup=min(found.warmup, steps // 10))
