"""Learning rate over a run, and the optimizer's groups of parameters."""

from __future__ import annotations

import math
from typing import Any, Iterable

from torch import nn

from .recipe import TrainingConfig


def rate(share: float, config: TrainingConfig) -> float:
    """Learning rate when ``share`` of the run (0 to 1) has passed: a linear rise, then cosine or linear decay to 0, or none."""
    share = min(max(share, 0.0), 1.0)
    if share < config.warmup:
        return config.learning_rate * share / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    left = (1.0 - share) / (1.0 - config.warmup)
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay; biases, norms and other vectors without.

    A group's ``scale`` (1 where it has none) is its learning rate as a multiple of the run's.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
