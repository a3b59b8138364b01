"""Layer-to-layer distillation as DPHuBERT has it (Peng et al., Interspeech 2023, arXiv 2305.17651, section 2.2 and its
code).

For each pair (teacher layer i, student layer j), W a linear map from the student's width to the teacher's, at first the
identity:

    mean |T_i - (W S_j + b)|  -  mean cos(T_i, W S_j + b)

the first mean over valid frames and channels, the second over valid frames. Layer 0 is the projected CNN output before
the positional convolution, the student's after its dropout (their code, commit c18093f: components.py,
FeatureProjection). :class:`FrameDistance` is the part that :mod:`.skill` shares. Shapes: B utterances, T frames, D
width, V valid frames of the batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderConfig, EncoderOutput
from ..encoder.numerics import wide
from ..errors import StarError
from .common import TrainedLayers, check_rates, layer_state, valid_frames


@dataclass(frozen=True)
class DistanceConfig:
    """Weights of the two terms, and what is done over several pairs. DPHuBERT's are the defaults."""

    l1: float = 1.0
    cosine: float = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    """Over the pairs: their mean (DPHuBERT's code), or their sum (its equation)."""

    def __post_init__(self):
        if min(self.l1, self.cosine) < 0:
            raise StarError("l1 and cosine: weights must be 0 or more")
        if not any((self.l1, self.cosine)):
            raise StarError("l1 and cosine: at least one weight must be above 0")


@dataclass(frozen=True)
class HintConfig(DistanceConfig):
    """Which layers, and through which maps. Layers are counted from 1; 0 is what ``zeroth`` says."""

    teacher_layers: tuple[int, ...] = (0, 4, 8, 12)
    student_layers: tuple[int, ...] | None = None
    """One for each teacher layer; a layer may be named again. None: the same numbers."""
    zeroth: Literal["features", "layer_input"] = "features"
    """Layer 0: the projected CNN output before the positional convolution (DPHuBERT), or the first layer's input."""
    maps: Literal["zero_apart", "shared", "separate", "none"] = "zero_apart"
    """``zero_apart``: one for teacher layer 0 and one shared by the rest (DPHuBERT); one for all pairs; one a pair; or
    none, for models of equal width."""

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher_layers:
            raise StarError("teacher_layers: name at least one layer")
        if self.student_layers is not None and len(self.student_layers) != len(self.teacher_layers):
            raise StarError(
                f"student_layers: expected {len(self.teacher_layers)} layers, one for each of teacher_layers, "
                f"got {list(self.student_layers)}"
            )
        if len(set(self.pairs)) != len(self.pairs):
            raise StarError(f"teacher_layers: a pair of layers is named twice in {[list(pair) for pair in self.pairs]}")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(teacher layer, student layer)."""
        return tuple(zip(self.teacher_layers, self.student_layers or self.teacher_layers))


class HintLoss(nn.Module):
    """The weighted loss over the pairs. Raises :class:`StarError` when a layer is outside its model, or strides
    differ."""

    options = HintConfig
    needs_attention = False

    def __init__(self, config: HintConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        check_rates("hint", teacher, student)
        self.pairs = config.pairs
        for side, model, layers in zip(("teacher", "student"), (teacher, student), zip(*self.pairs)):
            outside = [layer for layer in layers if not 0 <= layer <= model.layers]
            if outside:
                key = "teacher_layers" if side == "teacher" or config.student_layers is None else "student_layers"
                raise StarError(f"hint.{key}: the {side} has layers 0 to {model.layers}, got {outside[0]}")
        if config.maps == "zero_apart":
            numbers = [0 if layer == 0 else 1 for layer, _ in self.pairs]
        else:
            numbers = {"shared": [0] * len(self.pairs), "separate": list(range(len(self.pairs))), "none": None}[
                config.maps
            ]
        self.distance = FrameDistance(config, numbers, teacher.width, student.width, "hint.maps")

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss (a scalar, fp32 or wider) and its unweighted terms, ``l1`` and ``cosine`` (minus the
        similarity)."""
        picked, zeroth = valid_frames(teacher, student), self.config.zeroth
        targets = [picked(layer_state(teacher, layer, zeroth)) for layer, _ in self.pairs]
        estimates = [picked(layer_state(student, layer, zeroth)) for _, layer in self.pairs]
        return self.distance(targets, estimates)

    @staticmethod
    def trained_layers(config: HintConfig, student: EncoderConfig) -> TrainedLayers:
        teacher_layers, student_layers = zip(*config.pairs)
        return TrainedLayers(teacher_layers, student_layers)


class FrameDistance(nn.Module):
    """L1 minus cosine similarity between teacher frames and mapped student frames.

    ``numbers``: for each pair, which map it takes (0, 1, ...); None maps nothing and needs equal widths. A map starts
    as the identity; where widths differ, as its first rows or columns: channels that only the teacher has start at 0.
    """

    def __init__(
        self, config: DistanceConfig, numbers: Sequence[int] | None, teacher_width: int, student_width: int, where: str
    ):
        super().__init__()
        self.config = config
        if numbers is None and teacher_width != student_width:
            raise StarError(
                f"{where}: needed, since the teacher's width is {teacher_width} and the student's {student_width}"
            )
        self.numbers = None if numbers is None else [sorted(set(numbers)).index(n) for n in numbers]
        self.maps = nn.ModuleList(_identity(student_width, teacher_width) for _ in set(numbers or ()))

    def forward(self, targets: Sequence[Tensor], estimates: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """P tensors V x D of the teacher and P of the student -> the loss and its terms: means over frames, then over
        pairs."""
        l1, cosine = 0.0, 0.0
        for i, (target_VD, estimate_VD) in enumerate(zip(targets, estimates, strict=True)):
            if self.numbers is not None:
                estimate_VD = self.maps[self.numbers[i]](estimate_VD)
            target_VD, estimate_VD = wide(target_VD), wide(estimate_VD)
            # a term of weight 0 is still shown, but not kept for backward
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.l1 > 0):
                l1 = l1 + F.l1_loss(estimate_VD, target_VD)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.cosine > 0):
                cosine = cosine - F.cosine_similarity(estimate_VD, target_VD, dim=-1).mean()
        count = len(targets) if self.config.reduction == "mean" else 1
        terms = {"l1": l1 / count, "cosine": cosine / count}
        return sum(getattr(self.config, name) * term for name, term in terms.items()), terms


def _identity(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
