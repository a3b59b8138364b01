"""How many CPU cores there are for this process, and how they are divided among processes, torch's threads and data
workers.

All of them together never ask for more than there are: more threads than cores take turns, and each waits for the
others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = "STAR_CORES"
"""Environment variable: at most so many, for a process that runs beside others of ours."""


def available(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: by affinity, by the container's quota (cgroup 1 and 2) and by ``STAR_CORES``; at
    least one."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    if os.environ.get(LIMIT, "").isdigit():
        counts.append(int(os.environ[LIMIT]))
    for folder, quota, period in (("", "cpu.max", None), ("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = (cgroup / folder / quota).read_text().split()
            words += (cgroup / folder / period).read_text().split() if period else []
            counts.append(math.ceil(int(words[0]) / int(words[1])))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue  # no such file, or "max": no quota
    return max(1, min(count for count in counts if count > 0))


def divide(workers: int, processes: int = 1, gpu: bool = False) -> tuple[int, int]:
    """Torch threads and data workers for each of ``processes`` trainings side by side, of the ``workers`` that are
    asked for.

    On the CPU the model is what takes time: workers get the cores that torch is not to use (``OMP_NUM_THREADS``), or a
    quarter of all. With a ``gpu`` one core is left for the process itself.
    """
    import torch

    mine = max(1, available() // processes)
    threads = min(1 if gpu else torch.get_num_threads(), mine)
    workers = min(workers, max(mine // 4, mine - threads))
    return max(1, min(torch.get_num_threads(), mine - workers)), workers


@contextmanager
def divided(workers: int, processes: int, gpu: bool) -> Iterator[int]:
    """:func:`divide` put into effect: the data workers for each of ``processes``, with torch's threads set; afterwards
    those are as they were."""
    import torch

    name = "OMP_NUM_THREADS"
    before, variable = torch.get_num_threads(), os.environ.get(name)
    threads, workers = divide(workers, processes, gpu)
    torch.set_num_threads(threads)
    if processes > 1:
        os.environ[name] = str(threads)  # the other processes begin with it; Lightning would set a number of its own
    try:
        yield workers
    finally:
        torch.set_num_threads(before)
        if processes > 1:
            os.environ.pop(name)
            os.environ.update({} if variable is None else {name: variable})
