"""Our side: a task's probe on the same table, its features encoded once, and our training loop, with a clock on it.

Shapes: B utterances, L layers, T frames, D channels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from problem import silent
from torch import nn

from eval.encoding import features_of
from eval.features.upstreams import Upstream
from eval.heads import train
from eval.heads.probe import Probe, Schedule, Task
from star_upstream import compat
from star_upstream.audio import RATE
from star_upstream.data import corpora

UNKNOWN = 10**6
"""Frames and samples of an utterance that is not encoded: more than any filter asks for."""


def table_of(task: Task, root: Path, stride: int) -> pd.DataFrame:
    """The task's table; of er's folds, the first is test."""
    probe: Any = task.probe
    prepared = probe.prepare(task, corpora.load(task.name, root), root, stride, None)
    return probe.splits(task, prepared)[0]


class Ours:
    """The probe of one task with features of those rows that are asked for."""

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, upstream: Upstream, store: Any):
        compat.apply()  # the probes import s3prl
        self.task, self.schedule, self.upstream, self.store = task, schedule, upstream, store
        self.probe = task.probe(task, table, schedule, 0)

    def batches(self, count: int) -> list[list[int]]:
        """The first training batches of the task's own sampling."""
        found: list[list[int]] = []
        epoch = 0
        while len(found) < count:
            found += self.probe.epoch(epoch)
            epoch += 1
        return found[:count]

    def encode(self, rows: Sequence[int]) -> tuple[Picked, float, float]:
        """Features of ``rows``, seconds spent on them, and seconds of audio that the corpus has in these rows."""
        rows = list(dict.fromkeys(rows))
        part = self.probe.table.iloc[rows]
        self.upstream.expert.eval()  # s3prl switches between the two, and both sides share the module
        begun = time.perf_counter()
        made = features_of(self.task, part, self.schedule, self.upstream, self.store, exact=False)
        spent = time.perf_counter() - begun
        return Picked(made, rows, self.upstream), spent, float(part["samples"].sum()) / RATE

    def train(
        self, features: Picked, batches: Sequence[Sequence[int]], steps: int, accumulate: int
    ) -> tuple[list[float], nn.Module]:
        """Our loop over ``batches`` again and again: seconds a step (reading features, forward, backward, update), and
        the head."""
        schedule = replace(
            self.schedule, steps=steps, accumulate=accumulate, eval_every=steps, scheduler="none", warmup=0
        )
        given = Given(self.probe, schedule, batches)
        features.asked.clear()
        upstream = self.upstream
        rates = (self.schedule.lr,)
        with silent():
            (fitted,) = train.fit([given], features, upstream.layers, upstream.width, upstream.stride, rates)
        starts = [*features.asked[: steps * accumulate : accumulate], given.over]
        return [b - a for a, b in itertools.pairwise(starts)], fitted.candidates[0].head

    def evaluate(self, head: Any, features: Picked, rows: Sequence[int]) -> float:
        """Seconds that predictions for ``rows`` take, from features that are there."""
        begun = time.perf_counter()
        train.predict(head, self.probe, features, list(rows))
        return time.perf_counter() - begun


class Given(Probe):
    """A probe to whose training batches are given, and which looks at no dev split."""

    def __init__(self, probe: Probe, schedule: Schedule, batches: Sequence[Sequence[int]]):
        self.probe, self.schedule, self.batches = probe, schedule, batches
        self.task, self.table, self.seed, self.selection = probe.task, probe.table, probe.seed, probe.selection
        self.over = 0.0
        """When the last update was over."""

    def head(self, width: int, stride: int) -> nn.Module:
        return self.probe.head(width, stride)

    def epoch(self, number: int) -> list[list[int]]:
        return [list(batch) for batch in self.batches]

    def loss(self, head: nn.Module, x_BTD: torch.Tensor, lengths_B: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return self.probe.loss(head, x_BTD, lengths_B, rows)

    def dev_rows(self) -> list[int]:
        self.over = time.perf_counter()
        return []

    def dev_value(self, predictions: Sequence[Any], rows: Sequence[int]) -> float:
        return 0.0


class Picked:
    """Features of some of the table's rows, asked for by the table's numbers; notes when a batch was asked for."""

    def __init__(self, features: Any, rows: Sequence[int], upstream: Upstream):
        self.features, self.upstream = features, upstream
        self.asked: list[float] = []
        self.places = {row: place for place, row in enumerate(rows)}

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(time.perf_counter())
        return self.features.batch([self.places[row] for row in rows], generator)

    def length(self, row: int) -> int:
        return self.features.length(self.places[row]) if row in self.places else UNKNOWN

    def samples(self, row: int) -> int:
        return self.features.samples(self.places[row]) if row in self.places else UNKNOWN
