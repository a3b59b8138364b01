"""Layer-to-layer distillation as DPHuBERT has it (Peng et al., Interspeech 2023, arXiv 2305.17651, section 2.2 and its
code).

For each pair (teacher layer i, student layer j), W a linear map from the student's width to the teacher's, at first the
identity:

    mean |T_i - (W S_j + b)|  -  mean cos(T_i, W S_j + b)

the first mean over valid frames and channels, the second over valid frames. Layer 0 is the projected CNN output before
the positional convolution, the student's after its dropout (their code, commit c18093f: components.py,
FeatureProjection). :class:`FrameDistance` is the part that :mod:`.skill` shares.

FitHuBERT (Lee et al., Interspeech 2022, arXiv 2207.00555; its code, glory20h/FitHuBERT at 36d999c, train.py) is the
same over every layer with the student's own heads for maps, the mean squared error, and a tenth of the weight for all
layers but the last: ``teacher_layers: all``, ``maps: heads``, ``mse: 1`` alone, ``weights: [0.1, 1]``.

Shapes: B utterances, T frames, D width, V valid frames of the batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderConfig, EncoderOutput
from ..encoder.numerics import wide
from ..errors import StarError
from .common import (
    TrainedLayers,
    Weights,
    check_heads,
    check_rates,
    check_weights,
    head_states,
    layer_state,
    spread,
    valid_frames,
)


@dataclass(frozen=True)
class DistanceConfig:
    """Weights of the terms, and what is done over several pairs. DPHuBERT's are the defaults."""

    l1: float = 1.0
    cosine: float = 1.0
    mse: float = 0.0
    """Of the squared error, mean over channels and frames."""
    weights: Weights | None = None
    """Of each pair, within every term; None: 1 each."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the pairs: their mean (DPHuBERT's code), or their sum (its equation)."""

    def __post_init__(self) -> None:
        check_weights(self, "l1", "cosine", "mse")


@dataclass(frozen=True)
class HintConfig(DistanceConfig):
    """Which layers, and through which maps. Layers are counted from 1; 0 is what ``zeroth`` says."""

    teacher_layers: tuple[int, ...] | Literal["all"] = (0, 4, 8, 12)
    """``all``: every layer but 0."""
    student_layers: tuple[int, ...] | None = None
    """One for each teacher layer; a layer may be named again. None: the same numbers."""
    zeroth: Literal["features", "layer_input"] = "features"
    """Layer 0: the projected CNN output before the positional convolution (DPHuBERT), or the first layer's input."""
    maps: Literal["zero_apart", "shared", "separate", "heads", "none"] = "zero_apart"
    """``zero_apart``: one for teacher layer 0 and one shared by the rest (DPHuBERT); one for all pairs; one a pair; the
    student's own heads, which stay in its checkpoint (FitHuBERT); or none, for models of equal width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher_layers:
            raise StarError("teacher_layers: name at least one layer")
        if self.teacher_layers == "all":
            if self.student_layers is not None:
                raise StarError("student_layers: with teacher_layers: all they are the same; leave it out")
            return
        if self.maps == "heads" and 0 in (*self.teacher_layers, *(self.student_layers or ())):
            raise StarError("teacher_layers: layer 0 has no head; leave it out, or choose other maps")
        if self.student_layers is not None and len(self.student_layers) != len(self.teacher_layers):
            raise StarError(
                f"student_layers: expected {len(self.teacher_layers)} layers, one for each of teacher_layers, "
                f"got {list(self.student_layers)}"
            )
        pairs = self.pairs(0)
        if len(set(pairs)) != len(pairs):
            raise StarError(f"teacher_layers: a pair of layers is named twice in {[list(pair) for pair in pairs]}")

    def pairs(self, layers: int) -> tuple[tuple[int, int], ...]:
        """(teacher layer, student layer), for a student of ``layers`` layers."""
        if self.teacher_layers == "all":
            return tuple((layer, layer) for layer in range(1, layers + 1))
        return tuple(zip(self.teacher_layers, self.student_layers or self.teacher_layers))


class HintLoss(nn.Module):
    """The weighted loss over the pairs. Raises :class:`StarError` when a layer is outside its model, or strides
    differ."""

    options = HintConfig
    needs_attention = False

    def __init__(self, config: HintConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        heads = config.maps == "heads"
        check_rates("hint", teacher, student, inside=not heads)
        if config.teacher_layers == "all" and teacher.layers != student.layers:
            raise StarError(
                f"hint.teacher_layers: 'all' needs models of equal depth, the teacher has {teacher.layers} layers and "
                f"the student {student.layers}; name teacher_layers and student_layers"
            )
        self.pairs = config.pairs(student.layers)
        for side, model, layers in zip(("teacher", "student"), (teacher, student), zip(*self.pairs)):
            outside = [layer for layer in layers if not 0 <= layer <= model.layers]
            if outside:
                key = "teacher_layers" if side == "teacher" or config.student_layers is None else "student_layers"
                raise StarError(f"hint.{key}: the {side} has layers 0 to {model.layers}, got {outside[0]}")
        if heads:
            check_heads("hint.maps", teacher, student)
        width = teacher.width if heads else student.width
        numbers = [layer for layer, _ in self.pairs]
        self.distance = FrameDistance(config, config.maps, numbers, teacher.width, width, "hint")

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss (a scalar, fp32 or wider) and its terms before their weights, ``l1``, ``cosine`` (minus the
        similarity) and, where it is asked for, ``mse``."""
        zeroth = self.config.zeroth
        if self.config.maps == "heads":
            own = [head_states(student)[layer - 1] for _, layer in self.pairs]
        else:
            own = [layer_state(student, layer, zeroth) for _, layer in self.pairs]
        picked = valid_frames(teacher, student, own[0])
        targets = [picked(layer_state(teacher, layer, zeroth)) for layer, _ in self.pairs]
        found: tuple[Tensor, dict[str, Tensor]] = self.distance(targets, [picked(x_BTD) for x_BTD in own])
        return found

    @staticmethod
    def trained_layers(config: HintConfig, student: EncoderConfig) -> TrainedLayers:
        teacher_layers, student_layers = zip(*config.pairs(student.layers))
        return TrainedLayers(teacher_layers, student_layers)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "cosine": lambda a_VD, b_VD: -F.cosine_similarity(a_VD, b_VD, dim=-1).mean(),
    "mse": F.mse_loss,
}


