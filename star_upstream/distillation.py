"""Distillation as a training: a frozen teacher, a student, and a loss between their states.

Shapes: B utterances, N samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from . import audio, checkpoint, losses
from .data import AudioDataset, Batch, BatchStream, BucketSampler, Clip, collate
from .encoder import Encoder
from .errors import StarError
from .recipe import Initialisation, Recipe
from .run_folder import RunFolder
from .training import Learner


class Distillation(Learner):
    """The student learns what the loss asks of the teacher's states.

    The teacher is no part of the module: it is never trained and never saved. ``student``: None makes the one that the recipe asks for.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Encoder,
        folder: RunFolder,
        clips: dict[str, Sequence[Clip]],
        state: dict[str, Any] | None,
        provenance: dict[str, Any],
        student: Encoder | None = None,
    ):
        per_epoch = len(_sampler(recipe, clips["train"], 0, recipe.training.devices)) / recipe.training.accumulate
        total = recipe.training.updates
        if recipe.training.epochs is not None:
            # batches of other epochs differ by a few in number; the run's length is counted in the first epoch's
            total = max(1, round(recipe.training.epochs * per_epoch))
        super().__init__(recipe.training, folder, total, state)
        self.recipe, self.clips, self.provenance = recipe, clips, provenance
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple, Lightning does not see it
        self.student = make_student(recipe, teacher) if student is None else student
        self.loss = losses.build(recipe.loss, teacher.config, self.student.config)
        self.min_samples = max(teacher.config.receptive_field, self.student.config.receptive_field)
        if recipe.data.min_seconds * audio.RATE < self.min_samples:
            raise StarError(f"data.min_seconds: {recipe.data.min_seconds} is too short for one frame ({self.min_samples} samples)")
        self._bad: set[str] = set()

    @property
    def teacher(self) -> Encoder:
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        sampler = _sampler(self.recipe, self.clips["train"], self.trainer.global_rank, self.trainer.world_size)
        self.stream = BatchStream(sampler, self.batches_to_validation)

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        super().on_fit_start()

    def measure(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.bad:
            self._list_bad(batch.bad)
        # without lengths nothing is masked, and attention takes its fast path
        whole = self.recipe.data.crop != "none" or len(batch.paths) == 1
        lengths_B, maps = None if whole else batch.lengths_B, self.loss.needs_attention
        with torch.no_grad():
            target = self.teacher(batch.waveforms_BN, lengths_B, maps)
        return self.loss(target, self.student(batch.waveforms_BN, lengths_B, maps))

    def _list_bad(self, bad: list[tuple[str, str]]) -> None:
        self.folder.add_skipped(bad)
        self._bad.update(path for path, _ in bad)
        clips, limit = sum(map(len, self.clips.values())), self.recipe.data.max_bad_share
        if len(self._bad) > limit * clips:
            raise StarError(
                f"{len(self._bad)} of {clips} files cannot be used, above the limit of {limit:.1%} (data.max_bad_share); "
                f"the last: {bad[-1][0]}: {bad[-1][1]}; all are in {self.folder.path / 'skipped.tsv'}"
            )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.stream)

    def val_dataloader(self) -> DataLoader:
        batches = _sampler(self.recipe, self.clips["valid"], shuffle=False).plan(0)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        # with too few to share, every process takes all of them: the mean is the same
        return self._loader("valid", batches[rank::world] if len(batches) >= world else batches)

    def _loader(self, part: str, batches) -> DataLoader:
        data = self.recipe.data
        workers = data.workers if part == "train" else min(data.workers, 1)
        seed = self.config.seed if part == "train" else None
        shortest_seed = seed if data.crop == "shortest-random" else None
        return DataLoader(
            AudioDataset(self.clips[part], self.min_samples, _longest(self.recipe), seed),
            batch_sampler=batches,
            collate_fn=partial(collate, crop=data.crop != "none", seed=shortest_seed),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
        )

    def state(self) -> dict[str, Any]:
        return {**super().state(), "teacher": self.provenance["teacher"]["sha256"]}

    def save_models(self, best: bool) -> None:
        provenance = {**self.provenance, "updates": self.update, "validation_loss": self.last_row["valid/loss"]}
        for name in ("last", "best") if best else ("last",):
            checkpoint.save(self.folder.path / name, self.student, provenance)


def make_student(recipe: Recipe, teacher: Encoder) -> Encoder:
    """The student as the recipe starts it: the same for the same seed."""
    torch.manual_seed(recipe.training.seed)
    student = Encoder(recipe.student_config(teacher.config))
    if recipe.student == "teacher":
        student.load_state_dict(teacher.state_dict())
    else:
        initialise(student, teacher, recipe.training.initialise_from_teacher)
    return student


def initialise(student: Encoder, teacher: Encoder, config: Initialisation) -> None:
    """Copy from teacher to student what ``config`` names. Raises :class:`StarError` where their shapes differ."""
    pairs = []
    if config.frontend:
        pairs += [(name, getattr(student, name), getattr(teacher, name)) for name in ("frontend", "position", "norm")]
    if config.layers is not None:
        where, count = "training.initialise_from_teacher.layers", len(teacher.layers)
        if len(config.layers) != len(student.layers) or any(not 1 <= n <= count for n in config.layers):
            raise StarError(f"{where}: expected {len(student.layers)} numbers from 1 to {count}, got {list(config.layers)}")
        pairs += [(f"layers.{i}", own, teacher.layers[n - 1]) for i, (own, n) in enumerate(zip(student.layers, config.layers))]
        if student.relative_position is not None and teacher.relative_position is not None:
            pairs.append(("relative_position", student.relative_position, teacher.relative_position))
    for name, own, other in pairs:
        mine, theirs = own.state_dict(), other.state_dict()
        odd = [k for k in {**mine, **theirs} if k not in mine or k not in theirs or mine[k].shape != theirs[k].shape]
        if odd:
            raise StarError(f"training.initialise_from_teacher: the student's {name}.{odd[0]} has not the teacher's shape")
        own.load_state_dict(theirs)


def _sampler(recipe: Recipe, clips: Sequence[Clip], rank: int = 0, world: int = 1, shuffle: bool = True) -> BucketSampler:
    data = recipe.data
    options = {"batches": data.batches, "counted": data.counted, "longest": _longest(recipe)}
    return BucketSampler(clips, data.batch_seconds, data.batch_items, recipe.training.seed, shuffle, rank, world, **options)


def _longest(recipe: Recipe) -> int | None:
    return None if recipe.data.crop_seconds is None else round(recipe.data.crop_seconds * audio.RATE)
