"""A head: the encoder's states of an utterance -> one vector -> class scores.

Shapes: B utterances, T frames, S states, D width, E channels of the vector, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.task_config import TaskConfig
from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..encoder.frontend import valid_mask
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from . import margins


def shape(config: EncoderConfig, input: str) -> tuple[int, int]:
    """How many states a head with that ``input`` reads, and their width. Raises :class:`StarError` where the encoder
    has none such."""
    exposed, width = config.exposed
    predicted = len(config.prediction_layers)
    if input in ("predictions", "all") and not predicted:
        raise StarError(
            f"input: {input!r} needs an encoder with prediction heads (prediction_layers); take 'last' or 'states'"
        )
    predicted_width = config.prediction_width or config.width
    if input == "all" and width != predicted_width:
        raise StarError("input: 'all' needs states and predictions of one width; take 'states' or 'predictions'")
    if input == "predictions":
        return predicted, predicted_width
    return {"last": 1, "states": exposed, "all": exposed + predicted}[input], width


def select(encoder: Encoder, output: EncoderOutput, input: str) -> list[Tensor]:
    """The states (B x T x D each) that a head with that ``input`` reads."""
    if input == "predictions":
        return output.predictions or []
    states = encoder.exposed(output)
    if input == "last":
        return states[-1:]
    return [*states, *(output.predictions or ())] if input == "all" else states


class TaskHead(nn.Module):
    """Weighted sum of states, pooling over valid frames, a linear layer if asked for, and the loss that holds the
    classifier.

    ``classes`` 0: no classifier, as in an exported model that answers with the vector.
    """

    def __init__(self, task: TaskConfig, config: EncoderConfig, classes: int):
        super().__init__()
        self.task = task
        count, width = shape(config, task.input)
        self.mix = nn.Parameter(torch.zeros(count)) if count > 1 else None
        self.attention = nn.Linear(width, 1) if task.pooling == "attentive" else None
        self.project = nn.Linear(width, task.embedding) if task.embedding else None
        self.loss = margins.make(task, task.embedding or width, classes) if classes else None

    def forward(self, states: Sequence[Tensor], frames_B: Tensor) -> Tensor:
        """B x E, in fp32 or wider, from states of B x T x D with ``frames_B`` valid frames each."""
        with full_precision(states[0].device):
            if self.mix is None:
                x_BTD = wide(states[0])
            else:
                x_BTD = sum(weight * wide(state_BTD) for weight, state_BTD in zip(wide(self.mix).softmax(0), states))
            mask_BT = valid_mask(frames_B, x_BTD.shape[1])
            if self.attention is None:
                weight_BT = mask_BT / frames_B[:, None].to(x_BTD.dtype)
            else:
                weight_BT = _linear(self.attention, x_BTD)[..., 0].masked_fill(~mask_BT, float("-inf")).softmax(1)
            # frames past the end may hold anything, even what is not finite
            x_BE = torch.einsum("bt,btd->bd", weight_BT.to(x_BTD.dtype), x_BTD.masked_fill(~mask_BT[..., None], 0.0))
            return x_BE if self.project is None else _linear(self.project, x_BE)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in fp32 or wider, also of a half model."""
    return F.linear(x, wide(layer.weight), wide(layer.bias))
