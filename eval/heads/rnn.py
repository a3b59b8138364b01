"""s3prl's bidirectional LSTM layer without packing, for CPUs: the same numbers many times faster.

torch walks a packed sequence one step at a time on the CPU; two padded one-way passes, the second over each utterance
reversed within its own length, go through oneDNN.

Shapes: B utterances, T frames, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PaddedRNNLayer(nn.Module):
    """Takes the place of an ``s3prl.nn.rnn.RNNLayer`` and holds its parameters; other layers and devices run the
    original."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.original: Any = layer

    def forward(self, xs_BTD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.original
        rnn = layer.layer
        plain = isinstance(rnn, nn.LSTM) and rnn.bidirectional and rnn.num_layers == 1 and layer.sample_rate == 1
        if not plain or xs_BTD.device.type != "cpu":
            return layer(xs_BTD, lengths_B)
        out_BTD = bidirectional(rnn, xs_BTD[:, : int(lengths_B.max())], lengths_B)
        if layer.layer_norm:
            out_BTD = layer.ln_layer(out_BTD)
        if layer.dropout > 0:
            out_BTD = layer.dp_layer(out_BTD)
        if layer.proj:
            out_BTD = torch.tanh(layer.pj_layer(out_BTD))
        return out_BTD, lengths_B

    @property
    def output_size(self) -> int:
        return self.original.output_size


def bidirectional(rnn: nn.LSTM, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """B x T x 2 hidden: what ``rnn`` gives for the packed sequence, zero past each length."""
    batch, frames, _ = x_BTD.shape
    position_BT = torch.arange(frames)[None].expand(batch, frames)
    valid_BT = position_BT < lengths_B[:, None]
    mirror_BT1 = torch.where(valid_BT, lengths_B[:, None] - 1 - position_BT, position_BT)[..., None]
    zeros = x_BTD.new_zeros(1, batch, rnn.hidden_size)

    def one_way(inputs_BTD: Tensor, suffix: str) -> Tensor:
        weights = [getattr(rnn, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return torch.lstm(inputs_BTD, (zeros, zeros), weights, True, 1, 0.0, rnn.training, False, True)[0]

    forward_BTD = one_way(x_BTD, "")
    backward_BTD = one_way(x_BTD.gather(1, mirror_BT1.expand_as(x_BTD)), "_reverse")
    backward_BTD = backward_BTD.gather(1, mirror_BT1.expand_as(backward_BTD))
    return torch.cat([forward_BTD, backward_BTD], -1) * valid_BT[..., None]


def unpack(model: Any) -> None:
    """Replace every ``RNNLayer`` in the ``rnns`` of ``model`` (an ``s3prl.nn.rnn.RNNEncoder``)."""
    model.rnns = nn.ModuleList(PaddedRNNLayer(layer) for layer in model.rnns)
