"""Times of several things, in turns: a machine's speed drifts, and other work comes and goes.

Round after round each is timed once, in another order each round, and the median over the rounds is its time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts this process's time on the cores, all threads together: for one thread on a machine that is busy."""


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` rounds after one to warm up."""
    now = CLOCKS[clock]
    names, taken = list(calls), {name: list[float]() for name in calls}
    for round_ in range(repeats + 1):
        for i in range(len(names)):
            name = names[(i + round_) % len(names)]
            start = now()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                taken[name].append(now() - start)
    return taken


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product(kind: torch.dtype, device: str = "cpu", size: int = 1024) -> Callable[[], Any]:
    """A product of two square matrices: what the machine can reach, beside what it does."""
    x, y = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return lambda: x @ y


def rate(seconds: float, size: int = 1024) -> float:
    """Multiply-accumulates a second of :func:`product`, in 1e9."""
    return size**3 / seconds / 1e9


def median(times: list[float]) -> float:
    return statistics.median(times)


def load() -> str:
    """How busy the machine is with other work."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores when it ended, this process's share included"
