"""Distillation losses: one file each, a table, and their weighted sum.

A recipe's ``loss`` section maps a name of the table to that loss's options; ``build`` makes the sum. A new loss is a class with
``(config, teacher: EncoderConfig, student: EncoderConfig)``, ``needs_attention`` and ``forward(teacher, student)`` as below, and a row.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from torch import Tensor, nn

from .. import strict
from ..data import Clip
from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..errors import StarError, nearest
from . import skill
from .hint import HintConfig, HintLoss
from .prediction import PredictionConfig, PredictionLoss
from .star import StarConfig, StarLoss

TABLE: dict[str, tuple[type, type[nn.Module]]] = {
    "star": (StarConfig, StarLoss),
    "prediction": (PredictionConfig, PredictionLoss),
    "hint": (HintConfig, HintLoss),
    "skill": (skill.SkillConfig, skill.SkillLoss),
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

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (a scalar) and every unweighted term."""
        total, terms = 0.0, {}
        for name, loss in self.losses.items():
            value, parts = loss(teacher, student)
            total = total + value
            terms.update({f"{name}/{part}": term.detach() for part, term in parts.items()})
        return total, terms


def build(sections: Mapping[str, Any], teacher: EncoderConfig, student: EncoderConfig) -> LossSum:
    """The losses named in a recipe's ``loss`` section. Raises :class:`StarError` for an unknown name or option."""
    if not sections:
        raise StarError(f"loss: name at least one of {', '.join(TABLE)}")
    losses = {}
    for name, options in sections.items():
        if name not in TABLE:
            raise StarError(f"loss.{name}: unknown loss{nearest(name, TABLE)} (known: {', '.join(TABLE)})")
        config, loss = TABLE[name]
        losses[name] = loss(strict.build(config, options or {}, f"loss.{name}"), teacher, student)
    return LossSum(losses)


def resolve(sections: Mapping[str, Any], teacher: Encoder, clips: Sequence[Clip], seed: int = 0) -> dict[str, Any]:
    """The ``loss`` section with everything in it that has to be measured on audio first: skill's groups.

    Call it once, before training, and keep what it gives with the run: :func:`build` takes it. Other losses are left as they are.
    """
    resolved = dict(sections)
    if "skill" in resolved:
        options = dict(resolved["skill"] or {})
        groups = skill.resolve(strict.build(skill.SkillConfig, options, "loss.skill"), teacher, clips, seed)
        resolved["skill"] = {**options, "groups": strict.plain(groups)}
    return resolved
