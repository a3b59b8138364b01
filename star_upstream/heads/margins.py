"""Classification losses on one vector an utterance. theta_j is the angle between vector x and class weight w_j.

- cross entropy: logits x W' + b
- angular softmax (A-Softmax, SphereFace: Liu et al., CVPR 2017, equation 6): weights of length 1, no bias; logit of the
  true class |x| psi(theta), psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]; of the
  others |x| cos theta
- additive angular margin (ArcFace: Deng et al., CVPR 2019, equation 3): s cos(theta + m) for the true class, s cos
  theta for the others

Shapes: B utterances, E channels of the vector, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.task_config import TaskConfig
from ..encoder.numerics import wide

ANGULAR_MARGIN, ADDITIVE_MARGIN, ADDITIVE_SCALE = 2, 0.2, 30.0
"""What a recipe's None stands for; ours, the paper prints none."""


class CrossEntropy(nn.Module):
    """One linear layer with bias."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def logits(self, x_BE: Tensor) -> Tensor:
        return F.linear(x_BE, wide(self.linear.weight), wide(self.linear.bias))

    def forward(self, x_BE: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the logits without margin (B x C)."""
        logits_BC = self.logits(x_BE)
        return F.cross_entropy(logits_BC, targets_B), logits_BC


class Angular(nn.Module):
    """Angular softmax. ``scale`` None keeps the vector's length; ``relax`` is SphereFace's lambda: the true class's
    factor becomes (lambda cos theta + psi) / (1 + lambda)."""

    def __init__(
        self, width: int, classes: int, margin: float = ANGULAR_MARGIN, scale: float | None = None, relax: float = 0.0
    ):
        super().__init__()
        self.margin, self.scale, self.relax = margin, scale, relax
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_uniform_(self.weight)

    def logits(self, x_BE: Tensor) -> Tensor:
        return self._length(x_BE) * cosines(x_BE, self.weight)

    def _length(self, x_BE: Tensor) -> Tensor | float:
        return x_BE.norm(dim=1, keepdim=True) if self.scale is None else self.scale

    def forward(self, x_BE: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the logits without margin (B x C)."""
        cosines_BC, length_B1 = cosines(x_BE, self.weight), self._length(x_BE)
        true_B1 = self.with_margin(cosines_BC.gather(1, targets_B[:, None]))
        with_margin_BC = length_B1 * cosines_BC.scatter(1, targets_B[:, None], true_B1)
        return F.cross_entropy(with_margin_BC, targets_B), length_B1 * cosines_BC

    def with_margin(self, true_B1: Tensor) -> Tensor:
        """What takes the place of the true class's cosine."""
        return (self.relax * true_B1 + psi(true_B1, int(self.margin))) / (1.0 + self.relax)


class AdditiveAngular(Angular):
    """Additive angular margin. Where theta + m would pass pi the logit goes on falling as s (cos theta - m sin m), so
    that a larger angle never scores higher."""

    def __init__(self, width: int, classes: int, margin: float = ADDITIVE_MARGIN, scale: float = ADDITIVE_SCALE):
        super().__init__(width, classes, margin, scale)

    def with_margin(self, true_B1: Tensor) -> Tensor:
        sine_B1 = (1.0 - true_B1.square()).clamp(min=1e-12).sqrt()
        moved_B1 = true_B1 * math.cos(self.margin) - sine_B1 * math.sin(self.margin)
        beyond_B1 = true_B1 - self.margin * math.sin(self.margin)
        return torch.where(true_B1 > -math.cos(self.margin), moved_B1, beyond_B1)


def psi(cosine: Tensor, margin: int) -> Tensor:
    """(-1)^k cos(m theta) - 2k of cos theta: cos(m theta) at m = 1 to 4 made to fall over the whole half circle."""
    # the angle only says in which piece it lies; the value is a polynomial of the cosine (Chebyshev's), whose gradient
    # is finite
    piece = (margin * torch.acos(cosine.detach().clamp(-1.0, 1.0)) / math.pi).floor().clamp(0, margin - 1)
    c2 = cosine.square()
    multiple = {1: cosine, 2: 2 * c2 - 1, 3: (4 * c2 - 3) * cosine, 4: 8 * c2 * (c2 - 1) + 1}[margin]
    return (1.0 - 2.0 * (piece % 2)) * multiple - 2.0 * piece


def cosines(x_BE: Tensor, weight_CE: Tensor) -> Tensor:
    """B x C, in fp32 or wider."""
    return F.linear(F.normalize(wide(x_BE), dim=1), F.normalize(wide(weight_CE), dim=1))


def make(task: TaskConfig, width: int, classes: int) -> nn.Module:
    """The loss that a task names."""
    if task.loss == "cross_entropy":
        return CrossEntropy(width, classes)
    if task.loss == "angular":
        return Angular(width, classes, int(task.margin or ANGULAR_MARGIN), task.scale, task.relax)
    margin = ADDITIVE_MARGIN if task.margin is None else task.margin
    return AdditiveAngular(width, classes, margin, task.scale or ADDITIVE_SCALE)
