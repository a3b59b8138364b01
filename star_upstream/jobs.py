"""Named pieces of work side by side, each in a process of its own with a log of its own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from . import cores
from .say import say


@dataclass(frozen=True)
class Ended:
    """How a piece of work ended: its result, or why there is none; and the file of what it said."""

    name: str
    result: Any
    why: str
    log: Path


def side_by_side(
    work: Callable[[str], Any], names: Sequence[str], jobs: int, log: Callable[[str], Path]
) -> Iterator[Ended]:
    """``work(name)`` for each name, at most ``jobs`` at once and no more than there are cores: how each ended, as it
    ends.

    ``work`` and its result must be picklable. What the process prints is added to ``log(name)``. The cores are divided
    among the processes, and none outlives the caller.
    """
    import torch

    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    wanted = min(jobs, len(names))
    jobs = min(wanted, cores.available())
    if jobs < wanted:
        say(f"{wanted} at once were asked for; {jobs} run, as there are cores")
    share = cores.available() // max(1, jobs)
    waiting, running = list(names), dict[Any, Any]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                running[receiver] = context.Process(
                    target=_child, args=(work, name, log(name), share, torch.get_num_threads(), sender), name=name
                )
                running[receiver].start()
                sender.close()  # so that the child's end is the only one, and its death is noticed
            for ready in multiprocessing.connection.wait(list(running)):
                receiver = cast(Connection, ready)
                result, why, process = None, "", running.pop(receiver)
                try:
                    result = receiver.recv()
                except EOFError:
                    process.join()
                    code = process.exitcode
                    why = f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
                process.join()
                yield Ended(process.name, result, why, log(process.name))
    finally:
        for process in running.values():
            process.terminate()


def _child(work: Callable[[str], Any], name: str, log: Path, share: int, threads: int, sender) -> None:
    import torch

    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored, it may be, where the caller was started
    threading.Thread(target=_follow, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ[cores.LIMIT] = str(share)
    torch.set_num_threads(min(threads, share))
    sender.send(work(name))


def _follow(parent) -> None:
    parent.join()
    os._exit(1)
