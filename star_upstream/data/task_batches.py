"""Tasks to batches that alternate between them, the same ones after a restart.

Shapes: B utterances, N samples (16 kHz), T frames, S states, D width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import audio
from ..errors import StarError
from .tasks import TaskData

Key = tuple[int, int, int, int]
"""Task number, row, first sample counted from the utterance's start, and samples."""


class TaskBatch(NamedTuple):
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

    def __init__(
        self,
        tasks: Sequence[TaskData],
        shortest: int,
        waves: Mapping[str, Any] | None = None,
        states: Mapping[str, Any] | None = None,
    ):
        self.tasks, self.shortest, self.waves, self.states = list(tasks), shortest, waves or {}, states or {}

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


def collate(items: Sequence[tuple[str, Tensor, int, str]]) -> TaskBatch:
    """One :class:`TaskBatch`, padded with zeros."""
    names, values, targets, paths = zip(*items)
    x = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    lengths_B, targets_B = torch.tensor([len(v) for v in values]), torch.tensor(targets)
    if x.dim() > 2:  # states
        return TaskBatch(names[0], torch.empty(0), lengths_B, targets_B, list(paths), x)
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % ROUND))
    return TaskBatch(names[0], x, lengths_B, targets_B, list(paths))


class Alternating:
    """Training batches in iterations: ``group`` batches of the first task for each of ``world`` processes, then of the
    second, and so on.

    A task's batches are a function of (its rows, its name, seed, number of the batch) alone: other tasks beside it
    change nothing, and a run resumes where it was by ``epoch`` and ``start`` (batches of this rank already done). An
    epoch is a pass over the task that takes longest; smaller ones begin anew. Has the form that
    :class:`.batches.BatchStream` reads.
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


def whole(tasks: Sequence[TaskData], number: int, rows: Sequence[int]) -> list[list[Key]]:
    """Whole utterances in batches of at most 40 s, padding included, sorted by length."""
    samples = tasks[number].table["samples"].to_numpy()
    batches: list[list[Key]] = []
    for row in sorted(rows, key=lambda r: (samples[r], r)):
        length = int(samples[row])
        if not batches or length * (len(batches[-1]) + 1) > 40 * audio.RATE:
            batches.append([])
        batches[-1].append((number, int(row), 0, length))
    return batches


def padding(batch: TaskBatch, device: torch.device) -> Tensor | None:
    """The lengths, or None where there is no padding: then nothing is masked, and attention takes its fast path."""
    return None if bool((batch.lengths_B == batch.waveforms_BN.shape[1]).all()) else batch.lengths_B.to(device)
