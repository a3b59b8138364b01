"""STaR: distil the temporal relation between speech frames (Jang, Kim, Kim, ICASSP 2024, arXiv 2312.09040).

F^l is the output of layer l, F^0 the input of layer 1. Teacher T, student S; sums run over distilled layers.

- average attention map: KL( mean over heads of A_T^l[t] || mean over heads of A_S^l[t] ), over query frames t
- layer-wise temporal Gram matrix (TGM): || F_T^l F_T^l' - F_S^l F_S^l' ||^2
- intra-layer TGM: || F_T^(l-1) F_T^l' - F_S^(l-1) F_S^l' ||^2

Only pairs of valid frames count. Nothing has parameters, and teacher and student may differ in width.
Shapes: B utterances, T frames, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..encoder import EncoderConfig, EncoderOutput
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from .common import TrainedLayers, check_rates, check_weights, layer_state, valid_in_both


@dataclass(frozen=True)
class StarConfig:
    """Weights of the three terms (the paper's final loss is 0, 1, 1), and the choices that the paper leaves open."""

    average_attention: float = 0.0
    attention_layers: Literal["all", "last"] = "all"
    """Whose maps: of every pair of layers, or of the last pair alone (the paper's first alternative)."""
    layer_wise: float = 1.0
    intra_layer: float = 1.0
    zeroth: Literal["layer_input", "features"] = "layer_input"
    """F^0: the first layer's input, or the projected CNN output before the positional convolution."""
    scale: Literal["none", "width"] = "none"
    """Divide each Gram matrix by its model's width, or not (ours to choose: the paper shows no scale)."""
    reduction: Literal["mean", "sum"] = "mean"
    """``mean``: over layers and valid pairs (for attention: valid query frames) of the batch; ``sum``: over layers and
    pairs, then mean over utterances. The paper writes a sum; which one trained its models is not known."""
    layer_map: tuple[tuple[int, int], ...] | None = None
    """(student layer, teacher layer) pairs, counted from 1. None: one to one, which needs equal depth."""

    def __post_init__(self) -> None:
        check_weights(self, "average_attention", "layer_wise", "intra_layer")
        if self.layer_map == ():
            raise StarError("layer_map: name at least one pair, or null for one to one")

    def pairs(self, student: EncoderConfig) -> tuple[tuple[int, int], ...]:
        """(student layer, teacher layer)."""
        return self.layer_map or tuple((i, i) for i in range(1, student.layers + 1))


class StarLoss(nn.Module):
    """The weighted sum of the three terms. Raises :class:`StarError` when the two models do not fit the layer map."""

    options = StarConfig

    def __init__(self, config: StarConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        check_rates("star", teacher, student)
        if config.layer_map is None and teacher.layers != student.layers:
            raise StarError(
                f"star.layer_map: needed, since the teacher has {teacher.layers} layers and the student "
                f"{student.layers}; give [student layer, teacher layer] pairs, counted from 1"
            )
        self.layer_map = config.pairs(student)
        for own, other in self.layer_map:
            if not (1 <= own <= student.layers and 1 <= other <= teacher.layers):
                depths = f"the student's {student.layers} and teacher's {teacher.layers} layers"
                raise StarError(f"star.layer_map: [{own}, {other}] is outside {depths}")
            if config.average_attention and not (student.heads[own - 1] and teacher.heads[other - 1]):
                raise StarError(f"star.average_attention: layer pair [{own}, {other}] has no attention on one side")

    @property
    def needs_attention(self) -> bool:
        """Whether the encoders must return their attention maps."""
        return self.config.average_attention > 0

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss (a scalar, fp32 or wider) and its unweighted terms by name."""
        config = self.config
        frames_B, mask_BT = valid_in_both(teacher, student)
        terms: dict[str, Tensor] = {}
        if config.average_attention:
            terms["average_attention"] = self._attention(teacher, student, mask_BT)
        if config.layer_wise or config.intra_layer:
            ours, theirs = self._states(student, mask_BT), self._states(teacher, mask_BT)
            weight = self._pair_weight(frames_B)
            if config.layer_wise:
                pairs = [(ours[s], ours[s], theirs[t], theirs[t]) for s, t in self.layer_map]
                terms["layer_wise"] = _sum(gram_distance(*pair) for pair in pairs) * weight
            if config.intra_layer:
                pairs = [(ours[s - 1], ours[s], theirs[t - 1], theirs[t]) for s, t in self.layer_map]
                terms["intra_layer"] = _sum(gram_distance(*pair) for pair in pairs) * weight
        return _sum(getattr(config, name) * term for name, term in terms.items()), terms

    @staticmethod
    def trained_layers(config: StarConfig, student: EncoderConfig) -> TrainedLayers:
        student_layers, teacher_layers = zip(*config.pairs(student))
        return TrainedLayers(teacher_layers, student_layers)

    def _states(self, output: EncoderOutput, mask_BT: Tensor) -> list[Tensor]:
        """F^0 to F^L in fp32 or wider, zero at padded frames, scaled."""
        states = [layer_state(output, 0, self.config.zeroth), *output.states[1:]]
        factor = states[0].shape[-1] ** -0.5 if self.config.scale == "width" else 1.0
        mask_BT1 = mask_BT[..., None]
        return [wide(x_BTD[:, : mask_BT.shape[1]]).masked_fill(~mask_BT1, 0.0) * factor for x_BTD in states]

    def _pair_weight(self, frames_B: Tensor) -> Tensor | float:
        if self.config.reduction == "sum":
            return 1.0 / len(frames_B)
        return 1.0 / (frames_B.double().square().sum() * len(self.layer_map)).float()

    def _attention(self, teacher: EncoderOutput, student: EncoderOutput, mask_BT: Tensor) -> Tensor:
        assert teacher.attentions is not None and student.attentions is not None
        size, each = mask_BT.shape[1], []
        pairs = self.layer_map[-1:] if self.config.attention_layers == "last" else self.layer_map
        for own, other in pairs:
            maps = teacher.attentions[other - 1], student.attentions[own - 1]
            p_BTT, q_BTT = (wide(cast(Tensor, map_BHTT)).mean(1)[:, :size, :size] for map_BHTT in maps)
            tiny = torch.finfo(p_BTT.dtype).tiny
            divergence_BT = (p_BTT * (p_BTT.clamp(min=tiny).log() - q_BTT.clamp(min=tiny).log())).sum(-1)
            each.append(divergence_BT.masked_fill(~mask_BT, 0.0).sum())
        if self.config.reduction == "sum":
            return _sum(each) / len(mask_BT)
        return _sum(each) / (mask_BT.sum() * len(pairs))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    return sum(others, start=first)


def gram_distance(a_BTD: Tensor, b_BTD: Tensor, p_BTE: Tensor, q_BTE: Tensor) -> Tensor:
    """Sum over utterances of || P Q' - A B' ||^2, differentiable in the student's A and B.

    Frames that must not count are zero in all four. Computed in the inputs' precision whatever the autocast; squared
    Gram entries overflow fp16, so give fp32. One T x T matrix an utterance lives at a time, and none is kept for
    backward: the gradients -2 D B and -2 D' A (D the difference) are as small as the states and are computed on the
    way.
    """
    distance: Tensor = _GramDistance.apply(a_BTD, b_BTD, p_BTE.detach(), q_BTE.detach())
    return distance


class _GramDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BTD: Tensor, b_BTD: Tensor, p_BTE: Tensor, q_BTE: Tensor) -> Tensor:
        total = a_BTD.new_zeros(())
        needed = ctx.needs_input_grad
        grad_a = torch.empty_like(a_BTD) if needed[0] else None
        grad_b = torch.empty_like(b_BTD) if needed[1] else None
        with full_precision(a_BTD.device):
            for i in range(len(a_BTD)):
                difference_TT = p_BTE[i] @ q_BTE[i].T
                difference_TT.addmm_(a_BTD[i], b_BTD[i].T, alpha=-1)
                total += (
                    difference_TT.square().sum()
                    if difference_TT.is_cuda
                    else difference_TT.flatten().dot(difference_TT.flatten())
                )
                if grad_a is not None:
                    torch.mm(difference_TT, b_BTD[i], out=grad_a[i])
                if grad_b is not None:
                    torch.mm(difference_TT.T, a_BTD[i], out=grad_b[i])
        ctx.save_for_backward(grad_a, grad_b)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_a, grad_b = ctx.saved_tensors
        return (
            (None if grad_a is None else -2 * grad * grad_a),
            (None if grad_b is None else -2 * grad * grad_b),
            None,
            None,
        )
