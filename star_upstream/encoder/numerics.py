"""What keeps numbers right in reduced precision: fp32 for counts, sums and statistics, and for kernels that are wrong
below it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCED = (torch.bfloat16, torch.float16)

NARROW = 16
"""Channels a group below which a grouped convolution is computed in fp32 on a CPU. torch 2.11's bf16 ``conv1d``
(oneDNN's kernel for AMX) answers with a relative error of 1.1 for 8 channels a group and kernels of 64 and 128; 16, 27
and 48 channels are right (3e-3)."""


def wide(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 where it has it."""
    return x if x.dtype == torch.float64 else x.float()


def valid_mask(lengths_B: Tensor, size: int) -> Tensor:
    """B x size, True where the position is below the utterance's length."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def standardise(x_BCT: Tensor, lengths_B: Tensor | None, epsilon: float) -> Tensor:
    """Zero mean and unit variance over each utterance's channels and valid steps, None for all; padding becomes
    zero."""
    if lengths_B is None:
        return F.layer_norm(x_BCT, x_BCT.shape[1:], eps=epsilon)
    x_BCT = x_BCT.contiguous()  # sums depend on the order in memory
    # products, which onnxruntime computes several times faster than selections
    mask_B1T = valid_mask(lengths_B, x_BCT.shape[-1])[:, None].to(x_BCT.dtype)
    count_B11 = (lengths_B * x_BCT.shape[1])[:, None, None].to(x_BCT.dtype)
    centred_BCT = (x_BCT - (x_BCT * mask_B1T).sum((1, 2), keepdim=True) / count_B11) * mask_B1T
    variance_B11 = centred_BCT.square().sum((1, 2), keepdim=True) / count_B11
    return centred_BCT * torch.rsqrt(variance_B11 + epsilon)


def standardise_running(
    x_BCT: Tensor, mask_BT: Tensor | None, before_3BC: Tensor, epsilon: float, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """Each step less the mean, over the deviation, of all valid steps so far, that step included; and the moments after
    the last one. ``mask_BT``: which steps are valid, None for all.

    The statistics are each channel's own or (``pooled``) those of all channels. before_3BC (pooled: 3 x B x 1) and the
    moments that come back: how many values there were, their sum, and the sum of their squares, in fp64.
    """
    valid_B1T = torch.ones_like(x_BCT[:, :1]) if mask_BT is None else mask_BT[:, None].to(x_BCT.dtype)
    known_BCT = (x_BCT * valid_B1T).double()
    count_BCT, total_BCT, square_BCT = valid_B1T.expand_as(x_BCT), known_BCT, known_BCT.square()
    if pooled:
        count_BCT = valid_B1T * x_BCT.shape[1]
        total_BCT, square_BCT = total_BCT.sum(1, True), square_BCT.sum(1, True)
    moments_3BCT = torch.stack([count_BCT.double(), total_BCT, square_BCT]).cumsum(-1) + before_3BC[..., None]
    count_BCT = moments_3BCT[0].clamp(min=1.0)
    mean_BCT = moments_3BCT[1] / count_BCT
    variance_BCT = (moments_3BCT[2] / count_BCT - mean_BCT.square()).clamp(min=0.0)
    standard_BCT = ((x_BCT - mean_BCT) * torch.rsqrt(variance_BCT + epsilon)).to(x_BCT.dtype)
    return standard_BCT, moments_3BCT[..., -1]


def prior_moments(like: Tensor, shape: tuple[int, int], count: float, mean: float, deviation: float) -> Tensor:
    """3 x B x C, for :func:`standardise_running`: as if ``count`` values had come before the first."""
    values_3 = torch.tensor([count, count * mean, count * (mean**2 + deviation**2)], dtype=torch.float64)
    return values_3.to(like.device)[:, None, None].expand(3, *shape)


def full_precision(device: torch.device | str) -> AbstractContextManager:
    """No autocast inside, on any device: those that have none (``meta``) need nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, enabled=False) if _has_autocast(kind) else nullcontext()


def _has_autocast(kind: str) -> bool:
    # torch.compile cannot look into the question, and compiles for nothing without it
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)


def working_type(x: Tensor) -> torch.dtype:
    """What a matrix product or convolution of ``x`` is computed in here: the autocast's type, else its own."""
    kind = x.device.type
    if x.dtype == torch.float64 or not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def grouped_conv1d(x_BCT: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int) -> Tensor:
    """``F.conv1d``. On a CPU, in fp32 where the kernel of the reduced type is wrong (:data:`NARROW`), or is not there
    at all: what torch falls back to is 5 to 17 times slower than fp32 (width 128 and 768, AVX2). The result has the
    type that the convolution would give.
    """
    kind = working_type(x_BCT)
    sound = kind not in REDUCED or x_BCT.device.type != "cpu" or (weight.shape[1] >= NARROW and _has_kernels(kind))
    if sound:
        return F.conv1d(x_BCT, weight, bias, padding=padding, groups=groups)
    with full_precision(x_BCT.device):
        return F.conv1d(wide(x_BCT), wide(weight), wide(bias), padding=padding, groups=groups).to(kind)


@cache
def _has_kernels(kind: torch.dtype) -> bool:
    """Whether oneDNN has convolutions of this type for this CPU."""
    name = "_is_mkldnn_bf16_supported" if kind == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    try:
        return bool(getattr(torch.ops.mkldnn, name)())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False