class FrameDistance(nn.Module):
    """L1 minus cosine similarity, and squared error, between teacher frames and mapped student frames.

    ``maps``: as in :class:`HintConfig`; heads and none map nothing here, and need equal widths. ``layers``: the
    teacher's of each pair. A map starts as the identity; where widths differ, as its first rows or columns:
    channels that only the teacher has start at 0.
    """

    def __init__(
        self,
        config: DistanceConfig,
        maps: str,
        layers: Sequence[int],
        teacher_width: int,
        student_width: int,
        where: str,
    ):
        super().__init__()
        pairs = len(layers)
        self.config, self.weights = config, spread(config.weights, pairs, f"{where}.weights")
        numbers = {
            "zero_apart": [0 if layer == 0 else 1 for layer in layers],
            "shared": [0] * pairs,
            "separate": list(range(pairs)),
        }.get(maps)
        if numbers is None and teacher_width != student_width:
            raise StarError(
                f"{where}.maps: needed, since the teacher's width is {teacher_width} and the student's {student_width}"
            )
        self.numbers = None if numbers is None else [sorted(set(numbers)).index(n) for n in numbers]
        self.maps = nn.ModuleList(_identity(student_width, teacher_width) for _ in set(numbers or ()))

    def forward(self, targets: Sequence[Tensor], estimates: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """P tensors V x D of the teacher and P of the student -> the loss and its terms: means over frames, then over
        pairs."""
        names = ["l1", "cosine", *(["mse"] if self.config.mse else [])]
        terms = {name: wide(targets[0]).new_zeros(()) for name in names}
        for i, (target_VD, estimate_VD) in enumerate(zip(targets, estimates, strict=True)):
            if self.numbers is not None:
                estimate_VD = self.maps[self.numbers[i]](estimate_VD)
            target_VD, estimate_VD = wide(target_VD), wide(estimate_VD)
            for name in terms:
                # a term of weight 0 is still shown, but not kept for backward
                with torch.set_grad_enabled(torch.is_grad_enabled() and getattr(self.config, name) > 0):
                    terms[name] = terms[name] + self.weights[i] * DISTANCES[name](estimate_VD, target_VD)
        count = len(targets) if self.config.reduction == "mean" else 1
        terms = {name: term / count for name, term in terms.items()}
        return torch.stack([getattr(self.config, name) * term for name, term in terms.items()]).sum(), terms


def _identity(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
