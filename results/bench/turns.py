"""Times of several things, in turns: a machine's speed drifts, and other work comes and goes.

Round after round each is timed once, in another order each round, and the median over the rounds is its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from star_upstream.analysis import latency

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts this process's time on the cores, all threads together: for one thread on a machine that is busy."""
SIZE = 2048
"""Rows and columns of the matrices whose product says what the machine can reach."""


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each call by that clock."""
    return latency.in_turns(calls, repeats, CLOCKS[clock])


def product(kind: torch.dtype, device: str = "cpu", size: int = SIZE) -> Callable[[], Any]:
    """A product of two square matrices: what the machine can reach, beside what it does."""
    x, y = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return lambda: x @ y


def rate(seconds: float, size: int = SIZE) -> float:
    """Multiply-accumulates a second of :func:`product`, in 1e9."""
    return size**3 / seconds / 1e9


def load() -> str:
    """How busy the machine is with other work."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it ended, this process's share included"
