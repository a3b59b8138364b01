"""Means of a loss and its terms over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .fabric import everyones

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Means:
    """Sums of values by name, each with what its summands count together (``sums``: name to the pair)."""

    def __init__(self, sums: Mapping[str, Any] | None = None):
        self.sums = {name: np.array(pair, dtype=np.float64) for name, pair in (sums or {}).items()}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """A term called ``loss`` takes the loss's place."""
        for name, value in {"loss": loss, **terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + np.array([float(value.detach()) * weight, weight])

    def share(self, fabric: Fabric) -> None:
        """Replace each process's sums by their mean over processes; one process may have names that another has not."""
        shares = everyones(fabric, self.sums)
        names = sorted({name for one in shares for name in one})
        self.sums = {n: np.sum([one[n] for one in shares if n in one], axis=0) / len(shares) for n in names}

    def row(self, part: str) -> dict[str, float]:
        """The means, as ``part/name``; the loss first."""
        names = sorted(self.sums, key=lambda name: (name != "loss", name))
        return {f"{part}/{name}": float(self.sums[name][0] / self.sums[name][1]) for name in names}

    def state(self) -> dict[str, list[float]]:
        return {name: pair.tolist() for name, pair in self.sums.items()}
