"""A fine-tuning, as data. Shipped ones are ``star_upstream/recipes/finetune/*.yaml``; ``base`` and overrides as in :mod:`star_upstream.training.recipe`.

What the paper (Kerpicci et al., arXiv 2210.16611) does not say, and these defaults are therefore ours: batch size, iterations, margin
and scale, which state the heads read, pooling, learning-rate schedule, scoring, how a checkpoint is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Sequence

import yaml

from .. import strict
from ..errors import StarError
from ..training import recipe as recipes
from ..training.recipe import TrainingConfig

FOLDER = recipes.FOLDER / "finetune"


@dataclass(frozen=True)
class TaskConfig:
    """One head, its data and its loss."""

    data: Literal["ks", "sid", "ic", "er", "asv"]
    """Which table of :mod:`star_upstream.corpora`: ks keywords, asv speakers (tested on trials), sid speakers, ic intents (action,
    object and location as one class), er emotions (fold 1 is the test)."""
    loss: Literal["cross_entropy", "angular", "additive_angular"] = "cross_entropy"
    margin: float | None = None
    """Of angular softmax: the factor on the angle, a whole number (None: 2); of additive angular softmax: the angle added (None: 0.2)."""
    scale: float | None = None
    """What cosines are multiplied by. None: in angular softmax the vector's own length, as in SphereFace; in the additive one 30."""
    relax: float = 0.0
    """Weight of plain softmax's logit against angular softmax's, SphereFace's lambda; 0 is the loss as its equation is written."""
    input: Literal["last", "states", "predictions", "all"] = "last"
    """What the head reads: the last state; a learnt weighted sum of the states that the model exposes; of what its prediction heads
    say; or of both."""
    pooling: Literal["mean", "attentive"] = "mean"
    embedding: int = 0
    """Width of a linear layer between the pooled vector and the classifier; 0 has none."""
    batch: int = 32
    """Utterances in a batch of one process."""
    crop_seconds: float | None = None
    """Training utterances are cut to so much, at a random place each time; None takes them whole."""
    balanced: bool = False
    """Draw every class equally often instead of every utterance."""
    valid_share: float = 0.05
    """Where a corpus has no dev split, so much of each speaker's or class's training utterances is held out to choose by."""

    def __post_init__(self):
        if self.loss == "cross_entropy" and (self.margin is not None or self.scale is not None):
            raise StarError("margin, scale: cross_entropy has none; leave them out or choose another loss")
        if self.relax and self.loss != "angular":
            raise StarError("relax: only for loss angular; set it to 0")
        if self.loss == "angular" and self.margin not in (None, 1, 2, 3, 4):
            raise StarError(f"margin: angular softmax multiplies the angle by 1, 2, 3 or 4, got {self.margin}")
        if self.loss == "additive_angular" and not 0.0 <= (self.margin or 0.0) < 1.5:
            raise StarError(f"margin: additive angular softmax adds an angle from 0 to 1.5 (radians), got {self.margin}")
        if self.scale is not None and not self.scale > 0:
            raise StarError(f"scale: must be above 0, got {self.scale}")
        if min(self.relax, self.embedding) < 0 or self.batch < 1:
            raise StarError("relax and embedding must be 0 or more, batch 1 or more")
        if self.crop_seconds is not None and not self.crop_seconds >= 0.1:
            raise StarError(f"crop_seconds: must be 0.1 or more, got {self.crop_seconds}")
        if not 0.0 < self.valid_share < 1.0:
            raise StarError(f"valid_share: must be above 0 and below 1, got {self.valid_share}")


@dataclass(frozen=True)
class DataConfig:
    """Where the corpora are, and how they are read."""

    root: str = ""
    """The folder that holds the corpora in their published layouts, or ``manifests/``."""
    workers: int = 2
    """Processes that decode audio; none where it is kept decoded."""
    cache: str = ""
    """A folder, which runs may share, where decoded waveforms (16 bit) and a frozen encoder's states (fp16) are kept. Empty: the
    states are kept in the run's folder until it ends, waveforms are decoded at each visit."""
    keep_states: bool = True
    """A frozen encoder hears every utterance once, whole; crops are cut from its states. False: it hears each batch anew."""
    valid_limit: int = 300
    """At most so many utterances of a task in a validation."""
    test_limit: int | None = None
    """Evaluate on so many test items of a task alone, for a trial run."""

    def __post_init__(self):
        if self.workers < 0 or self.valid_limit < 1 or (self.test_limit is not None and self.test_limit < 2):
            raise StarError("workers must be 0 or more, valid_limit 1 or more, test_limit 2 or more")


