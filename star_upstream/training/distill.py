"""Distillation: a student learns what a loss asks of a frozen teacher's states.

Shapes: B utterances, N samples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import audio, losses
from ..data.batches import AudioDataset, Batch, BucketSampler, collate
from ..data.clips import Clip
from ..encoder import Encoder, EncoderOutput, Masked
from ..errors import StarError
from ..files import write_json
from ..formats import checkpoint
from ..say import say
from .config import Recipe
from .run_folder import RunFolder
from .start import Start, shareable
from .student import behind_frontend, make_student
from .training import ClipTraining, Outcome

if TYPE_CHECKING:
    from ..pruning.gates import GatedEncoder


def run(recipe: Recipe, out: str | Path) -> Path:
    """Distil, or go on with the unfinished run in ``out``; the folder of the checkpoint that is the run's model.

    A finished run is left as it is. Raises :class:`StarError` when ``out`` holds a run of another recipe, for bad data,
    and when the loss is not finite.
    """
    begun = Run(recipe, out)
    if not begun.finished:
        student = make_student(begun.complete, begun.teacher.encoder)
        training = Distillation(begun.complete, student, begun.teacher, begun.folder, begun.clips, begun.provenance)
        begun.write()
        begun.train(training, begun.folder, student)
        begun.finish()
    return begun.model


class Run(Start):
    """The start of a distillation.

    ``complete``: the recipe with everything in its loss that had to be measured on audio first.
    """

    def __init__(self, recipe: Recipe, out: str | Path):
        super().__init__(recipe, out, "star distill")
        self.model = self.folder.path / recipe.result
        if not self.finished:
            assert self.encoder is not None  # a distillation's recipe names a teacher
            loss = _calibrated(self.recipe, self.encoder, self.clips["train"], self.folder, self.new)
            self.complete = dataclasses.replace(self.recipe, loss=loss)
            self.provenance["recipe"] = shareable(self.complete)
            self.teacher = Teacher(self.encoder)

    def finish(self) -> None:
        """Write down that the run is whole."""
        parts = ("updates", "validation_loss", "hours", "pruning", "too_few_updates")
        self.folder.finish_with(self.model.name, parts)


class Teacher:
    """A frozen encoder that answers for each batch. No module: it is never trained, never saved."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder.requires_grad_(False).eval()

    def __call__(self, waveforms_BN: Tensor, lengths_B: Tensor | None, maps: bool) -> EncoderOutput:
        with torch.no_grad():
            return self.encoder(waveforms_BN, lengths_B, maps)

    def masked(self, heard: EncoderOutput, masked: Masked, padded: bool) -> EncoderOutput:
        """The answer to the batch of ``heard`` with some of its frames masked."""
        with torch.no_grad():
            return self.encoder.contextualize(heard.features_BTD, heard.lengths_B, padded=padded, masked=masked)


class Objective(nn.Module):
    """The student and what its states are compared by; the loss of a batch."""

    loss: losses.LossSum

    def __init__(self, student: nn.Module, loss: losses.LossSum, teacher: Teacher, padded: bool):
        super().__init__()
        self.student, self.loss, self.teacher, self.padded = student, loss, teacher, padded

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # without lengths nothing is masked, and attention takes its fast path
        lengths_B = batch.lengths_B if self.padded and len(batch.paths) > 1 else None
        maps = self.loss.needs_attention
        target = self.teacher(batch.waveforms_BN, lengths_B, maps)
        masker = self.loss.masker if self.training else None
        if masker is None:
            return self.loss(target, self.student(batch.waveforms_BN, lengths_B, maps))
        mask_BT = masker.draw(target.lengths_B, target.features_BTD.shape[1], batch.indices)
        masked = masker.teacher_masked(self.teacher.encoder, target, mask_BT)
        other = None if masked is None else self.teacher.masked(target, masked, padded=lengths_B is not None)
        student = self.student(batch.waveforms_BN, lengths_B, maps, Masked(mask_BT, masker.vector))
        return self.loss(target, student, losses.Masking(mask_BT, other))


