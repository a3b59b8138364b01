"""Distillation losses: one file each, a table, and their weighted sum.

A recipe's ``loss`` section maps a name of the table to that loss's options; :func:`build` makes the sum. A loss is a
class

    class MyLoss(nn.Module):
        options = MyConfig            # a dataclass: what a recipe may say below the loss's name
        needs_attention = False       # whether the encoders must return their attention maps

        def __init__(self, config: MyConfig, teacher: EncoderConfig, student: EncoderConfig): ...

        def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
            "The weighted loss (a scalar, fp32 or wider) and its unweighted terms by name."

        @staticmethod
        def trained_layers(config: MyConfig, student: EncoderConfig) -> TrainedLayers: ...

        @staticmethod                 # only where something has to be measured on audio before training
        def calibrate(config: MyConfig, teacher: Encoder, clips: Sequence[Clip], seed: int) -> dict[str, Any]:
            "The measured options, as they would be written in the recipe."

        @staticmethod                 # only where those options do not speak for themselves
        def explain(measured: Mapping[str, Any]) -> str: ...

and a row of :data:`TABLE`. A loss with ``masks = True`` (:mod:`.masked`, :mod:`.units`) is a :class:`~.common.Masker`,
and its forward takes a third argument, a :class:`~.common.Masking`, in training. One with a method ``fit(teacher,
clips, seed)`` sets its buffers on audio before the first update (:mod:`.units`). A loss of another package is added by
:func:`register`, or is found by its name where that package is installed and declares an entry point ``mine =
my_package:MyLoss`` of the group ``star_upstream.losses``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

from torch import Tensor, nn

from .. import strict
from ..data.clips import Clip
from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..errors import StarError, nearest
from .common import Masker, Masking, TrainedLayers
from .hint import HintLoss
from .masked import MaskedLoss
from .prediction import PredictionLoss
from .skill import SkillLoss
from .star import StarLoss
from .units import UnitsLoss

GROUP = "star_upstream.losses"

TABLE: dict[str, type[nn.Module]] = {
    "star": StarLoss,
    "prediction": PredictionLoss,
    "hint": HintLoss,
    "masked": MaskedLoss,
    "skill": SkillLoss,
    "units": UnitsLoss,
}


class LossSum(nn.Module):
    """The sum of the recipe's losses; each one's terms carry its name in front (``star/layer_wise``)."""

    def __init__(self, losses: Mapping[str, nn.Module]):
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    @property
    def needs_attention(self) -> bool:
        """Whether any of the losses reads attention maps."""
        return any(loss.needs_attention for loss in self.losses.values())

    @property
    def masker(self) -> Masker | None:
        """The loss that draws the frames which are masked in training, if there is one."""
        found = (cast(Masker, loss) for loss in self.losses.values() if getattr(loss, "masks", False))
        return next(found, None)

    def fit(self, teacher: Encoder, clips: Sequence[Clip], seed: int) -> None:
        """Set what the losses measure on audio and keep among their buffers."""
        for loss in self.losses.values():
            if callable(fit := getattr(loss, "fit", None)):
                fit(teacher, clips, seed)

    def forward(
        self, teacher: EncoderOutput, student: EncoderOutput, masking: Masking | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (a scalar) and every unweighted term. ``masking``: where the student's frames were masked by
        :attr:`masker`; ``teacher`` is the unmasked one."""
        values, terms = [], {}
        for name, loss in self.losses.items():
            value, parts = loss(teacher, student, masking) if getattr(loss, "masks", False) else loss(teacher, student)
            values.append(value)
            terms.update({f"{name}/{part}": term.detach() for part, term in parts.items()})
        return sum(values[1:], start=values[0]), terms


def register(name: str, loss: type[nn.Module]) -> None:
    """Add a loss under ``name``. Raises :class:`StarError` for a name that another loss has, and for a class that is no
    loss."""
    if TABLE.get(name, loss) is not loss:
        raise StarError(
            f"loss.{name}: is there already ({TABLE[name].__module__}.{TABLE[name].__qualname__}); choose another name"
        )
    missing = [part for part in ("options", "needs_attention", "trained_layers") if not hasattr(loss, part)]
    if missing:
        raise StarError(f"loss.{name}: {loss!r} has no {', '.join(missing)}; star_upstream.losses says what a loss has")
    TABLE[name] = loss


def find(name: str) -> Any:
    """The loss of that name, here or in an installed package. Raises :class:`StarError` for an unknown one."""
    if name not in TABLE:
        for entry in entry_points(group=GROUP, name=name):
            register(name, entry.load())
    if name not in TABLE:
        names = [*TABLE, *sorted(entry_points(group=GROUP).names - set(TABLE))]
        raise StarError(f"loss.{name}: unknown loss{nearest(name, names)} (known: {', '.join(names)})")
    return TABLE[name]


def build(sections: Mapping[str, Any], teacher: EncoderConfig, student: EncoderConfig) -> LossSum:
    """The losses named in a recipe's ``loss`` section. Raises :class:`StarError` for an unknown name or option."""
    if not sections:
        raise StarError(f"loss: name at least one of {', '.join(TABLE)}")
    return LossSum({name: find(name)(_config(name, options), teacher, student) for name, options in sections.items()})


def calibrate(
    sections: Mapping[str, Any], teacher: Encoder, clips: Sequence[Clip], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What has to be measured on audio before :func:`build`: the options of each loss that needs some, :func:`complete`
    adds them.

    Call it once, before training, and keep what it gives with the run: another machine may round otherwise.
    """
    measured = {}
    for name, options in sections.items():
        loss = find(name)
        if hasattr(loss, "calibrate") and (found := loss.calibrate(_config(name, options), teacher, clips, seed)):
            measured[name] = strict.plain(found)
    return measured


def explain(name: str, measured: Mapping[str, Any]) -> str:
    """What :func:`calibrate` found for one loss, in a line for people."""
    loss = find(name)
    if hasattr(loss, "explain"):
        return f"loss {name}: {loss.explain(measured)}"
    text = "; ".join(f"{key}: {json.dumps(value)}" for key, value in measured.items())
    return f"measured for the loss {name}: {text}"


def complete(sections: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The ``loss`` section with the options that :func:`calibrate` measured."""
    return {
        name: {**(options or {}), **measured[name]} if name in measured else options
        for name, options in sections.items()
    }


def trained_layers(sections: Mapping[str, Any], student: EncoderConfig) -> TrainedLayers:
    """The layers that the losses of a ``loss`` section train together. Raises :class:`StarError` as :func:`build`
    does."""
    each = [find(name).trained_layers(_config(name, options), student) for name, options in sections.items()]
    sides = (tuple(sorted({layer for layers in each for layer in layers[side]})) for side in (0, 1))
    return TrainedLayers(*sides)


def _config(name: str, options: Any) -> Any:
    return strict.build(find(name).options, options or {}, f"loss.{name}")