@dataclass(frozen=True)
class FinetuneRecipe:
    """One fine-tuning."""

    encoder: str
    """Any source that :func:`star_upstream.formats.sources.load` takes."""
    tasks: dict[str, TaskConfig]
    """Name of a head -> its task. In each iteration the tasks take turns in this order."""
    training: TrainingConfig
    """``updates``, ``log_every``, ``validate_every`` and ``save_every`` count iterations: one batch of each task (with ``accumulate``:
    so many of each)."""
    frozen: bool = False
    """The encoder stays as it is, in eval mode; the heads alone learn."""
    alternate: Literal["step", "sum"] = "step"
    """An optimizer step after each task's batch, or one after all of an iteration, on the sum of the losses."""
    select: Literal["valid", "last"] = "valid"
    """The checkpoint of the lowest mean classification error on the tasks' validation parts, or the last one."""
    data: DataConfig = field(default_factory=DataConfig)
    name: str = ""
    """What tables call the model; empty: the encoder's source."""
    about: str = ""

    def __post_init__(self):
        if not self.tasks:
            raise StarError("tasks: name at least one, e.g. keyword: {data: ks}")
        for name in self.tasks:
            if not name.isidentifier():
                raise StarError(f"tasks.{name}: a name has letters, digits and underscores alone")
        if self.training.epochs is not None:
            raise StarError("training.epochs: tasks differ in size; set updates (iterations) or minutes")

    @property
    def stepping(self) -> TrainingConfig:
        """``training`` with its counts in optimizer steps."""
        config, count = self.training, len(self.tasks)
        if self.alternate == "sum":
            return replace(config, accumulate=config.accumulate * count)
        names = ("updates", "log_every", "validate_every", "save_every")
        return replace(config, **{n: getattr(config, n) * count for n in names if getattr(config, n) is not None})

    @property
    def setting(self) -> str:
        """As the paper's table says it."""
        if len(self.tasks) == 1:
            return "single task, frozen" if self.frozen else "single task"
        return "multi-task, frozen" if self.frozen else "multi-task, fine-tuned"


def names() -> list[str]:
    """The shipped recipes."""
    return recipes.names(FOLDER)


def load(source: str | Path, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """The recipe of a shipped name or a yaml file; ``data=FOLDER`` is short for ``data.root=FOLDER``, ``tasks=keyword`` or
    ``tasks=[keyword]`` keeps those of its tasks. Raises :class:`StarError`."""
    kept, rest = None, []
    for text in overrides:
        key, equals, value = text.partition("=")
        if key == "tasks" and equals:
            kept = [name.strip() for name in value.strip("[] ").split(",") if name.strip()]
        else:
            rest.append(f"data.root={value}" if key == "data" and equals else text)
    where, values = recipes.read(source, rest, FOLDER, FinetuneRecipe, "data")
    tasks = values.get("tasks")
    if isinstance(tasks, dict):
        values["tasks"] = {name: task for name, task in tasks.items() if task is not None}
        if kept is not None:
            unknown = [name for name in kept if name not in values["tasks"]]
            if unknown or not kept:
                raise StarError(f"tasks={','.join(kept)}: the recipe's tasks are {', '.join(values['tasks'])}")
            values["tasks"] = {name: values["tasks"][name] for name in values["tasks"] if name in kept}
    try:
        return strict.build(FinetuneRecipe, values)
    except StarError as error:
        raise StarError(f"{where}: {error}") from None


def difference(text: str, recipe: FinetuneRecipe) -> str:
    """The first value in which a run's recipe, as yaml, differs; where data is cached and who decodes it may change."""
    there = strict.build(FinetuneRecipe, yaml.safe_load(text))
    found = strict.difference(there, recipe, ("data.workers", "data.cache"))
    if not found and list(there.tasks) != list(recipe.tasks):
        return f"tasks take turns as {', '.join(there.tasks)} there and as {', '.join(recipe.tasks)} here"
    return found
