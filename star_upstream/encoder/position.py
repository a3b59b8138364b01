"""Convolutions over time as relative position embeddings, in the three forms of published encoders (``position_norm``).

Every form takes B x T x D and a mask of valid frames (B x T, None where all are), and gives what is added to its input.
The mask keeps padding as it is beyond the end of a single utterance: zero before every convolution. With ``attention:
chunked`` a frame sees none that comes after it; ``history`` says that the frames on which the first one to be given
depends (:func:`reach` of them) come before it in the input, whose places are not given then.

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


def reach(config: EncoderConfig) -> int:
    """Frames before its own that a frame depends on, in a causal model."""
    return (config.position_kernel - 1) * config.position_layers


def convolve(
    x_BTD: Tensor, weight: Tensor, bias: Tensor, groups: int, causal: bool = False, history: bool = False
) -> Tensor:
    """Grouped convolution that keeps the number of frames: an even kernel's one frame too many is cut at the end.

    causal: zeros stand before the first frame alone, or (``history``) nothing, and there are fewer frames.
    """
    x_BDT, kernel = x_BTD.transpose(1, 2), weight.shape[-1]
    if causal:
        x_BDT = x_BDT if history else F.pad(x_BDT, (kernel - 1, 0))
        return grouped_conv1d(x_BDT, weight, bias, 0, groups).transpose(1, 2)
    return grouped_conv1d(x_BDT, weight, bias, kernel // 2, groups)[..., : x_BTD.shape[1]].transpose(1, 2)


class PositionalConvolution(nn.Module):
    """One convolution, weight-normalised over the kernel (wav2vec 2.0, section 2)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups, self.causal = config.position_groups, config.attention == "chunked"
        self.direction = nn.Parameter(_initial(config))
        self.magnitude = nn.Parameter(self.direction.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, history: bool = False) -> Tensor:
        with full_precision(x_BTD.device):
            weight = torch._weight_norm(wide(self.direction), wide(self.magnitude), 2).to(self.direction.dtype)
        return F.gelu(convolve(x_BTD, weight, self.bias, self.groups, self.causal, history))


class NormedPositionalConvolution(nn.Module):
    """A batch norm, then one convolution (fairseq's and transformers' ``conv_pos_batch_norm``: mHuBERT-147).

    The norm has its training's statistics, folded into one ``scale`` and ``shift`` a channel: what it is outside of
    training.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups, self.causal = config.position_groups, config.attention == "chunked"
        self.scale, self.shift = nn.Parameter(torch.ones(config.width)), nn.Parameter(torch.zeros(config.width))
        self.weight, self.bias = nn.Parameter(_initial(config)), nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, history: bool = False) -> Tensor:
        x_BTD = _masked(x_BTD * self.scale + self.shift, mask_BT)
        return F.gelu(convolve(x_BTD, self.weight, self.bias, self.groups, self.causal, history))


class StackedPositionalConvolution(nn.Module):
    """``position_layers`` convolutions, each with a LayerNorm without parameters and a GELU after it (data2vec, section
    3.3)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.groups, self.causal = config.position_groups, config.attention == "chunked"
        self.weights = nn.ParameterList(_initial(config) for _ in range(config.position_layers))
        self.biases = nn.ParameterList(torch.zeros(config.width) for _ in range(config.position_layers))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None, history: bool = False) -> Tensor:
        for weight, bias in zip(self.weights, self.biases):
            if history and mask_BT is not None:
                mask_BT = mask_BT[:, mask_BT.shape[1] - x_BTD.shape[1] :]
            x_BTD = convolve(_masked(x_BTD, mask_BT), weight, bias, self.groups, self.causal, history)
            x_BTD = F.gelu(F.layer_norm(x_BTD, (len(weight),)))
        return x_BTD


def _initial(config: EncoderConfig) -> Tensor:
    """fairseq's initial kernel."""
    weight = torch.empty(config.width, config.width // config.position_groups, config.position_kernel)
    return nn.init.normal_(weight, std=math.sqrt(4.0 / (config.position_kernel * config.width)))


def _masked(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    return x_BTD if mask_BT is None else x_BTD.masked_fill(~mask_BT[..., None], 0.0)
