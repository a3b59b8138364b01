"""What every loss needs: models of one frame rate, the frames that count, layer 0, and which layers it trains.

Shapes: B utterances, T frames, D width, V valid frames of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import strict
from ..encoder import Encoder, EncoderConfig, EncoderOutput, Masked
from ..encoder.frontend import valid_mask
from ..errors import StarError

Weights = tuple[float, ...]
"""One for each layer or pair of layers; two numbers: of every one but the last, and of the last."""


class Masking(NamedTuple):
    """What a loss that masks frames is given besides the unmasked teacher and the masked student."""

    mask_BT: Tensor
    """True where the front end's frame was replaced."""
    teacher: EncoderOutput | None
    """With the same frames replaced, where the loss asked for it."""


class Masker(Protocol):
    """A loss that draws the frames which the student does not hear in training."""

    vector: nn.Parameter
    """What the student is given in their place."""

    def draw(self, frames_B: Tensor, size: int, places: Sequence[int]) -> Tensor:
        """B x ``size``, True where a frame is masked; ``places``: of the utterances in the corpus."""

    def teacher_masked(self, teacher: Encoder, output: EncoderOutput, mask_BT: Tensor) -> Masked | None:
        """What the second teacher's frames are replaced by; ``output``: the first's. None: there is no second one."""


def stacked(masks: Sequence[np.ndarray], size: int, like: Tensor) -> Tensor:
    """B x ``size`` on the device of ``like``, False beyond an utterance's end."""
    found_BT = np.zeros((len(masks), size), bool)
    for row_T, mask_T in zip(found_BT, masks):
        row_T[: len(mask_T)] = mask_T
    return torch.from_numpy(found_BT).to(like.device)


class TrainedLayers(NamedTuple):
    """The layers that meet in a loss, each side in order; 0 is what comes before layer 1."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


def check_rates(name: str, teacher: EncoderConfig, student: EncoderConfig, inside: bool = True) -> None:
    """Raises :class:`StarError` when teacher and student have different frame rates, or the layers of one have several.

    ``inside``: the student's inner layers are read, not its end alone.
    """
    for model in (teacher, student) if inside else (teacher,):
        model.check_one_rate(name)
    if teacher.stride != student.stride:
        strides = f"{teacher.stride} and {student.stride}"
        raise StarError(f"{name}: teacher and student must have one frame rate, their strides are {strides}")


def check_masks(name: str, teacher: EncoderConfig, student: EncoderConfig) -> None:
    """Raises :class:`StarError` when one mask does not fit the frames of both, which begin or end elsewhere."""
    if teacher.receptive_field != student.receptive_field:
        fields = f"{teacher.receptive_field} and {student.receptive_field}"
        raise StarError(f"{name}: masks the same frames of teacher and student, which see {fields} samples a frame")


def layer_state(output: EncoderOutput, layer: int, zeroth: str) -> Tensor:
    """B x T x D output of ``layer``; 0 is the first layer's input or, by ``zeroth``, the projected CNN output after its
    dropout."""
    if layer > 0 or zeroth != "features":
        return output.states[layer]
    return output.features_BTD if output.dropped_BTD is None else output.dropped_BTD


def spread(weights: Weights | None, count: int, where: str) -> list[float]:
    """``count`` weights; None: 1 each. Raises :class:`StarError` where there are neither two nor ``count``, and for one
    below 0 or none above."""
    if weights is None:
        return [1.0] * count
    found = [*weights[:1] * (count - 1), *weights[1:]] if len(weights) == 2 else list(weights)
    if len(found) != count or min(found) < 0 or not max(found) > 0:
        raise StarError(
            f"{where}: expected {count} weights of 0 or more, or two (of every layer but the last, and of the last), "
            f"got {list(weights)}"
        )
    return found


def check_weights(config: Any, *names: str) -> None:
    """Raises :class:`StarError` for a weight below 0, and where none is above."""
    strict.within(config, "[0, inf)", *names)
    if not any(getattr(config, name) for name in names):
        raise StarError(f"{', '.join(names)}: at least one weight must be above 0")


def check_heads(name: str, teacher: EncoderConfig, student: EncoderConfig) -> None:
    """Raises :class:`StarError` unless the student has the teacher's width at its layers' heads, or without heads."""
    width = student.output_projection or student.width
    if width != teacher.width:
        raise StarError(
            f"{name}: the student's layers give {width} channels, the teacher's {teacher.width}; set "
            f"student.output_projection={teacher.width}"
        )


def head_states(output: EncoderOutput) -> list[Tensor]:
    """What the student's heads make of each layer's output, B x T x D; without heads the outputs themselves."""
    return output.states[1:] if output.projections is None else output.projections


def valid_in_both(
    teacher: EncoderOutput, student: EncoderOutput, compared_BTD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The frames of each utterance that are valid in both models (B), and their mask (B x T, T the shorter one's).

    ``compared_BTD``: what the student gives, where that is none of its states.
    """
    frames_B = torch.minimum(teacher.lengths_B, student.lengths_B)
    own_BTD = student.states[0] if compared_BTD is None else compared_BTD
    return frames_B, valid_mask(frames_B, min(teacher.states[0].shape[1], own_BTD.shape[1]))


def valid_frames(
    teacher: EncoderOutput, student: EncoderOutput, compared_BTD: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """A function that takes the frames valid in both models out of a B x T x D tensor: V x D, the same frames of either
    model. ``compared_BTD`` as in :func:`valid_in_both`."""
    utterance_V, frame_V = valid_in_both(teacher, student, compared_BTD)[1].nonzero(as_tuple=True)

    def picked(x_BTD: Tensor) -> Tensor:
        batch, size, _ = x_BTD.shape
        # without padding there is nothing to pick, and no copy is made
        flat = x_BTD.flatten(0, 1)
        return flat if len(frame_V) == batch * size else flat.index_select(0, utterance_V * size + frame_V)

    return picked
