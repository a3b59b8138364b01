"""What a task is to the driver: a literal that states it (:class:`Task`); its head, loss and metric on one corpus
(:class:`Probe`).

Shapes: B utterances, L layers, T frames, D channels, V output classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from star_upstream.errors import StarError
from star_upstream.metrics import Counts

from . import batches


@dataclass(frozen=True)
class Schedule:
    """How heads are trained. ``superb`` is each task's published one; :func:`protocols` states the others."""

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
    """linear: up from 0, the rate of the first update, over ``warmup`` updates, then down to 0, which would be that
    after the last."""
    warmup: int = 0
    clip: float = 1.0
    """Largest gradient norm."""
    crops: int = 1
    """Fixed crops of a training utterance that is longer than the task's ``crop_seconds``, where only its means are
    kept."""
    crop_seconds: float | None = None
    """In the place of the task's, for tasks that keep frames."""
    min_seconds: float = 0.0
    """ASV: training utterances that are not longer, after the effects, are left out."""


def protocols(
    superb: Schedule, mini: Schedule, warmup: int | None, sched_lr: float | None = None
) -> dict[str, Schedule]:
    """A task's schedules by name. ``superb-sched`` is what the STaR and ARMHuBERT authors ran: ``superb`` with s3prl's
    published ``warmup`` updates and a linear decay after them (None: none was published, and the two are the same), at
    ``sched_lr`` if given.
    """
    scheduled = (
        superb if warmup is None else replace(superb, scheduler="linear", warmup=warmup, lr=sched_lr or superb.lr)
    )
    return {"superb": superb, "superb-sched": scheduled, "mini": mini}


MINI_POOLED = Schedule(
    steps=600,
    batch=32,
    accumulate=1,
    lr=1e-2,
    lr_grid=(1e-3, 1e-2),
    eval_every=50,
    head={"hidden_size": 64},
    scheduler="linear",
    warmup=30,
)
"""The short schedule of heads over time means: a step costs a millisecond."""


@dataclass(frozen=True)
class Metric:
    """A number that a task reports."""

    name: str
    """``<task>_<what>``; of SUPERB's, a column of published.csv."""
    title: str
    """Heading of its column in the reports."""
    unit: str
    """``%``, or empty for a number that is none (1 is then 100 % in an overall score)."""
    direction: Literal["max", "min"]


@dataclass(frozen=True)
class Task:
    """The facts of a SUPERB task. Never edited once its numbers are out: raise ``version``."""

    name: str
    title: str
    version: int
    corpus: str
    splits: str
    metrics: tuple[Metric, ...]
    """What it reports; heads are chosen by the first, unless the probe has a ``selection``."""
    features: Literal["means", "frames"]
    """What its head needs of an utterance (:mod:`eval.features.encode`)."""
    target: str | tuple[str, ...]
    """The table's column that is predicted, or those that are predicted jointly."""
    probe: type[Probe]
    schedules: dict[str, Schedule]
    effects: tuple[tuple[str, ...], ...] = ()
    """sox effects on every waveform."""
    crop_seconds: float | None = None
    """Longest training utterance. s3prl crops longer ones at random: so it is done to frames; means are of fixed
    crops."""
    eval_batch: int = 1
    """Dev and test utterances of a batch in the published runs; it matters to ``--exact`` alone."""
    differences: tuple[str, ...] = ()
    """Where this differs from the published runs (s3prl/downstream); kept in every record."""
    differences_once: tuple[str, ...] = ()
    """Those that come of encoding an utterance once, and that ``--exact`` does away with."""

    @property
    def metric(self) -> str:
        """The name of its first metric."""
        return self.metrics[0].name

    @property
    def direction(self) -> Literal["max", "min"]:
        """The direction of its first metric."""
        return self.metrics[0].direction

    @property
    def columns(self) -> list[str]:
        """The target's columns."""
        return [self.target] if isinstance(self.target, str) else list(self.target)


