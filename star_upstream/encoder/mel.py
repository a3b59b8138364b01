"""Waveform to normalised log-mel frames: a front end that costs a hundredth of HuBERT's convolutions.

Shapes: B utterances, N samples, W samples of a window, M mel frames (10 ms), F frequencies, C mel bins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .numerics import full_precision, wide

RATE, WINDOW, HOP, POINTS = 16_000, 400, 160, 512
"""25 ms windows every 10 ms: frame 2t is centred on the 400 samples that HuBERT's convolutions see for their frame
t."""
FLOOR = 1e-6
"""Added to the energies before the logarithm: about the energy of the rounding of 16 bit samples."""


def valid_mask(lengths_B: Tensor, size: int) -> Tensor:
    """B x size, True where the position is below the utterance's length."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def mel_filters(bins: int) -> Tensor:
    """F x C triangular filters from 0 to 8 kHz, equally spaced on the mel scale (O'Shaughnessy's: 2595 log10(1 + f /
    700))."""
    top = 2595.0 * torch.log10(torch.tensor(1.0 + RATE / 2 / 700.0, dtype=torch.float64))
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, 1.0, bins + 2, dtype=torch.float64) * top / 2595.0) - 1.0)
    frequencies_F1 = torch.linspace(0.0, RATE / 2, POINTS // 2 + 1, dtype=torch.float64)[:, None]
    rising_FC = (frequencies_F1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_FC = (edges[2:] - frequencies_F1) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising_FC, falling_FC).clamp(min=0.0).float()


class LogMel(nn.Module):
    """B x N waveforms to B x C x M log-mel energies, with zero mean and unit variance over each utterance's valid
    frames.

    The statistics are one mean and one variance an utterance, over all bins: the level of the recording goes, the
    spectrum of voice and channel stays. One learnt scale and offset a bin follows. Always computed in fp32.
    """

    def __init__(self, bins: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(bins)), nn.Parameter(torch.zeros(bins))
        # constants: in no checkpoint
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(bins), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMel:
        """As of every module, but the constants stay in fp32 when the model is brought to a reduced type."""
        super()._apply(fn, recurse)
        self.window = torch.hann_window(WINDOW, device=self.weight.device)
        self.filters = mel_filters(len(self.weight)).to(self.weight.device)
        return self

    def forward(self, waveforms_BN: Tensor, frames_B: Tensor | None) -> Tensor:
        """``frames_B``: valid mel frames of each utterance, None for all; the others come out as 0."""
        with full_precision(waveforms_BN.device):
            windows_BMW = wide(waveforms_BN).unfold(1, WINDOW, HOP) * self.window
            energies_BMF = torch.fft.rfft(windows_BMW, POINTS).abs().square()
            x_BCM = (energies_BMF @ self.filters.to(energies_BMF.dtype) + FLOOR).log().transpose(1, 2)
            x_BCM = _standardise(x_BCM, frames_B)
            x_BCM = x_BCM * wide(self.weight)[:, None] + wide(self.bias)[:, None]
            if frames_B is not None:
                x_BCM = x_BCM.masked_fill(~valid_mask(frames_B, x_BCM.shape[-1])[:, None], 0.0)
        return x_BCM.to(self.weight.dtype)


def _standardise(x_BCM: Tensor, frames_B: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over bins and valid frames."""
    if frames_B is None:
        return F.layer_norm(x_BCM, x_BCM.shape[1:], eps=epsilon)
    mask_B1M = valid_mask(frames_B, x_BCM.shape[-1])[:, None]
    count_B11 = (frames_B * x_BCM.shape[1])[:, None, None].to(x_BCM.dtype)
    centred_BCM = (x_BCM - x_BCM.masked_fill(~mask_B1M, 0.0).sum((1, 2), keepdim=True) / count_B11).masked_fill(
        ~mask_B1M, 0.0
    )
    variance_B11 = centred_BCM.square().sum((1, 2), keepdim=True) / count_B11
    return centred_BCM * torch.rsqrt(variance_B11 + epsilon)
