"""Waveform to frames: the convolutional front end and its projection.

Shapes: B utterances, N samples, T frames, C channels, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .mel import LogMel
from .numerics import full_precision, prior_moments, standardise, standardise_running, valid_mask, wide


def normalize(waveforms_BN: Tensor, lengths_B: Tensor | None, epsilon: float) -> Tensor:
    """Zero mean and unit variance over each utterance's valid samples, in fp32 or wider; padding becomes zero."""
    return standardise(wide(waveforms_BN)[:, None], lengths_B, epsilon)[:, 0]


PRIOR = (8000.0, 0.0, 0.06)
"""Running statistics of a waveform begin as if so many samples had come before, with this mean and standard deviation
(of 300 utterances of ten corpora)."""
CHANNEL_PRIOR = (8.0, 0.0, 0.1)
"""The same for a channel of the first convolution: without it, one frame alone would have no variance."""


def before_waveform(waveforms_BN: Tensor) -> Tensor:
    """The moments before the first sample, 3 x B x 1."""
    return prior_moments(waveforms_BN, (waveforms_BN.shape[0], 1), *PRIOR)


def normalize_running(
    waveforms_BN: Tensor, mask_BN: Tensor | None, before_3B1: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Each sample by mean and variance of the valid samples so far, and the moments after the last; padding becomes
    zero."""
    x_B1N, moments_3B1 = standardise_running(wide(waveforms_BN)[:, None], mask_BN, before_3B1, epsilon)
    if mask_BN is not None:
        x_B1N = x_B1N * mask_BN[:, None].to(x_B1N.dtype)
    return x_B1N[:, 0], moments_3B1


class ChannelNorm(nn.GroupNorm):
    """Group norm with one group a channel, whose statistics cover valid frames only (``running``: those so far), in
    fp32 whatever the model's type."""

    def __init__(self, channels: int, running: bool = False):
        super().__init__(channels, channels)
        self.running = running

    def before(self, x_BCT: Tensor) -> Tensor:
        """The moments before the first frame, 3 x B x C."""
        return prior_moments(x_BCT, (x_BCT.shape[0], x_BCT.shape[1]), *CHANNEL_PRIOR)

    def normalise_running(self, x_BCT: Tensor, mask_BT: Tensor | None, before_3BC: Tensor) -> tuple[Tensor, Tensor]:
        """Frames by the statistics of the valid ones so far, and the moments after the last."""
        with full_precision(x_BCT.device):
            x_BCT, moments_3BC = standardise_running(wide(x_BCT), mask_BT, before_3BC, self.eps)
            x_BCT = x_BCT * wide(self.weight)[:, None] + wide(self.bias)[:, None]
            return x_BCT.to(self.weight.dtype), moments_3BC

    def forward(self, x_BCT: Tensor, lengths_B: Tensor | None) -> Tensor:  # type: ignore[override]
        if self.running:
            mask_BT = None if lengths_B is None else valid_mask(lengths_B, x_BCT.shape[-1])
            return self.normalise_running(x_BCT, mask_BT, self.before(x_BCT))[0]
        with full_precision(x_BCT.device):
            x_BCT, weight_C, bias_C = wide(x_BCT), wide(self.weight), wide(self.bias)
            if lengths_B is None:
                if x_BCT.shape[-1] == 1:  # one frame alone has no variance, which torch refuses: it is its own mean
                    return bias_C[:, None].expand_as(x_BCT).to(self.weight.dtype)
                return F.group_norm(x_BCT, self.num_groups, weight_C, bias_C, self.eps).to(self.weight.dtype)
            # products, which onnxruntime computes several times faster than selections
            mask_B1T = valid_mask(lengths_B, x_BCT.shape[-1])[:, None].to(x_BCT.dtype)
            count_B11 = lengths_B[:, None, None].to(x_BCT.dtype)
            centred_BCT = (x_BCT - (x_BCT * mask_B1T).sum(-1, keepdim=True) / count_B11) * mask_B1T
            variance_BC1 = centred_BCT.square().sum(-1, keepdim=True) / count_B11
            scale_BC1 = torch.rsqrt(variance_BC1 + self.eps) * weight_C[:, None]
            return torch.addcmul(bias_C[:, None], centred_BCT, scale_BC1).to(self.weight.dtype)


class FrameNorm(nn.LayerNorm):
    """LayerNorm over the channels of each frame of a B x C x T tensor."""

    def forward(self, x_BCT: Tensor, lengths_B: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(x_BCT.transpose(1, 2)).transpose(1, 2)


class FrontEnd(nn.Module):
    """Convolutions, norms and GELUs, then LayerNorm and projection to the encoder's width (wav2vec 2.0, section 2).

    The convolutions read the waveform, or log-mel frames (as MelHuBERT and others do for a fraction of the time).
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.padded = config.frontend == "mel"
        running = config.statistics == "running"
        self.mel = LogMel(config.mel_bins, running) if self.padded else None
        convs: list[nn.Module] = []
        norms: list[nn.Module] = []
        previous = config.conv_input_channels
        for i, (channels, kernel, stride) in enumerate(config.conv_layers):
            padding = kernel // 2 if self.padded else 0
            convs.append(nn.Conv1d(previous, channels, kernel, stride, padding, bias=config.conv_bias))
            if config.conv_norm == "layer":
                norms.append(FrameNorm(channels))
            elif i == 0:
                norms.append(ChannelNorm(channels, running))
            previous = channels
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)
        # what gates left behind is no weight to train: DPHuBERT's code freezes it too (components.py, dummy_weight)
        self.scale = nn.Parameter(torch.ones(previous), requires_grad=False) if config.feature_scale else None
        self.norm = nn.LayerNorm(previous, eps=config.norm_epsilon) if config.projection_norm else None
        self.projection = nn.Linear(previous, config.width) if config.projection else None

    def forward(self, waveforms_BN: Tensor, lengths_B: Tensor | None) -> Tensor:
        """B x N waveforms to B x T x D. ``lengths_B`` (samples) limits the norms' statistics; None takes all samples as
        valid."""
        config = self.config
        lengths_B = None if lengths_B is None else config.conv_inputs(lengths_B)
        x_BCT = waveforms_BN[:, None] if self.mel is None else self.mel(waveforms_BN, lengths_B)
        x_BCT = x_BCT.to(cast(nn.Conv1d, self.convs[0]).weight.dtype)
        for i, conv in enumerate(self.convs):
            if i and self.padded and lengths_B is not None:  # after an utterance's end as after a batch's
                x_BCT = x_BCT.masked_fill(~valid_mask(lengths_B, x_BCT.shape[-1])[:, None], 0.0)
            x_BCT = conv(x_BCT)
            if lengths_B is not None:
                lengths_B = config.conv_outputs(i, lengths_B)
            if i < len(self.norms):
                x_BCT = self.norms[i](x_BCT, lengths_B)
            x_BCT = F.gelu(x_BCT)
        return self.project(x_BCT)

    def project(self, x_BCT: Tensor) -> Tensor:
        """What follows the last convolution: B x T x D."""
        config = self.config
        if self.training and config.feature_gradient != 1.0 and x_BCT.requires_grad:
            x_BCT = x_BCT.detach() if config.feature_gradient == 0.0 else scale_gradient(x_BCT, config.feature_gradient)
        x_BTC = x_BCT.transpose(1, 2)
        if self.scale is not None:
            x_BTC = x_BTC * self.scale
        if self.norm is not None:
            x_BTC = self.norm(x_BTC)
        return x_BTC if self.projection is None else self.projection(x_BTC)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values, bit for bit; the gradient times ``factor``."""
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * factor)
    return x