class Probe:
    """A task's head, loss and metric on one corpus. ``rows`` are positions in ``table``."""

    selection: tuple[str, Literal["max", "min"]] | None = None
    """Name and direction of :meth:`dev_value`, where that is not the task's metric."""
    resampled = "utterances"
    """What :meth:`counts` counts, for the interval."""

    @classmethod
    def prepare(cls, task: Task, table: pd.DataFrame, root: Path, stride: int, limit: int | None) -> pd.DataFrame:
        """The corpus's table as the probe wants it: with what else the corpus says, for features of ``stride``, and
        with at most ``limit`` items of each split where there is a limit."""
        return table if limit is None else limited(table, task, limit)

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        self.task, self.table, self.schedule, self.seed = task, table, schedule, seed
        self.targets = [" ; ".join(map(str, row)) for row in zip(*(table[column] for column in task.columns))]
        self.split = {name: np.flatnonzero(table["split"] == name).tolist() for name in ("train", "dev", "test")}
        for name, rows in self.split.items():
            if not rows:
                raise StarError(f"{task.name}: the {name} split is empty")
        self.check_labels()

    def check_labels(self) -> None:
        """Raises :class:`StarError` for a label of dev or test that train does not have."""
        labels = self.labels(self.task, self.table)
        known = set().union(*(labels[row] for row in self.split["train"]))
        for name in ("dev", "test"):
            for row in self.split[name]:
                if unknown := sorted(labels[row] - known):
                    raise StarError(
                        f"{self.task.name}: {' '.join(unknown[0])} is in {name} but not in train: no head can learn it"
                        f" (utterance {self.table['id'].iloc[row]!r})"
                    )

    @classmethod
    def splits(cls, task: Task, table: pd.DataFrame) -> list[pd.DataFrame]:
        """``table`` with a ``split``, for every head that is trained and tested: one, or one a fold."""
        return [table]

    @classmethod
    def labels(cls, task: Task, table: pd.DataFrame) -> list[set[tuple[str, str]]]:
        """What of each row's target is one of a closed set, as (kind, repr): none of it may be new in dev or test."""
        return [set() for _ in range(len(table))]

    def head(self, width: int, stride: int) -> nn.Module:
        """s3prl's task module around its downstream model, for mixed features of ``width`` channels."""
        raise NotImplementedError

    def epoch(self, number: int) -> list[list[int]]:
        """The training batches (rows) of an epoch, the same for the same number and seed."""
        raise NotImplementedError

    def ready(self, features: Any) -> None:
        """Called when all features are there, before the first :meth:`epoch`."""

    def dev_rows(self) -> list[int]:
        """The rows that the head and its learning rate are chosen on; a row may come more than once."""
        return self.split["dev"]

    def choose(self, features: Any, layers: int, progress: Path, identity: str) -> Any:
        """What is chosen on dev where the schedule has no steps, and so nothing is trained: an
        :class:`eval.heads.train.Fitted`."""
        raise NotImplementedError

    def loss(self, head: nn.Module, x_BTD: Tensor, lengths_B: Tensor, rows: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def predict(self, head: nn.Module, x_BTD: Tensor, lengths_B: Tensor, rows: Sequence[int]) -> list[str]:
        raise NotImplementedError

    def value(self, predictions: Sequence[str], rows: Sequence[int]) -> float:
        """The metric by s3prl's own function, in the task's unit."""
        raise NotImplementedError

    def counts(self, predictions: Sequence[str], rows: Sequence[int]) -> Counts:
        """Each item's share of the metric, n x 2 numbers whose summed ratio, times 100, is :meth:`value`; or a function
        that gives the value of items drawn by a generator."""
        raise NotImplementedError

    def further(self, predictions: Sequence[str], rows: Sequence[int]) -> list[tuple[float, np.ndarray]]:
        """Value and counts of each of the task's metrics but the first."""
        return []

    def dev_value(self, predictions: Sequence[Any], rows: Sequence[int]) -> float:
        """What the head and its learning rate are chosen by."""
        return self.value(predictions, rows)

    def items(self, rows: Sequence[int]) -> int:
        """How many items the metric counts."""
        return len(rows)

    def details(self, predictions: Sequence[Any], rows: Sequence[int]) -> dict[str, Any]:
        """What else the record holds of this task."""
        return {}


class UtteranceClassification(Probe):
    """One label an utterance, or several jointly: s3prl's MeanPoolingLinear and cross entropy for each, scored by the
    share of utterances where all are right."""

    problem: str
    """Name of the s3prl problem."""

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.category import CategoryEncoder, CategoryEncoders

        columns = [[str(value) for value in table[column]] for column in task.columns]
        self.names = list(zip(*columns))
        if len(columns) == 1:
            self.encoder = CategoryEncoder(columns[0])
            self.classes = [self.encoder.encode(name) for name in columns[0]]
        else:
            self.encoder = CategoryEncoders(columns)
            self.classes = [self.encoder.encode(list(names)) for names in self.names]

    @classmethod
    def labels(cls, task, table):
        return [
            {(c, repr(str(v))) for c, v in zip(task.columns, row)} for row in zip(*(table[c] for c in task.columns))
        ]

    def head(self, width: int, stride: int) -> nn.Module:
        import s3prl.problem

        problem = getattr(s3prl.problem, self.problem)()
        model = problem.build_downstream(self.schedule.head, width, len(self.encoder), stride)
        return problem.build_task({}, model, self.encoder)

    def epoch(self, number: int) -> list[list[int]]:
        return batches.shuffled(self.split["train"], self.schedule.batch, self.seed, number)

    def loss(self, head, x_BTD, lengths_B, rows):
        class_id = torch.tensor([self.classes[r] for r in rows], device=x_BTD.device)
        names = (
            [self.targets[r] for r in rows]
            if class_id.dim() == 1
            else np.array([self.names[r] for r in rows], dtype=object)
        )
        return head("train", x_BTD, lengths_B, class_id, names, [str(r) for r in rows])[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        found = head.predict(x_BTD, lengths_B)[1]
        return found if isinstance(found, list) else [" ; ".join(names) for names in found]

    def value(self, predictions, rows):
        from s3prl.metric import accuracy

        return 100.0 * accuracy(list(predictions), [self.targets[r] for r in rows])

    def counts(self, predictions, rows):
        return np.array([[p == self.targets[r], 1] for p, r in zip(predictions, rows)], dtype=float)


def limited(table: pd.DataFrame, task: Task, limit: int) -> pd.DataFrame:
    """At most ``limit`` rows of each split (or fold), spread over the targets, without the dev and test rows whose
    labels the remaining train does not have."""
    turn = table.groupby(["fold" if "fold" in table else "split", *task.columns], sort=False).cumcount()
    if "fold" in table:  # by turn and label, so that the folds keep the same labels
        order = (
            pd.DataFrame({"turn": turn, "label": table[task.columns[0]]})
            .sort_values(["turn", "label"], kind="stable")
            .index
        )
        return table.loc[table.loc[order].groupby("fold").head(limit).index].sort_index().reset_index(drop=True)
    spread = table.loc[turn.sort_values(kind="stable").index]
    classes = issubclass(task.probe, UtteranceClassification)
    train = (spread if classes else table).query("split == 'train'").iloc[:limit]
    known = set().union(*task.probe.labels(task, train))
    teachable = spread[[labels <= known for labels in task.probe.labels(task, spread)]]
    parts = [train, *(teachable[teachable["split"] == name].iloc[:limit] for name in ("dev", "test"))]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def schedule(task: Task, name: str, steps: int | None = None) -> Schedule:
    """The task's schedule of that name, with other ``steps`` where given. Raises :class:`StarError` for an unknown
    name."""
    if name not in task.schedules:
        raise StarError(f"{task.name}: unknown schedule {name!r} (there are: {', '.join(task.schedules)})")
    found = task.schedules[name]
    if steps is None or not found.steps:  # a task without training
        return found
    if steps < 1:
        raise StarError(f"--steps {steps}: must be at least 1")
    return replace(found, steps=steps, eval_every=min(found.eval_every, steps), warmup=min(found.warmup, steps // 10))
