"""Distillation: a frozen teacher, a student, a loss between their states, and what starts, resumes and ends a run.

Shapes: B utterances, N samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any, Sequence

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from . import audio, checkpoint, losses, strict, teachers
from . import recipe as recipes
from .data import AudioDataset, Batch, BatchStream, BucketSampler, Clip, Corpus, collate, scan
from .encoder import Encoder
from .errors import StarError
from .recipe import DataConfig, Initialisation, Recipe
from .run_folder import RunFolder, versions
from .training import Learner, fit


class Distillation(Learner):
    """The student learns what the loss asks of the teacher's states.

    The teacher is no part of the module: it is never trained and never saved.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Encoder,
        folder: RunFolder,
        clips: dict[str, Sequence[Clip]],
        state: dict[str, Any] | None,
        provenance: dict[str, Any],
    ):
        per_epoch = len(_sampler(recipe, clips["train"], 0, recipe.training.devices)) / recipe.training.accumulate
        total = recipe.training.updates
        if recipe.training.epochs is not None:
            # batches of other epochs differ by a few in number; the run's length is counted in the first epoch's
            total = max(1, round(recipe.training.epochs * per_epoch))
        super().__init__(recipe.training, folder, total, state)
        self.recipe, self.clips, self.provenance = recipe, clips, provenance
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple, Lightning does not see it
        torch.manual_seed(recipe.training.seed)
        self.student = Encoder(recipe.student)
        initialise(self.student, teacher, recipe.training.initialise_from_teacher)
        self.loss = losses.build(recipe.loss, teacher.config, recipe.student)
        self.min_samples = max(teacher.config.receptive_field, recipe.student.receptive_field)
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
        seed = self.config.seed if part == "train" and data.crop == "shortest-random" else None
        return DataLoader(
            AudioDataset(self.clips[part], self.min_samples),
            batch_sampler=batches,
            collate_fn=partial(collate, crop=data.crop != "none", seed=seed),
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


def run(recipe: Recipe, out: str | Path) -> Path:
    """Distil, or go on with the unfinished run in ``out``; the folder of the best checkpoint (lowest validation loss).

    A finished run is left as it is. Raises :class:`StarError` when ``out`` holds a run of another recipe, for bad data, and when
    the loss is not finite.
    """
    recipe = _absolute(recipe)
    folder = RunFolder(out, lead=rank_zero_only.rank == 0)
    if not recipe.data.train:
        raise StarError("data.train: name a folder or manifest, e.g. data.train=/data/LibriSpeech")
    found = folder.claim(lambda text: _difference(text, recipe))
    if found == "finished":
        print(f"{folder.path}: finished before; remove it to run it again", file=sys.stderr)
        return folder.path / "best"
    teacher = teachers.load(recipe.teacher)
    state = folder.load_state()
    digest = checkpoint.digest(teacher)
    if state is not None and state["teacher"] != digest:
        raise StarError(f"{folder.path}: was started with another teacher than {recipe.teacher} is now; choose another folder")
    clips, skipped = _find_clips(recipe.data) if found == "new" else (folder.read_clips(), [])
    hours = {part: round(Corpus(part_clips).seconds / 3600, 3) for part, part_clips in clips.items()}
    provenance = {
        "made_by": "star distill",
        "recipe": _shareable(recipe),
        "teacher": {"source": _shareable(recipe)["teacher"], "sha256": digest},
        "clips": {part: len(part_clips) for part, part_clips in clips.items()},
        "hours": hours,
        "versions": versions(),
    }
    learner = Distillation(recipe, teacher, folder, clips, state, provenance)
    if found == "new":
        folder.begin(recipes.dump(recipe), clips, skipped)
    if skipped:
        where = folder.path / "skipped.tsv"
        print(f"{len(skipped)} files left out, see {where}; the first: {': '.join(skipped[0])}", file=sys.stderr)
    if folder.lead:
        folder.record_environment({"resumed_at": state["update"] if state else 0})
        size = sum(p.numel() for p in learner.student.parameters()) / 1e6
        at = f"resumed at update {state['update']}" if state else "started"
        counts = ", ".join(f"{len(clips[part])} {part} clips ({hours[part]:.2f} h)" for part in clips)
        print(f"{folder.path}: {at}; student of {size:.2f} M parameters; {counts}", file=sys.stderr)
    if state is None or not state["finished"]:
        # without attention maps every part of the student takes part in every loss
        fit(learner, unused_parameters=learner.loss.needs_attention)
    if folder.lead:
        best = checkpoint.describe(folder.path / "best")["provenance"]
        folder.finish({"checkpoint": "best", **{k: best[k] for k in ("updates", "validation_loss", "hours")}})
    return folder.path / "best"


def _sampler(recipe: Recipe, clips: Sequence[Clip], rank: int = 0, world: int = 1, shuffle: bool = True) -> BucketSampler:
    data = recipe.data
    return BucketSampler(clips, data.batch_seconds, data.batch_items, recipe.training.seed, shuffle, rank, world)


def _find_clips(data: DataConfig) -> tuple[dict[str, list[Clip]], list[tuple[str, str]]]:
    """Scan the data, and hold clips out where there is no validation data; the files left out, too."""
    limits = {"min_seconds": data.min_seconds, "max_seconds": data.max_seconds, "max_bad_share": data.max_bad_share}
    train = scan(data.train, **limits)
    skipped, clips = train.skipped, train.clips
    if data.valid:
        valid = scan(data.valid, **limits)
        skipped, held_out = skipped + valid.skipped, valid.clips
    else:
        count = min(data.valid_limit, max(1, round(data.valid_share * len(clips))))
        if len(clips) <= count:
            raise StarError(f"data.train: {len(clips)} usable clips, too few to hold {count} out; add audio, or give data.valid")
        # by a digest of the name: the same clips wherever the folder lies, whatever else is in it
        ranked = sorted(clips, key=lambda c: hashlib.sha256(f"{Path(c.path).name} {c.samples}".encode()).hexdigest())
        chosen = set(ranked[:count])
        held_out, clips = [c for c in clips if c in chosen], [c for c in clips if c not in chosen]
    return {"train": clips, "valid": held_out}, skipped


def _absolute(recipe: Recipe) -> Recipe:
    """With absolute paths, so that a run can be resumed from another folder."""
    data = recipe.data
    paths = {part: tuple(str(Path(p).resolve()) for p in getattr(data, part)) for part in ("train", "valid")}
    teacher = recipe.teacher
    if Path(teacher).exists():
        teacher = str(Path(teacher).resolve())
    return dataclasses.replace(recipe, data=dataclasses.replace(data, **paths), teacher=teacher)


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without this machine's folders: what is published with the weights."""
    values = strict.plain(recipe)
    for part in ("train", "valid"):
        values["data"][part] = [Path(p).name for p in values["data"][part]]
    if Path(values["teacher"]).is_absolute():
        values["teacher"] = "/".join(Path(values["teacher"]).parts[-2:])
    return values


def _difference(text: str, recipe: Recipe) -> str:
    """The first value in which a run's recipe differs; the number of data workers may change."""
    there, here = _flat(strict.plain(strict.build(Recipe, yaml.safe_load(text)))), _flat(strict.plain(recipe))
    for key in {**there, **here}:
        if key != "data.workers" and there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
    return ""


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix[:-1]: values}
    return {name: value for key, child in values.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
