"""Heads: the encoder's states of an utterance -> one vector -> class scores; and encoder and heads as one model.

Shapes: B utterances, N samples, T frames, S states, D width, E channels of the vector, C classes.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..encoder.frontend import valid_mask
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from . import losses


def shape(config: EncoderConfig, input: str) -> tuple[int, int]:
    """How many states a head with that ``input`` reads, and their width. Raises :class:`StarError` where the encoder has none such."""
    exposed, width = config.exposed
    predicted = len(config.prediction_layers)
    if input in ("predictions", "all") and not predicted:
        raise StarError(f"input: {input!r} needs an encoder with prediction heads (prediction_layers); take 'last' or 'states'")
    predicted_width = config.prediction_width or config.width
    if input == "all" and width != predicted_width:
        raise StarError("input: 'all' needs states and predictions of one width; take 'states' or 'predictions'")
    if input == "predictions":
        return predicted, predicted_width
    return {"last": 1, "states": exposed, "all": exposed + predicted}[input], width


def select(encoder: Encoder, output: EncoderOutput, input: str) -> list[Tensor]:
    """The states (B x T x D each) that a head with that ``input`` reads."""
    if input == "predictions":
        return output.predictions
    states = encoder.exposed(output)
    if input == "last":
        return states[-1:]
    return [*states, *output.predictions] if input == "all" else states


class Head(nn.Module):
    """Weighted sum of states, pooling over valid frames, a linear layer if asked for, and the loss that holds the classifier.

    ``classes`` 0: no classifier, as in an exported model that answers with the vector.
    """

    def __init__(self, task, config: EncoderConfig, classes: int):
        super().__init__()
        self.task = task
        count, width = shape(config, task.input)
        self.mix = nn.Parameter(torch.zeros(count)) if count > 1 else None
        self.attention = nn.Linear(width, 1) if task.pooling == "attentive" else None
        self.project = nn.Linear(width, task.embedding) if task.embedding else None
        self.loss = losses.make(task, task.embedding or width, classes) if classes else None

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


class MultitaskModel(nn.Module):
    """An encoder and its heads by name. ``labels``: the classes of each head, in order; empty for one that answers with its vector."""

    def __init__(self, encoder: Encoder, tasks: Mapping[str, object], labels: Mapping[str, Sequence[str]], frozen: bool = False):
        super().__init__()
        self.encoder, self.labels, self.frozen = encoder, {name: list(labels.get(name, ())) for name in tasks}, frozen
        heads = {}
        for name, task in tasks.items():
            try:
                heads[name] = Head(task, encoder.config, len(self.labels[name]))
            except StarError as error:
                raise StarError(f"tasks.{name}.{error}") from None
        self.heads = nn.ModuleDict(heads)
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "MultitaskModel":
        """A frozen encoder stays in eval mode: no dropout either."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def states(self, name: str, waveforms_BN: Tensor, lengths_B: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """What the head ``name`` reads, and the valid frames of each utterance."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output = self.encoder(waveforms_BN, lengths_B)
            return select(self.encoder, output, self.heads[name].task.input), output.lengths_B

    def forward(self, name: str, waveforms_BN: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """The vectors (B x E) of the head ``name``."""
        return self.heads[name](*self.states(name, waveforms_BN, lengths_B))
