"""A pretraining, as data. Shipped ones are ``star_upstream/recipes/pretrain/*.yaml``; :func:`.recipe.load` reads them
too."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .. import strict
from ..augment import AugmentConfig
from ..encoder import EncoderConfig
from ..errors import StarError
from ..losses.units import MaskConfig
from .config import FOLDER, DataConfig, Initialisation, TrainingConfig, changed, untold


@dataclass(frozen=True)
class CropConfig(DataConfig):
    """As in a distillation; a clip longer than ``crop_seconds`` counts as so many pieces as it has, each a crop."""

    crop: Literal["shortest-random"] = "shortest-random"
    """Batches are crops as long as their shortest piece, from random places: no frame is padding."""


@dataclass(frozen=True)
class Round:
    """One round of masked prediction."""

    features: str
    """``mfcc``, or ``layerN``: outputs of layer N (0: the first one's input) of the model before, in round 1 of the
    ``teacher``."""
    units: int
    share: float = 1.0
    """How long the round is, as a multiple of what ``training`` says."""
    fresh: bool = False
    """Begin with new weights, as HuBERT does; otherwise with those of the model before, and a new classifier."""
    learning_rate: float | None = None
    """Instead of the training's."""

    def __post_init__(self):
        if self.features != "mfcc" and not re.fullmatch(r"layer\d+", self.features):
            raise StarError(f"features: expected mfcc or layerN, got {self.features!r}")
        if not 2 <= self.units <= 32_767:
            raise StarError(f"units: expected 2 to 32767, got {self.units}")
        strict.within(self, "(0, inf)", "share")

    @property
    def layer(self) -> int | None:
        return None if self.features == "mfcc" else int(self.features.removeprefix("layer"))


@dataclass(frozen=True)
class PretrainRecipe:
    """Rounds of masked prediction, each with units of the model before."""

    shipped = FOLDER / "pretrain"
    folder_key = ("data.train", "data.train")

    encoder: EncoderConfig | Literal["teacher"]
    """``teacher``: of the teacher's shape."""
    rounds: tuple[Round, ...]
    training: TrainingConfig
    """Of each round. ``initialise_from_teacher`` counts in a fresh first round."""
    teacher: str | None = None
    """The model before round 1, any source that :func:`star_upstream.formats.sources.load` takes: its layers may give
    units, and round 1 goes on from its weights unless it is ``fresh``."""
    data: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    choices: dict[str, str] = field(default_factory=dict)
    """Where the authors' way is not taken, or not known, and why, by subject: part of the run's record, read by
    nothing."""
    about: str = ""
    method: str = ""
    """What the published rows of the same method are found by, in reports (``method`` in eval/report/published.csv)."""

    def __post_init__(self):
        if not self.rounds:
            raise StarError("rounds: name at least one")
        if self.teacher is None and (self.encoder == "teacher" or self.rounds[0].layer is not None):
            raise StarError(
                f"teacher: name a model, e.g. teacher=HUBERT_BASE; round 1 takes units of {self.rounds[0].features}, "
                f"the encoder is {'the teacher' if self.encoder == 'teacher' else 'given'}"
            )
        if self.training.initialise_from_teacher != Initialisation() and not (self.teacher and self.rounds[0].fresh):
            raise StarError("training.initialise_from_teacher: only for a fresh first round with a teacher")

        if self.training.initialise_from_student.source:
            raise StarError("training.initialise_from_student: only for a distillation; name a teacher of this shape")

    def difference(self, there: PretrainRecipe) -> str:
        """As :meth:`.config.Recipe.difference`."""
        return changed(untold(there), untold(self), ("data.workers",))

    def encoder_config(self, teacher: EncoderConfig | None = None) -> EncoderConfig:
        """The encoder as it is trained. Raises :class:`StarError` when it is the teacher's and that is not given."""
        if self.encoder != "teacher":
            return self.encoder
        if teacher is None:
            raise StarError(f"the recipe's encoder has its teacher's shape ({self.teacher}); name a checkpoint")
        return teacher

    def round_training(self, number: int) -> TrainingConfig:
        """``training`` as round ``number``, from 1, has it."""
        round_, config = self.rounds[number - 1], self.training
        scaled: dict[str, Any] = {name: value * round_.share for name, value in strict.lengths(config).items()}
        if "updates" in scaled:
            scaled["updates"] = max(1, round(scaled["updates"]))
        rate = round_.learning_rate or config.learning_rate
        return replace(config, **scaled, learning_rate=rate, seed=config.seed + number)
