"""Distillation: a student learns what a loss asks of a frozen teacher's states.

Shapes: B utterances, N samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import audio, losses, strict
from ..data.batches import AudioDataset, Batch, BucketSampler, collate
from ..data.clips import Clip, Corpus, absolute, scan
from ..encoder import Encoder, EncoderOutput, Masked
from ..environment import versions
from ..errors import StarError
from ..files import write_json
from ..formats import checkpoint, sources
from ..say import say
from . import recipe as recipes
from .config import DataConfig, Recipe
from .loop import fit
from .run_folder import RunFolder
from .student import behind_frontend, make_student
from .training import Training


def run(recipe: Recipe, out: str | Path) -> Path:
    """Distil, or go on with the unfinished run in ``out``; the folder of the checkpoint that is the run's model.

    A finished run is left as it is. Raises :class:`StarError` when ``out`` holds a run of another recipe, for bad data, and when
    the loss is not finite.
    """
    begun = Run(recipe, out)
    if not begun.finished:
        student = make_student(begun.recipe, begun.teacher.encoder)
        training = Distillation(begun.recipe, student, begun.teacher, begun.folder, begun.clips, begun.provenance)
        begun.write_start()
        begun.train(training, begun.folder, student)
        begun.finish()
    return begun.model


class Run:
    """What is settled before a distillation's first update: its folder, its clips, its teacher, and where its models come from.

    ``recipe``: the one that is trained by, with everything in its loss that had to be measured on audio first.
    """

    def __init__(self, recipe: Recipe, out: str | Path):
        self.asked = _absolute(recipe)
        self.folder = RunFolder(out)
        self.model = self.folder.path / self.asked.result
        if not self.asked.data.train:
            raise StarError("data.train: name a folder or manifest, e.g. data.train=/data/LibriSpeech")
        self.found = self.folder.claim(lambda text: _difference(text, self.asked))
        if self.finished:
            say(f"{self.folder.path}: finished before; remove it to run it again")
            return
        encoder = sources.load(self.asked.teacher)
        self.digest = checkpoint.digest(encoder)
        new = self.found == "new"
        self.clips, self.skipped, self.passed = (
            find_clips(self.asked.data) if new else (self.folder.read_clips(), [], [])
        )
        hours = {part: round(Corpus(clips).seconds / 3600, 3) for part, clips in self.clips.items()}
        loss = _calibrated(self.asked, encoder, self.clips["train"], self.folder, new)
        self.recipe = dataclasses.replace(self.asked, loss=loss)
        self.teacher = Teacher(encoder)
        self.counts = ", ".join(f"{len(self.clips[part])} {part} clips ({hours[part]:.2f} h)" for part in self.clips)
        self.provenance = {
            "made_by": "star distill",
            "recipe": _shareable(self.recipe),
            "teacher": {"source": _shareable(self.asked)["teacher"], "sha256": self.digest},
            "clips": {part: len(clips) for part, clips in self.clips.items()},
            "hours": hours,
            "versions": versions(),
        }

    @property
    def finished(self) -> bool:
        return self.found == "finished"

    def write_start(self) -> None:
        """Occupy the folder: from here on a start that fails leaves a run behind."""
        if self.found == "new" and self.folder.lead:
            self.folder.begin(recipes.dump(self.asked), self.clips, self.skipped + self.passed)
        if self.skipped:
            where = self.folder.path / "skipped.tsv"
            say(f"{len(self.skipped)} files left out, see {where}; the first: {': '.join(self.skipped[0])}")

    def train(self, training: Training, folder: RunFolder, student: Encoder, stage: int | None = None) -> int:
        """Begin or go on with a training whose state is in ``folder``; its updates."""
        state = folder.load_state()
        if state is not None and state["identity"] != training.identity():
            raise self.other_teacher()
        if self.folder.lead:
            update = state["update"] if state else 0
            self.folder.record_environment({"resumed_at": update, **({"stage": stage} if stage else {})})
            size = sum(p.numel() for p in student.parameters()) / 1e6
            counts = f"stage {stage}, {self.counts}" if stage else self.counts
            at = f"resumed at update {update}" if state else "started"
            say(f"{self.folder.path}: {at}; student of {size:.2f} M parameters; {counts}")
        return fit(training, folder, state)

    def other_teacher(self) -> StarError:
        return StarError(
            f"{self.folder.path}: was started with another teacher than {self.asked.teacher} is now; "
            "choose another folder"
        )

    def finish(self) -> None:
        """Write down that the run is whole."""
        if self.folder.lead:
            written = checkpoint.describe(self.model)["provenance"]
            parts = ("updates", "validation_loss", "hours", "pruning", "too_few_updates")
            self.folder.finish(
                {"checkpoint": self.model.name, **{key: written[key] for key in parts if key in written}}
            )


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
        other = self.teacher.masked(target, masked, padded=lengths_B is not None)
        student = self.student(batch.waveforms_BN, lengths_B, maps, Masked(mask_BT, masker.vector))
        return self.loss(target, student, losses.Masking(mask_BT, other))


class Distillation(Training):
    """The training of an :class:`Objective` on clips."""

    objective: type[Objective] = Objective

    def __init__(
        self,
        recipe: Recipe,
        student: nn.Module,
        teacher: Teacher,
        folder: RunFolder,
        clips: dict[str, Sequence[Clip]],
        provenance: dict[str, Any],
    ):
        self.recipe, self.config, self.clips, self.folder, self.provenance = (
            recipe,
            recipe.training,
            clips,
            folder,
            provenance,
        )
        self.teacher, self.student, self.workers = teacher, student, recipe.data.workers
        loss = losses.build(recipe.loss, teacher.encoder.config, student.config)
        self.model = self.objective(student, loss, teacher, padded=recipe.data.crop == "none")
        self.min_samples = max(teacher.encoder.config.receptive_field, student.config.receptive_field)
        if recipe.data.min_seconds * audio.RATE < self.min_samples:
            seconds = recipe.data.min_seconds
            raise StarError(f"data.min_seconds: {seconds} is too short for one frame ({self.min_samples} samples)")
        crop = recipe.data.crop_seconds
        self.longest = None if crop is None else round(crop * audio.RATE)
        self.total = recipe.training.updates
        if recipe.training.epochs is not None:
            # batches of other epochs differ by a few in number; the run's length is counted in the first epoch's
            per_epoch = len(self.sampler(0, recipe.training.devices)) / recipe.training.accumulate
            self.total = max(1, round(recipe.training.epochs * per_epoch))
        self._bad: set[str] = set()

    def others(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.encoder}

    def sampler(self, rank: int, world: int, part: str = "train") -> BucketSampler:
        data = self.recipe.data
        options = {
            "batches": data.batches,
            "counted": data.counted,
            "longest": self.longest,
            "shuffle": part == "train",
        }
        where = {"rank": rank, "world": world}
        return BucketSampler(
            self.clips[part], data.batch_seconds, data.batch_items, self.config.seed, **options, **where
        )

    def validation_batches(self) -> list[list[int]]:
        return self.sampler(0, 1, "valid").plan(0)

    def loader(self, part: str, batches: Any) -> DataLoader:
        data = self.recipe.data
        workers = self.workers if part == "train" else min(self.workers, 1)
        seed = self.config.seed if part == "train" else None
        shortest_seed = seed if data.crop == "shortest-random" else None
        return DataLoader(
            AudioDataset(self.clips[part], self.min_samples, self.longest, seed),
            batch_sampler=batches,
            collate_fn=partial(collate, crop=data.crop != "none", seed=shortest_seed),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def seconds(self, batch: Batch) -> float:
        return batch.waveforms_BN.numel() / audio.RATE

    def audio(self, batch: Batch) -> Tensor:
        return batch.waveforms_BN

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

    def save(self, update: int, row: dict[str, Any], best: bool) -> None:
        provenance = {**self.provenance, "updates": update, "validation_loss": row["valid/loss"]}
        if self.too_few_updates:
            provenance["too_few_updates"] = self.too_few_updates
            if not best:
                checkpoint.amend(self.folder.path / "best", {"too_few_updates": self.too_few_updates})
        for name in ("last", "best") if best else ("last",):
            checkpoint.save(self.folder.path / name, self.student, provenance)


def find_clips(data: DataConfig) -> tuple[dict[str, list[Clip]], list[tuple[str, str]], list[tuple[str, str]]]:
    """Scan the data, and hold clips out where there is no validation data; the files left out, and those passed over, too."""
    limits = {"min_seconds": data.min_seconds, "max_seconds": data.max_seconds, "max_bad_share": data.max_bad_share}
    train = scan(data.train, **limits)
    skipped, passed, clips = train.skipped, train.passed, train.clips
    if data.valid:
        valid = scan(data.valid, **limits)
        skipped, passed, held_out = skipped + valid.skipped, passed + valid.passed, valid.clips
    else:
        count = min(data.valid_limit, max(1, round(data.valid_share * len(clips))))
        if len(clips) <= count:
            fix = "add audio, or give data.valid"
            raise StarError(f"data.train: {len(clips)} usable clips, too few to hold {count} out; {fix}")
        # by a digest of the name: the same clips wherever the folder lies, whatever else is in it
        ranked = sorted(
            clips, key=lambda c: hashlib.sha256(os.fsencode(f"{Path(c.path).name} {c.samples}")).hexdigest()
        )
        chosen = set(ranked[:count])
        held_out, clips = [c for c in clips if c in chosen], [c for c in clips if c not in chosen]
    return {"train": clips, "valid": held_out}, skipped, passed


def _calibrated(recipe: Recipe, teacher: Encoder, clips: list[Clip], folder: RunFolder, new: bool) -> dict[str, Any]:
    """The recipe's ``loss`` with what ``measured.json`` holds; a new run measures and writes it."""
    file = folder.path / "measured.json"
    if new:
        file.unlink(missing_ok=True)
        if found := losses.calibrate(recipe.loss, teacher, clips, recipe.training.seed):
            write_json(file, found)
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if folder.lead:
        for name, options in measured.items():
            text = "; ".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
            say(f"{folder.path}: measured for the loss {name}: {text}")
    return losses.complete(recipe.loss, measured)


