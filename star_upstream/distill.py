"""What starts, resumes and ends a distillation: one stage, or with a ``pruning`` section two (distil and prune, cut, distil)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from . import checkpoint, losses, strict, teachers
from . import recipe as recipes
from .data import Clip, Corpus, scan
from .distillation import Distillation, initialise
from .encoder import Encoder
from .errors import StarError
from .files import write_json
from .pruning import stage
from .recipe import DataConfig, Recipe
from .run_folder import RunFolder, versions
from .training import fit

__all__ = ["Distillation", "initialise", "run"]


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
    digest = checkpoint.digest(teacher)
    clips, skipped, passed = _find_clips(recipe.data) if found == "new" else (folder.read_clips(), [], [])
    hours = {part: round(Corpus(part_clips).seconds / 3600, 3) for part, part_clips in clips.items()}
    # what is trained on: the recipe with everything in its loss that had to be measured on audio
    measured = dataclasses.replace(recipe, loss=_resolve(recipe, teacher, clips["train"], folder, found == "new"))
    provenance = {
        "made_by": "star distill",
        "recipe": _shareable(measured),
        "teacher": {"source": _shareable(recipe)["teacher"], "sha256": digest},
        "clips": {part: len(part_clips) for part, part_clips in clips.items()},
        "hours": hours,
        "versions": versions(),
    }

    def begin() -> None:
        if found == "new":
            folder.begin(recipes.dump(recipe), clips, skipped + passed)
        if skipped:
            where = folder.path / "skipped.tsv"
            print(f"{len(skipped)} files left out, see {where}; the first: {': '.join(skipped[0])}", file=sys.stderr)

    counts = ", ".join(f"{len(clips[part])} {part} clips ({hours[part]:.2f} h)" for part in clips)
    student, carried = None, None
    if recipe.pruning is not None:
        first = folder.path / stage.FOLDER
        state = None if stage.result(first) else _load_state(RunFolder(first), recipe, digest)
        if not stage.result(first):
            learner = stage.GatedDistillation(measured, teacher, RunFolder(first, folder.lead), clips, state, provenance)
            begin()
            learner.folder = folder.inner(stage.FOLDER)
            _announce(folder, state, learner.student.encoder, f"stage 1, {counts}", stage=1)
            stage.run(learner)
        student, carried, pruned = stage.load(folder)
        if pruned["teacher"]["sha256"] != digest:
            raise _other_teacher(folder, recipe)
        provenance["pruning"] = pruned["pruning"]
        measured = stage.second(measured)
    state = _load_state(folder, recipe, digest)
    learner = Distillation(measured, teacher, folder, clips, state, provenance, student)
    if carried is not None:
        learner.loss.load_state_dict(carried)
        learner.label = "stage 2  "
    else:
        begin()
    _announce(folder, state, learner.student, f"stage 2, {counts}" if recipe.pruning else counts, stage=2 if recipe.pruning else None)
    if state is None or not state["finished"]:
        fit(learner)
    if folder.lead:
        best = checkpoint.describe(folder.path / "best")["provenance"]
        extra = {"pruning": best["pruning"]} if recipe.pruning else {}
        folder.finish({"checkpoint": "best", **{k: best[k] for k in ("updates", "validation_loss", "hours")}, **extra})
    return folder.path / "best"


def _resolve(recipe: Recipe, teacher: Encoder, clips: list[Clip], folder: RunFolder, new: bool) -> dict[str, Any]:
    """The recipe's ``loss`` with the layer groups that ``groups.json`` holds; a new run finds them and writes it."""
    file = folder.path / "groups.json"
    if new:
        resolved = losses.resolve(recipe.loss, teacher, clips, recipe.training.seed)
        groups = {name: options["groups"] for name, options in resolved.items() if options != recipe.loss[name]}
        file.unlink(missing_ok=True)
        if groups:
            write_json(file, groups)
    groups = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if groups and folder.lead:
        for name, layers in groups.items():
            print(f"{folder.path}: {name} takes these layers together: {', '.join(map(str, layers))}", file=sys.stderr)
    return {name: {**(options or {}), "groups": groups[name]} if name in groups else options for name, options in recipe.loss.items()}


def _load_state(folder: RunFolder, recipe: Recipe, digest: str) -> dict[str, Any] | None:
    state = folder.load_state()
    if state is not None and state["teacher"] != digest:
        raise _other_teacher(folder, recipe)
    return state


def _other_teacher(folder: RunFolder, recipe: Recipe) -> StarError:
    return StarError(f"{folder.path}: was started with another teacher than {recipe.teacher} is now; choose another folder")


def _announce(folder: RunFolder, state: dict[str, Any] | None, student: Encoder, counts: str, stage: int | None) -> None:
    if not folder.lead:
        return
    folder.record_environment({"resumed_at": state["update"] if state else 0, **({"stage": stage} if stage else {})})
    size = sum(p.numel() for p in student.parameters()) / 1e6
    at = f"resumed at update {state['update']}" if state else "started"
    print(f"{folder.path}: {at}; student of {size:.2f} M parameters; {counts}", file=sys.stderr)


def _find_clips(data: DataConfig) -> tuple[dict[str, list[Clip]], list[tuple[str, str]], list[tuple[str, str]]]:
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
            raise StarError(f"data.train: {len(clips)} usable clips, too few to hold {count} out; add audio, or give data.valid")
        # by a digest of the name: the same clips wherever the folder lies, whatever else is in it
        ranked = sorted(clips, key=lambda c: hashlib.sha256(os.fsencode(f"{Path(c.path).name} {c.samples}")).hexdigest())
        chosen = set(ranked[:count])
        held_out, clips = [c for c in clips if c in chosen], [c for c in clips if c not in chosen]
    return {"train": clips, "valid": held_out}, skipped, passed


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
    return strict.difference(strict.build(Recipe, yaml.safe_load(text)), recipe, ("data.workers",))
