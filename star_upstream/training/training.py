"""What a kind of training gives the loop (:mod:`.loop`): a step, parameter groups, batches, and what to save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..audio import RATE
from .config import TrainingConfig
from .optimizer import parameter_groups


@dataclass(frozen=True)
class Outcome:
    """What a training has come to."""

    updates: int
    precision: Any
    """What it computes in: the configuration may leave the choice to the machine."""
    too_few_updates: str = ""
    """At the end of a run whose budget of time bought too few updates to learn: that it did."""

    @property
    def marks(self) -> dict[str, Any]:
        """What of it a model's provenance has."""
        few = {"too_few_updates": self.too_few_updates} if self.too_few_updates else {}
        return {"precision": self.precision, **few}


class Training:
    """What one kind of training gives the loop."""

    config: TrainingConfig
    total: int | None
    """Updates of the whole run; None where the clock decides."""
    model: nn.Module
    """All that is trained. ``model(batch)``: the loss (a scalar) and its terms by name; a term ``loss`` is logged in
    the loss's place."""
    label = ""
    """In front of every line of progress."""
    workers = 0
    """Data workers that are asked for."""
    begins_at: tuple[int, int, int, int] = (0, 0, 1, 0)
    """Where a run without a state begins: epoch, batches of it that are done, by how many processes, and their
    ``audio_crc32``."""

    def prepare(self) -> None:
        """Measure what a run without a state has to know before its first update."""

    def others(self) -> dict[str, nn.Module]:
        """What takes part without being trained or saved (a teacher), by name."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; the first one's learning rate is the run's, ``scale`` makes another's a
        multiple of it."""
        return parameter_groups([self.model], self.config.weight_decay, self.config.decay)

    def sampler(self, rank: int, world: int) -> Any:
        """The training batches of this process: ``plan(epoch)``, ``epoch``, ``start``, ``rank``, ``world``."""
        raise NotImplementedError

    def validation_batches(self) -> Sequence[Any]:
        """All of them, of every process."""
        raise NotImplementedError

    def loader(self, part: str, batches: Any, workers: int) -> DataLoader:
        """Reads the ``batches`` of ``train`` or ``valid``, in so many processes at most."""
        raise NotImplementedError

    def seconds(self, batch: Any) -> float:
        """Audio in a batch, padding included."""
        raise NotImplementedError

    def audio(self, batch: Any) -> Tensor | None:
        """What of a batch the log's ``audio_crc32`` counts; None: there is no such column."""
        return None

    def weight(self, batch: Any) -> float:
        """What a batch counts in a validation's means."""
        return self.seconds(batch)

    def judge(self, row: dict[str, float]) -> tuple[dict[str, float], float]:
        """A validation's means (``valid/...``), completed, and the number whose lowest value makes ``best``."""
        return row, row["valid/loss"]

    def before_update(self, share: float) -> None:
        """Told how much of the run has passed, in the middle of the coming update."""

    def taken(self, batch: Any) -> None:
        """Told of each training and validation batch as it arrives."""

    def extras(self) -> dict[str, float]:
        """Further columns of the training log."""
        return {}

    def note(self, row: dict[str, Any]) -> str:
        """Further words of a line of progress."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Digests of what a resumed run must find as it was, kept with the state."""
        return {}

    def save(self, outcome: Outcome, row: dict[str, Any], best: bool) -> None:
        """Write the model as ``last``, and as ``best`` when the validation in ``row`` was the best so far."""


class ClipTraining(Training):
    """A training on clips of audio, whose batches have ``waveforms_BN``."""

    def length(self) -> int | None:
        """Updates of the whole run; None where the clock decides."""
        if self.config.epochs is None:
            return self.config.updates
        # batches of other epochs differ by a few in number; the run's length is counted in the first epoch's
        per_epoch = len(self.sampler(0, self.config.processes)) / self.config.batches_each
        return max(1, round(self.config.epochs * per_epoch))

    def sampler(self, rank: int, world: int, part: str = "train") -> Any:
        raise NotImplementedError

    def validation_batches(self) -> Sequence[Any]:
        return self.sampler(0, 1, "valid").plan(0)

    @staticmethod
    def reader(clips: Dataset, batches: Any, collate: Callable[[Any], Any], workers: int) -> DataLoader:
        return DataLoader(
            clips, batch_sampler=batches, collate_fn=collate, num_workers=workers,
            prefetch_factor=4 if workers else None, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def seconds(self, batch: Any) -> float:
        return batch.waveforms_BN.numel() / RATE

    def audio(self, batch: Any) -> Tensor:
        return batch.waveforms_BN
