"""What is settled before a run's first update: its folder, its clips, its teacher, and where its models come from."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import strict
from ..data.clips import Clips, scan
from ..data.clips import absolute as absolute_source
from ..encoder import Encoder
from ..environment import versions
from ..errors import StarError
from ..files import home
from ..formats import checkpoint, sources
from ..say import say
from . import recipe as recipes
from .config import DataConfig
from .loop import fit
from .run_folder import RunFolder
from .training import Outcome, Training

R = TypeVar("R", bound=Any)
SCORED = re.compile(r"/((?:dev|test)-(?:clean|other))(?:/|$)")
"""Folders of LibriSpeech that recognition is chosen and scored by."""


class Start:
    """The start of a run of ``recipe``, which has ``data`` (:class:`DataConfig`) and a ``teacher``, perhaps none.

    Raises :class:`StarError` when ``out`` holds a run of another recipe or command (``maker``), and for bad data.
    """

    def __init__(self, recipe: Any, out: str | Path, maker: str):
        self.recipe = absolute(recipe)
        """With absolute paths, so that a run can be resumed from another folder."""
        self.folder = RunFolder(out, maker=maker)
        if not recipe.data.train:
            raise StarError("data.train: name a folder or manifest, e.g. data.train='/data/LibriSpeech/train-*'")
        self.found = self.folder.claim(self.recipe)
        if self.finished:
            say(f"{self.folder.path}: finished before; remove it to run it again")
            return
        teacher = self.recipe.teacher
        self.encoder: Encoder | None = sources.load(teacher) if teacher else None
        self.digest = checkpoint.digest(self.encoder) if self.encoder else None
        self.clips: dict[str, Clips]
        self.skipped: list[tuple[str, str]]
        self.passed: list[tuple[str, str]]
        self.clips, self.skipped, self.passed = (
            find_clips(self.recipe.data) if self.new else (self.folder.read_clips(), [], [])
        )
        hours = {part: round(clips.seconds / 3600, 3) for part, clips in self.clips.items()}
        self.counts = ", ".join(f"{len(self.clips[part])} {part} clips ({hours[part]:.2f} h)" for part in self.clips)
        shared = shareable(self.recipe)
        self.provenance = {
            "made_by": maker,
            "recipe": shared,
            **({"teacher": {"source": shared["teacher"], "sha256": self.digest}} if teacher else {}),
            "clips": {part: len(clips) for part, clips in self.clips.items()},
            "hours": hours,
            "versions": versions(),
        }

    @property
    def new(self) -> bool:
        return self.found == "new"

    @property
    def finished(self) -> bool:
        return self.found == "finished"

    def write(self) -> None:
        """Occupy the folder: from here on a start that fails leaves a run behind."""
        if self.new and self.folder.lead:
            self.folder.begin(recipes.dump(self.recipe), self.clips, self.skipped + self.passed)
        if self.skipped:
            where = self.folder.path / "skipped.tsv"
            say(f"{len(self.skipped)} files left out, see {where}; the first: {': '.join(self.skipped[0])}")

    def train(self, training: Training, folder: RunFolder, model: Encoder, part: str = "") -> Outcome:
        """Begin or go on with a training whose state is in ``folder``; how it ended. ``part``: what of the run it
        is."""
        state = folder.load_state()
        if state is not None and state["identity"] != training.identity():
            raise self.other(training, state["identity"])
        if state is None:
            training.prepare()
        if self.folder.lead:
            update = state["update"] if state else 0
            self.folder.record_environment({"resumed_at": update, **({"part": part} if part else {})})
            size = sum(p.numel() for p in model.parameters()) / 1e6
            at = f"resumed at update {update}" if state else "started"
            what = f"model of {size:.2f} M parameters; {part + ', ' if part else ''}{self.counts}"
            say(f"{self.folder.path}: {at}; {what}")
        return fit(training, folder, state)

    def other(self, training: Training, identity: dict[str, Any]) -> StarError:
        """That the run was started with something else than there is now."""
        if identity.get("teacher") != self.digest:
            return self.other_teacher()
        changed = next(name for name, value in training.identity().items() if value != identity.get(name))
        return StarError(
            f"{self.folder.path}: was started with other {changed} than there are now; choose another folder"
        )

    def other_teacher(self) -> StarError:
        return StarError(
            f"{self.folder.path}: was started with another teacher than {self.recipe.teacher} is now; "
            "choose another folder"
        )


def find_clips(data: DataConfig) -> tuple[dict[str, Clips], list[tuple[str, str]], list[tuple[str, str]]]:
    """Scan the data, and hold clips out where there is no validation data; the files left out, and those passed over,
    too."""
    limits: dict[str, Any] = {
        "min_seconds": data.min_seconds,
        "max_seconds": data.max_seconds,
        "max_bad_share": data.max_bad_share,
    }
    train = scan(data.train, **limits)
    skipped, passed, clips = train.skipped, train.passed, train.clips
    if data.valid:
        valid = scan(data.valid, **limits)
        skipped, passed, held_out = skipped + valid.skipped, passed + valid.passed, valid.clips
        theirs = {(clip.path, clip.start) for clip in held_out}
        again = np.fromiter(((clip.path, clip.start) in theirs for clip in clips), bool, len(clips))
        if again.any():
            say(f"data.train: {again.sum()} clips are data.valid's too, and are not trained on")
            clips = clips[~again]
        if not len(clips):
            raise StarError("data.train: holds nothing beside data.valid; name other audio")
    else:
        count = min(data.valid_limit, max(1, round(data.valid_share * len(clips))))
        if len(clips) <= count:
            fix = "add audio, or give data.valid"
            short = sum("shorter than" in reason for _, reason in skipped)
            others = f" ({len(skipped)} left out, {short} of them shorter than data.min_seconds)" if skipped else ""
            raise StarError(f"data.train: {len(clips)} usable clips{others}, too few to hold {count} out; {fix}")
        # by a digest of the name: the same clips wherever the folder lies, whatever else is in it
        digests = (hashlib.sha256(os.fsencode(f"{os.path.basename(c.path)} {c.samples}")).digest() for c in clips)
        held = np.zeros(len(clips), bool)
        held[[place for _, place in heapq.nsmallest(count, zip(digests, range(len(clips))))]] = True
        held_out, clips = clips[held], clips[~held]
    trained = (clips.folders[number] for number in np.unique(clips.folder))
    if scored := sorted({found[1] for folder in trained if (found := SCORED.search(folder))}):
        sets = ", ".join(scored)
        say(f"data.train: NOTE: trains on LibriSpeech's {sets}, of which SUPERB's scores are; name .../train-* instead")
    return {"train": clips, "valid": held_out}, skipped, passed


def absolute(recipe: R) -> R:
    """With absolute paths, so that a run can be resumed from another folder."""
    data, start = recipe.data, recipe.training.initialise_from_student
    paths = {part: tuple(map(absolute_source, getattr(data, part))) for part in ("train", "valid")}
    teacher, student = (
        str(home(source).resolve()) if source and home(source).exists() else source
        for source in (recipe.teacher, start.source)
    )
    training = dataclasses.replace(recipe.training, initialise_from_student=dataclasses.replace(start, source=student))
    return dataclasses.replace(recipe, data=dataclasses.replace(data, **paths), teacher=teacher, training=training)


def shareable(recipe: Any) -> dict[str, Any]:
    """The recipe without this machine's folders: what is published with the weights."""
    values = strict.plain(recipe)
    for part in ("train", "valid"):
        values["data"][part] = [Path(p).name for p in values["data"][part]]
    for place, key in ((values, "teacher"), (values["training"]["initialise_from_student"], "source")):
        if place[key] and Path(place[key]).is_absolute():
            place[key] = "/".join(Path(place[key]).parts[-2:])
    return values
