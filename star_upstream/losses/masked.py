"""Masking distillation of ARMHuBERT and MaskHuBERT (Jang, Kim, Yun, Kim, Interspeech 2023, arXiv 2305.11685; their
code, sungnyun/ARMHuBERT at e687add, train.py, calculate_loss).

The student and one teacher hear a batch with the same frames masked, another teacher hears all of it. For every layer,
S' the student's head on it, over valid frames t:

    sum over masked t of  mean (S'_t - T_t)^2   +   sum over other t of  mean (S'_t - T^masked_t)^2

divided by the number of frames; layers are added, the last with weight 1 and the others with 0.1. In validation nothing
is masked. Shapes: B utterances, T frames, D width, V valid frames of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import strict
from ..data.clips import Clip
from ..encoder import Encoder, EncoderConfig, EncoderOutput, Masked
from ..encoder.frontend import valid_mask
from ..encoder.numerics import wide
from ..errors import StarError
from .common import (
    Masking,
    TrainedLayers,
    Weights,
    check_heads,
    check_masks,
    check_rates,
    head_states,
    spread,
    stacked,
    valid_frames,
)

FEWEST = 2
"""Spans of an utterance, at least (fairseq's ``min_masks`` in HuBERT and WavLM)."""


@dataclass(frozen=True)
class MaskedConfig:
    """Spans as fairseq draws them with ``mask_selection: uniform``, ``mask_other: 0`` and ``no_mask_overlap``, which is
    what the authors' six configurations ask for."""

    probability: float = 0.8
    """Share of the frames that the spans would hide if all of them found room."""
    length: int = 10
    """Mean length of a span; lengths are uniform from 0 to twice that."""
    space: int = 1
    """Frames between two spans, at least."""
    even: bool = True
    """Frames are taken out of the masks at random until every utterance of a batch has as many as the one with the
    fewest (fairseq). An utterance's mask then depends on who else is in its batch."""
    teacher_vector: Literal["own", "student", "mean"] | None = None
    """In place of the teacher's masked frames: what it was trained with (the authors); the student's vector (their
    ``update_teacher_mask``; needs equal widths); the mean of the utterance's frames. None: its own, or the mean where
    its file has none: decided before training starts."""
    weights: Weights = (0.1, 1.0)
    """Of each layer."""

    def __post_init__(self) -> None:
        strict.within(self, "(0, 1]", "probability")
        strict.within(self, "[1, inf)", "length")
        strict.within(self, "[0, inf)", "space")


class MaskedLoss(nn.Module):
    """The loss, the spans, and the vector that the student is given in place of masked frames. Raises
    :class:`StarError` for models that differ in depth, frame rate, or the width at the student's heads."""

    options = MaskedConfig
    needs_attention = False
    masks = True

    def __init__(self, config: MaskedConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        check_rates("masked", teacher, student, inside=False)
        check_masks("masked", teacher, student)
        check_heads("masked", teacher, student)
        if teacher.layers != student.layers:
            depths = f"{teacher.layers} and {student.layers} layers"
            raise StarError(f"masked: teacher and student must have one depth, they have {depths}")
        if config.teacher_vector == "student" and teacher.width != student.width:
            widths = f"{teacher.width} and {student.width}"
            raise StarError(f"masked.teacher_vector: 'student' needs models of one width, they have {widths}")
        self.weights = spread(config.weights, student.layers, "masked.weights")
        self.vector = nn.Parameter(torch.empty(student.width).uniform_())

    def forward(
        self, teacher: EncoderOutput, student: EncoderOutput, masking: Masking | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar, fp32 or wider) and its terms, weighted by layer: ``masked`` and ``unmasked`` frames, or
        ``whole`` where nothing was masked."""
        own, hiding = head_states(student), None if masking is None else masking.teacher
        picked = valid_frames(teacher, student, own[0])
        masked_V1 = None if masking is None else picked(masking.mask_BT[..., None])
        total_V: Tensor | float = 0.0
        for layer, (weight, own_BTD) in enumerate(zip(self.weights, own), start=1):
            target_VD = picked(teacher.states[layer])
            if masked_V1 is not None:
                assert hiding is not None
                target_VD = torch.where(masked_V1, target_VD, picked(hiding.states[layer]))
            total_V = total_V + weight * (wide(picked(own_BTD)) - wide(target_VD)).square().mean(-1)
        assert isinstance(total_V, Tensor)
        if masked_V1 is None:
            return total_V.mean(), {"whole": total_V.mean()}
        hidden = (total_V * masked_V1[:, 0]).sum() / len(total_V)
        seen = (total_V * ~masked_V1[:, 0]).sum() / len(total_V)
        return hidden + seen, {"masked": hidden, "unmasked": seen}

    def draw(self, frames_B: Tensor, size: int, places: Sequence[int]) -> Tensor:
        """B x ``size``, True where a frame is masked. Spans depend on torch's random state and on an utterance's place
        in the corpus, not on its place in the batch."""
        seed = int(torch.randint(2**31, ()))
        counts = frames_B.tolist()
        masks = [draw_spans(n, self.config, np.random.default_rng((seed, place))) for n, place in zip(counts, places)]
        if self.config.even:
            random, fewest = np.random.default_rng(seed), min(int(mask_T.sum()) for mask_T in masks)
            masks = [_thinned(mask_T, fewest, random) for mask_T in masks]
        return stacked(masks, size, frames_B)

    def teacher_masked(self, teacher: Encoder, output: EncoderOutput, mask_BT: Tensor) -> Masked:
        """What the second teacher's frames are replaced by; ``output``: the first's."""
        kind = self.config.teacher_vector or _kind(teacher)
        if kind == "student":
            return Masked(mask_BT, self.vector.detach())
        if kind == "own":
            assert teacher.mask_vector is not None
            return Masked(mask_BT, teacher.mask_vector)
        valid_BT1 = valid_mask(output.lengths_B, mask_BT.shape[1])[..., None]
        sums_B1D = wide(output.features_BTD).masked_fill(~valid_BT1, 0.0).sum(1, keepdim=True)
        return Masked(mask_BT, sums_B1D / output.lengths_B[:, None, None])

    @staticmethod
    def calibrate(config: MaskedConfig, teacher: Encoder, clips: Sequence[Clip], seed: int) -> dict[str, str]:
        """``teacher_vector``, where ``config`` leaves it open. Raises :class:`StarError` where it asks for one that the
        teacher does not have."""
        if config.teacher_vector == "own" and teacher.mask_vector is None:
            raise StarError(
                "masked.teacher_vector: the teacher's file holds no vector for masked frames; take 'mean', or a file "
                "that was saved in pre-training (mask_emb, masked_spec_embed)"
            )
        return {} if config.teacher_vector else {"teacher_vector": _kind(teacher)}

    @staticmethod
    def explain(measured: Mapping[str, str]) -> str:
        if measured["teacher_vector"] == "own":
            return "the teacher's masked frames are the vector that it was pre-trained with"
        return (
            "the teacher's file holds no vector for masked frames, so that the mean of an utterance's frames takes "
            "their place: the teacher never learnt from that (teacher_vector)"
        )

    @staticmethod
    def trained_layers(config: MaskedConfig, student: EncoderConfig) -> TrainedLayers:
        every = tuple(range(1, student.layers + 1))
        return TrainedLayers(every, every)


def _kind(teacher: Encoder) -> str:
    return "mean" if teacher.mask_vector is None else "own"


def draw_spans(frames: int, config: MaskedConfig, random: np.random.Generator) -> np.ndarray:
    """``frames`` values, True where masked: the longest span first, each within a gap that has room for it and for
    ``space``, a gap chosen by its length; the first that finds no room ends the drawing (``compute_mask_indices``, in
    the authors' teacher_utils/wavlm.py)."""
    count = max(FEWEST, int(config.probability * frames / config.length + random.random()))
    lengths = random.integers(0, 2 * config.length + 1, count)
    if not lengths.any():
        lengths[0] = min(config.length, frames - 1)
    mask_T, gaps = np.zeros(frames, bool), [(0, frames)]
    space = max(config.space, 1)  # a gap ends one frame after its last that is free
    for length in sorted((int(n) for n in lengths if n), reverse=True):
        room = np.array([end - start if end - start >= length + space else 0 for start, end in gaps], float)
        if not room.any():
            break
        start, end = gaps.pop(int(random.choice(len(gaps), p=room / room.sum())))
        first = int(random.integers(start, end - length))
        mask_T[first : first + length] = True
        gaps += [(start, first - config.space + 1), (first + length + config.space, end)]
    return mask_T


def _thinned(mask_T: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` of the True values, chosen at random."""
    kept_T = np.zeros_like(mask_T)
    kept_T[random.choice(np.flatnonzero(mask_T), count, replace=False)] = True
    return kept_T
