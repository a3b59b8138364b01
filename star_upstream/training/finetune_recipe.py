"""A fine-tuning, as data. Shipped ones are ``star_upstream/recipes/finetune/*.yaml``; :func:`.recipe.load` reads them
too.

What the paper (Kerpicci et al., arXiv 2210.16611) does not say, and these defaults are therefore ours: batch size,
iterations, margin and scale, which state the heads read, pooling, learning-rate schedule, scoring, how a checkpoint is
chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from .. import strict
from ..data.task_config import TaskConfig
from ..errors import StarError
from .config import FOLDER, TrainingConfig, changed


@dataclass(frozen=True)
class CorporaConfig:
    """Where the corpora are, and how they are read."""

    root: str = ""
    """The folder that holds the corpora in their published layouts, or ``manifests/``."""
    workers: int = 2
    """Processes that decode audio; none where it is kept decoded."""
    cache: str = ""
    """A folder, which runs may share, where decoded waveforms (16 bit) and a frozen encoder's states (fp16) are kept.
    Empty: the states are kept in the run's folder until it ends, waveforms are decoded at each visit."""
    keep_states: bool = True
    """A frozen encoder hears every utterance once, whole; crops are cut from its states. False: it hears each batch
    anew."""
    valid_limit: int = 300
    """At most so many utterances of a task in a validation."""
    test_limit: int | None = None
    """Evaluate on so many test items of a task alone, for a trial run."""

    def __post_init__(self):
        strict.within(self, "[0, inf)", "workers")
        strict.within(self, "[1, inf)", "valid_limit")
        strict.within(self, "[2, inf)", "test_limit")


@dataclass(frozen=True)
class FinetuneRecipe:
    """One fine-tuning."""

    shipped = FOLDER / "finetune"
    folder_key = ("data", "data.root")

    encoder: str
    """Any source that :func:`star_upstream.formats.sources.load` takes."""
    tasks: dict[str, TaskConfig]
    """Name of a head -> its task. In each iteration the tasks take turns in this order."""
    training: TrainingConfig
    """``updates``, ``log_every``, ``validate_every`` and ``save_every`` count iterations: one batch of each task (with
    ``accumulate``: so many of each)."""
    frozen: bool = False
    """The encoder stays as it is, in eval mode; the heads alone learn."""
    alternate: Literal["step", "sum"] = "step"
    """An optimizer step after each task's batch, or one after all of an iteration, on the sum of the losses."""
    select: Literal["valid", "last"] = "valid"
    """The checkpoint of the lowest mean classification error on the tasks' validation parts, or the last one."""
    data: CorporaConfig = field(default_factory=CorporaConfig)
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
            if config.batches_per_update is not None:
                return replace(config, batches_per_update=config.batches_per_update * count)
            return replace(config, accumulate=config.accumulate * count)
        names = ("updates", "log_every", "validate_every", "save_every")
        return replace(config, **{n: getattr(config, n) * count for n in names if getattr(config, n) is not None})

    @property
    def setting(self) -> str:
        """As the paper's table says it."""
        if len(self.tasks) == 1:
            return "single task, frozen" if self.frozen else "single task"
        return "multi-task, frozen" if self.frozen else "multi-task, fine-tuned"

    def difference(self, there: FinetuneRecipe) -> str:
        """The first value in which a run's recipe differs; where data is cached and who decodes it may change."""
        found = changed(there, self, ("data.workers", "data.cache"))
        if not found and list(there.tasks) != list(self.tasks):
            return f"tasks take turns as {', '.join(there.tasks)} there and as {', '.join(self.tasks)} here"
        return found