def _absolute(recipe: Recipe) -> Recipe:
    """With absolute paths, so that a run can be resumed from another folder."""
    data = recipe.data
    paths = {part: tuple(map(absolute, getattr(data, part))) for part in ("train", "valid")}
    start = recipe.training.initialise_from_student
    teacher, student = (
        str(Path(source).expanduser().resolve()) if source and Path(source).expanduser().exists() else source
        for source in (recipe.teacher, start.source)
    )
    training = dataclasses.replace(recipe.training, initialise_from_student=dataclasses.replace(start, source=student))
    return dataclasses.replace(recipe, data=dataclasses.replace(data, **paths), teacher=teacher, training=training)


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without this machine's folders: what is published with the weights."""
    values = strict.plain(recipe)
    for part in ("train", "valid"):
        values["data"][part] = [Path(p).name for p in values["data"][part]]
    for place, key in ((values, "teacher"), (values["training"]["initialise_from_student"], "source")):
        if Path(place[key]).is_absolute():
            place[key] = "/".join(Path(place[key]).parts[-2:])
    return values


def _difference(text: str, recipe: Recipe) -> str:
    """The first value in which a run's recipe differs; the number of data workers and what is only told may change."""
    there = strict.build(Recipe, yaml.safe_load(text))
    there, recipe = (dataclasses.replace(one, about="", method="", choices={}) for one in (there, recipe))
    return strict.difference(there, recipe, ("data.workers",))
