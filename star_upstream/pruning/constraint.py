"""The augmented Lagrangian that steers the expected sparsity to its target (Wang, Wohlwend, Lei 2020; DPHuBERT, section
2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparsityConstraint(nn.Module):
    """``linear * (s - t) + quadratic * (s - t)^2``: minimised over the gates, maximised over the two multipliers.

    The optimizer must ascend in this module's parameters (a group with ``maximize=True``). The linear one starts at 0,
    the quadratic one where it is told to (DPHuBERT: 0 too).
    """

    def __init__(self, quadratic: float = 0.0):
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.tensor(quadratic))

    def forward(self, sparsity: Tensor, target: float) -> Tensor:
        """The penalty, a scalar in fp32."""
        gap = (sparsity - target).float()
        return self.linear * gap + self.quadratic * gap.square()


def target_at(share: float, target: float, warmup: float) -> float:
    """The target when ``share`` of the stage has passed: it rises linearly from 0 during ``warmup``, a share of the
    stage."""
    return target if share >= warmup else target * share / warmup
