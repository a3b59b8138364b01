"""Convolutions over time as relative position embeddings, in the three forms of published encoders (``position_norm``).

Every form takes B x T x D and a mask of valid frames (B x T, None where all are), and gives what is added to its input.
The mask keeps padding as it is beyond the end of a single utterance: zero before every convolution.

Shapes: B utterances, T frames, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .numerics import full_precision, grouped_conv1d, wide


def positional(config: EncoderConfig) -> nn.Module:
    """The form that ``config.position_norm`` names."""
    forms = {
        "weight": PositionalConvolution,
        "batch": NormedPositionalConvolution,
        "layer": StackedPositionalConvolution,
    }
    return forms[config.position_norm](config)


def convolve(x_BTD: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Grouped convolution that keeps the number of frames: an even kernel's one frame too many is cut at the end."""
    x_BDT = grouped_conv1d(x_BTD.transpose(1, 2), weight, bias, weight.shape[-1] // 2, groups)
    return x_BDT[..., : x_BTD.shape[1]].transpose(1, 2)


class PositionalConvolution(nn.Module):
    """One convolution, weight-normalised over the kernel (wav2vec 2.0, section 2)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups = config.position_groups
        self.direction = nn.Parameter(_initial(config))
        self.magnitude = nn.Parameter(self.direction.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        with full_precision(x_BTD.device):
            weight = torch._weight_norm(wide(self.direction), wide(self.magnitude), 2).to(self.direction.dtype)
        return F.gelu(convolve(x_BTD, weight, self.bias, self.groups))


class NormedPositionalConvolution(nn.Module):
    """A batch norm, then one convolution (fairseq's and transformers' ``conv_pos_batch_norm``: mHuBERT-147).

    The norm has its training's statistics, folded into one ``scale`` and ``shift`` a channel: what it is outside of
    training.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups = config.position_groups
        self.scale, self.shift = nn.Parameter(torch.ones(config.width)), nn.Parameter(torch.zeros(config.width))
        self.weight, self.bias = nn.Parameter(_initial(config)), nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        return F.gelu(convolve(_masked(x_BTD * self.scale + self.shift, mask_BT), self.weight, self.bias, self.groups))


class StackedPositionalConvolution(nn.Module):
    """``position_layers`` convolutions, each with a LayerNorm without parameters and a GELU after it (data2vec, section
    3.3)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups = config.position_groups
        self.weights = nn.ParameterList(_initial(config) for _ in range(config.position_layers))
        self.biases = nn.ParameterList(torch.zeros(config.width) for _ in range(config.position_layers))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        for weight, bias in zip(self.weights, self.biases):
            x_BTD = convolve(_masked(x_BTD, mask_BT), weight, bias, self.groups)
            x_BTD = F.gelu(F.layer_norm(x_BTD, (len(weight),)))
        return x_BTD


def _initial(config: EncoderConfig) -> Tensor:
    """fairseq's initial kernel."""
    weight = torch.empty(config.width, config.width // config.position_groups, config.position_kernel)
    return nn.init.normal_(weight, std=math.sqrt(4.0 / (config.position_kernel * config.width)))


def _masked(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    return x_BTD if mask_BT is None else x_BTD.masked_fill(~mask_BT[..., None], 0.0)