class Distillation(ClipTraining):
    """The training of an :class:`Objective` on clips."""

    objective: type[Objective] = Objective
    model: Objective
    student: Any
    """An :class:`Encoder`, or one with gates."""

    def __init__(
        self,
        recipe: Recipe,
        student: Encoder | GatedEncoder,
        teacher: Teacher,
        folder: RunFolder,
        clips: Mapping[str, Sequence[Clip]],
        provenance: dict[str, Any],
    ):
        self.recipe, self.config, self.clips = recipe, recipe.training, clips
        self.folder, self.provenance = folder, provenance
        self.teacher, self.student, self.workers = teacher, student, recipe.data.workers
        loss = losses.build(recipe.loss, teacher.encoder.config, student.config)
        self.model = self.objective(student, loss, teacher, padded=recipe.data.crop == "none")
        self.min_samples = max(teacher.encoder.config.receptive_field, student.config.receptive_field)
        if recipe.data.min_seconds * audio.RATE < self.min_samples:
            seconds = recipe.data.min_seconds
            raise StarError(f"data.min_seconds: {seconds} is too short for one frame ({self.min_samples} samples)")
        crop = recipe.data.crop_seconds
        self.longest = None if crop is None else round(crop * audio.RATE)
        self.total = self.length()
        self._bad: set[str] = set()

    def prepare(self) -> None:
        self.model.loss.fit(self.teacher.encoder, self.clips["train"], self.config.seed)

    def others(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.encoder}

    def sampler(self, rank: int, world: int, part: str = "train") -> BucketSampler:
        data = self.recipe.data
        options: dict[str, Any] = {
            "batches": data.batches,
            "counted": data.counted,
            "longest": self.longest,
            "shuffle": part == "train",
            "together": self.config.batches_per_update if part == "train" else None,
            "rank": rank,
            "world": world,
        }
        return BucketSampler(self.clips[part], data.batch_seconds, data.batch_items, self.config.seed, **options)

    def loader(self, part: str, batches: Any, workers: int) -> DataLoader:
        data = self.recipe.data
        seed = self.config.seed if part == "train" else None
        shortest_seed = seed if data.crop == "shortest-random" else None
        clips = AudioDataset(self.clips[part], self.min_samples, self.longest, seed)
        cut = partial(collate, crop=data.crop != "none", seed=shortest_seed)
        return self.reader(clips, batches, cut, workers if part == "train" else min(workers, 1))

    def taken(self, batch: Batch) -> None:
        """List files that could not be used. Raises :class:`StarError` where they are too many."""
        if not batch.bad:
            return
        self.folder.add_skipped(batch.bad)
        self._bad.update(path for path, _ in batch.bad)
        clips, limit = sum(map(len, self.clips.values())), self.recipe.data.max_bad_share
        if len(self._bad) > limit * clips:
            raise StarError(
                f"{len(self._bad)} of {clips} files cannot be used, above the limit of {limit:.1%} "
                "(data.max_bad_share); "
                f"the last: {batch.bad[-1][0]}: {batch.bad[-1][1]}; all are in {self.folder.path / 'skipped.tsv'}"
            )

    def before_update(self, share: float) -> None:
        start = self.config.initialise_from_student
        if start.source:
            for parameter in behind_frontend(self.student):
                parameter.requires_grad_(share >= start.frontend_first)

    def identity(self) -> dict[str, Any]:
        return {"teacher": self.provenance["teacher"]["sha256"]}

    def save(self, outcome: Outcome, row: dict[str, Any], best: bool) -> None:
        written = {"updates": outcome.updates, "validation_loss": row["valid/loss"], **outcome.marks}
        if outcome.too_few_updates and not best:
            checkpoint.amend(self.folder.path / "best", {"too_few_updates": outcome.too_few_updates})
        for name in ("last", "best") if best else ("last",):
            checkpoint.save(self.folder.path / name, self.student, {**self.provenance, **written})


def _calibrated(
    recipe: Recipe, teacher: Encoder, clips: Sequence[Clip], folder: RunFolder, new: bool
) -> dict[str, Any]:
    """The recipe's ``loss`` with what ``measured.json`` holds; a new run measures and writes it."""
    file = folder.path / "measured.json"
    if new:
        file.unlink(missing_ok=True)
        if found := losses.calibrate(recipe.loss, teacher, clips, recipe.training.seed):
            write_json(file, found)
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if folder.lead:
        for name, options in measured.items():
            say(f"{folder.path}: {losses.explain(name, options)}")
    return losses.complete(recipe.loss, measured)
