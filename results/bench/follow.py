"""Our side of the comparison with s3prl's runner: its batches and its initial head, or our own, trained by ``eval``'s
``fit``.

Shapes: B utterances, T frames, D channels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from legacy import Run
from ours import Given
from pipelines import SPEAKERS, Pipeline
from torch import nn

from eval.features.upstreams import Upstream
from eval.heads import train
from eval.heads.probe import Probe
from star_upstream.errors import StarError


@dataclass
class Side:
    """What one side came to."""

    answers: list[Any]
    """For each of test's items, in the order of the table."""
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Following(Given):
    """A probe that begins with a given head and notes the loss of each batch."""

    def __init__(self, probe: Probe, batches: Sequence[Sequence[int]], initial: Sequence[torch.Tensor]):
        super().__init__(probe, probe.schedule, batches)
        self.initial = initial
        self.losses: list[float] = []

    def head(self, width: int, stride: int) -> nn.Module:
        head = self.probe.head(width, stride)
        with torch.no_grad():
            for mine, theirs in zip(head.parameters(), self.initial, strict=True):
                mine.copy_(theirs)
        return head

    def loss(self, head: nn.Module, x_BTD: torch.Tensor, lengths_B: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        loss = super().loss(head, x_BTD, lengths_B, rows)
        self.losses.append(float(loss.detach()))
        return loss


def as_published(probe: Any) -> None:
    """Speaker identification has 1251 classes in s3prl's recipe, whatever the corpus has."""
    if probe.task.name == "sid":
        from s3prl.dataio.encoder.category import CategoryEncoder

        probe.encoder = CategoryEncoder([f"id{10_001 + place}" for place in range(SPEAKERS)])
        probe.classes = [probe.encoder.encode(str(name)) for name in probe.table["speaker"]]


def fitted(probe: Probe, made: Any, upstream: Upstream) -> Side:
    """Train on the schedule of ``probe`` and answer for test."""
    begun = time.perf_counter()
    shape = (upstream.layers, upstream.width, upstream.stride)
    fits = train.fit([probe], made, *shape, (probe.schedule.lr,))
    (head,) = train.choose_rate(fits, train.selection(probe)[1])[2]
    told = probe.probe if isinstance(probe, Given) else probe
    answers = train.predict(head, told, made, told.split["test"])
    losses = probe.losses if isinstance(probe, Following) else []
    return Side(answers, losses, time.perf_counter() - begun)


def batches(probe: Any, run: Run) -> list[list[int]]:
    """The rows of the table in each training batch of s3prl's."""
    name = probe.task.name
    if name == "sd":  # its training batches have no names
        rows = {probe.labels_of(row).tobytes(): row for row in probe.split["train"]}
        return [[rows[np.asarray(label, dtype=np.float32).tobytes()] for label in batch[0]] for batch in run.batches]
    rows = _rows(probe, probe.split["train"])
    return [[rows[uid] for uid in batch[0 if name == "asv" else 1]] for batch in run.batches]


def answers(probe: Any, run: Run) -> list[Any]:
    """s3prl's answers for the rows of test."""
    rows = {row: uid for uid, row in _rows(probe, probe.split["test"]).items()}
    missing = [uid for uid in rows.values() if uid not in run.answers]
    if missing:
        raise StarError(f"{probe.task.name}: s3prl's evaluation has no answer for {missing[0]!r}")
    found = [run.answers[rows[row]] for row in probe.split["test"]]
    if probe.task.name == "sd":  # padding of the last frames is not answered for
        frames = probe.table["frames"].iloc[probe.split["test"]]
        found = [logits_TS[:count] for logits_TS, count in zip(found, frames, strict=True)]
    return found


def _rows(probe: Any, rows: Iterable[int]) -> dict[str, int]:
    """Rows by the names that s3prl's recipe gives them; of the stretches of a noise file the first."""
    table = probe.table
    found: dict[str, int] = {}
    for row in rows:
        path = Path(table["path"].iloc[row])
        name = f"{path.parent.name}-{path.name}" if probe.task.name == "ks" else str(table["id"].iloc[row])
        found.setdefault(name, row)
    return found


def initial(pipeline: Pipeline, probe: Any, run: Run, upstream: Upstream) -> list[torch.Tensor]:
    """s3prl's first head as ours has it: its parameters in our order of the classes. Raises :class:`StarError` where
    the two heads are not of one shape."""
    mine = list(probe.head(upstream.width, upstream.stride).parameters())
    shapes = [[tuple(p.shape) for p in side] for side in (mine, run.initial)]
    if shapes[0] != shapes[1]:
        raise StarError(f"{probe.task.name}: the two heads differ in shape: ours {shapes[0]}, s3prl's {shapes[1]}")
    order = pipeline.classes(probe)
    found = list(run.initial)
    for place, tensor in enumerate(found):
        last = place >= len(found) - (1 if probe.task.name == "asv" else 2)
        if last and order:
            found[place] = tensor[:, order] if probe.task.name == "asv" else tensor[order]
    return found
