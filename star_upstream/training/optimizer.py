"""Learning rate over a run, and the optimizer's groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig

ENOUGH = 50
"""Updates that a run needs at least: as far back as AdamW's average of squared gradients reaches (beta 0.98)."""
RISE = 3
"""Updates that the warm-up needs at least: with fewer the learning rate does not rise, it jumps."""
NOT_DECAYED = ("bias", "LayerNorm.weight", "position.shift", "relative_position.embedding")
"""What s3prl looks for in a name (its third word, ``LayerNorm.bias``, holds the first), and what has another name here
than in the authors' modules: ``pos_conv.0.bias`` and ``relative_attention_bias``."""


def enough(config: TrainingConfig) -> int:
    """With fewer updates a run has learned too little to be used."""
    return max(ENOUGH, math.ceil(RISE / config.warmup) if config.warmup else 0)


def too_few(config: TrainingConfig, updates: int) -> str:
    """What is to be said of a run that its budget of time ended after so many updates; empty where they are enough."""
    needed = enough(config)
    if config.minutes is None or updates >= needed:
        return ""
    done = f"{updates} update{'s' * (updates != 1)} in {config.minutes:g} minute{'s' * (config.minutes != 1)}"
    return f"{done}, and a run needs {needed} at least to learn from"


def rate(share: float, config: TrainingConfig) -> float:
    """Learning rate when ``share`` of the run (0 to 1) has passed: a linear rise, then cosine or linear decay to 0, or
    none."""
    share = min(max(share, 0.0), 1.0)
    if share < config.warmup:
        return config.learning_rate * share / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    left = (1.0 - share) / (1.0 - config.warmup)
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, rule: str = "matrices") -> list[dict[str, Any]]:
    """The trained parameters in two groups, with weight decay and without.

    ``rule``: ``matrices``: kernels and matrices have it; biases, norms and other vectors do not. ``s3prl``: all but
    those whose name in the authors' modules holds ``bias`` or ``LayerNorm.weight`` (s3prl v0.4.18, optimizers.py,
    ``get_grouped_parameters``, whatever the configuration file says about weight decay). fairseq's names are
    ``layer_norm.weight``, ``self_attn_layer_norm.weight`` and so on, which do not hold the latter: the weights of all
    norms are decayed, and so is the magnitude of the positional convolution (``weight_g``); the embedding of relative
    positions (``relative_attention_bias.weight``) is not. So trained were DistilHuBERT, FitHuBERT, ARMHuBERT,
    MaskHuBERT and, as far as is known, STaRHuBERT.

    A group's ``scale`` (1 where it has none) is its learning rate as a multiple of the run's.
    """
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                has = parameter.dim() > 1 if rule == "matrices" else not any(word in name for word in NOT_DECAYED)
                (decayed if has else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def adamw(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer; in its fused form but for fp16, whose loss scaler does not go with it on every device."""
    fused = config.precision != "16-mixed"
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
