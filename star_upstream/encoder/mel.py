"""Waveform to normalised log-mel frames: a front end that costs a hundredth of HuBERT's convolutions.

Shapes: B utterances, N samples, W samples of a window, M mel frames (10 ms), F frequencies, C mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .numerics import full_precision, prior_moments, standardise, standardise_running, valid_mask, wide

RATE, WINDOW, HOP, POINTS = 16_000, 400, 160, 512
"""25 ms windows every 10 ms: frame 2t is centred on the 400 samples that HuBERT's convolutions see for their frame
t."""
FLOOR = 1e-6
"""Added to the energies before the logarithm: about the energy of the rounding of 16 bit samples."""
EPSILON = 1e-5
"""Added to the variance."""
PRIOR = (50.0, -6.3, 4.0)
"""Running statistics begin as if so many frames had come before, with this mean and standard deviation over all bins:
those of 300 utterances of ten corpora (the mean of a recording deviates by 1.9)."""


def mel_filters(bins: int) -> Tensor:
    """F x C triangular filters from 0 to 8 kHz, equally spaced on the mel scale (O'Shaughnessy's: 2595 log10(1 + f /
    700))."""
    top = 2595.0 * math.log10(1.0 + RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, 1.0, bins + 2, dtype=torch.float64) * top / 2595.0) - 1.0)
    frequencies_F1 = torch.linspace(0.0, RATE / 2, POINTS // 2 + 1, dtype=torch.float64)[:, None]
    rising_FC = (frequencies_F1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_FC = (edges[2:] - frequencies_F1) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising_FC, falling_FC).clamp(min=0.0).float()


class LogMel(nn.Module):
    """B x N waveforms to B x C x M log-mel energies, normalised over each utterance's valid frames.

    The statistics are one mean and one variance an utterance, over all bins: the level of the recording goes, the
    spectrum of voice and channel stays. ``running``: over the frames up to each, which begin with :data:`PRIOR`. One
    learnt scale and offset a bin follows. Always computed in fp32.
    """

    def __init__(self, bins: int, running: bool = False):
        super().__init__()
        self.running = running
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
        x_BCM = self.energies(waveforms_BN)
        mask_BM = None if frames_B is None else valid_mask(frames_B, x_BCM.shape[-1])
        if self.running:
            return self.normalise_running(x_BCM, mask_BM, self.before(x_BCM))[0]
        with full_precision(x_BCM.device):
            return self._scaled(standardise(x_BCM, frames_B, EPSILON), mask_BM)

    def energies(self, waveforms_BN: Tensor) -> Tensor:
        """B x C x M logarithms of the energies, not normalised, in fp32 or wider."""
        with full_precision(waveforms_BN.device):
            energies_BMF = _energies(wide(waveforms_BN), self.window)
            log_BMC: Tensor = (energies_BMF @ self.filters.to(energies_BMF.dtype) + FLOOR).log()
            return log_BMC.transpose(1, 2)

    def before(self, x_BCM: Tensor) -> Tensor:
        """The running statistics' moments before the first frame, 3 x B x 1."""
        count, mean, deviation = PRIOR
        return prior_moments(x_BCM, (x_BCM.shape[0], 1), count * x_BCM.shape[1], mean, deviation)

    def normalise_running(self, x_BCM: Tensor, mask_BM: Tensor | None, before_3B1: Tensor) -> tuple[Tensor, Tensor]:
        """Energies by the statistics of the valid frames so far, and the moments after the last."""
        with full_precision(x_BCM.device):
            x_BCM, moments_3B1 = standardise_running(x_BCM, mask_BM, before_3B1, EPSILON, pooled=True)
            return self._scaled(x_BCM, mask_BM), moments_3B1

    def _scaled(self, x_BCM: Tensor, mask_BM: Tensor | None) -> Tensor:
        x_BCM = x_BCM * wide(self.weight)[:, None] + wide(self.bias)[:, None]
        if mask_BM is not None:
            x_BCM = x_BCM.masked_fill(~mask_BM[:, None], 0.0)
        return x_BCM.to(self.weight.dtype)


def _energies(waveforms_BN: Tensor, window_W: Tensor) -> Tensor:
    """B x M x F: the squared spectrum of every window."""
    if not torch.onnx.is_in_onnx_export():
        spectrum_BMF = torch.fft.rfft(waveforms_BN.unfold(1, WINDOW, HOP) * window_W, POINTS)
        power_BMF: Tensor = spectrum_BMF.real.square() + spectrum_BMF.imag.square()
        return power_BMF
    # ONNX can cut no windows that overlap: the transform's sines and cosines as the kernels of a convolution
    turns_FW = (torch.arange(POINTS // 2 + 1)[:, None] * torch.arange(WINDOW) % POINTS).double() / POINTS
    angle_FW = 2 * torch.pi * turns_FW
    kernels = torch.cat([angle_FW.cos(), angle_FW.sin()]).to(window_W) * window_W
    real_BFM, imaginary_BFM = F.conv1d(waveforms_BN[:, None], kernels[:, None], stride=HOP).chunk(2, 1)
    return (real_BFM.square() + imaginary_BFM.square()).transpose(1, 2)
