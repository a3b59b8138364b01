"""SIGTERM, and Slurm's warning before it takes a machine back (SIGUSR1), end a run in order: its state is written."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.utils.data import DataLoader

from ..say import say

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from .run_folder import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Request:
    """The signal that came, if one did."""

    name = ""

    def came(self, fabric: Fabric) -> bool:
        """Whether one came to any process."""
        here = torch.tensor(float(bool(self.name)), device=fabric.device)
        return bool(fabric.all_reduce(here, reduce_op="max"))

    def end(self, folder: RunFolder, update: int) -> NoReturn:
        """End this process as one that has done its work, once the state of ``update`` is written."""
        if folder.lead:
            why = f"stopped by {self.name or 'a signal to another process'} after update {update}"
            say(f"{folder.path}: {why}, its state is written; to go on: {command()}")
        raise SystemExit(0)


@contextmanager
def listening() -> Iterator[Request]:
    """Inside, the signals only make a note; afterwards they do what they did before."""
    request = Request()

    def note(number: int, _) -> None:
        request.name = signal.Signals(number).name

    try:
        before = {number: signal.signal(number, note) for number in SIGNALS}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def batches(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The batches of a loader. Its workers take no notice of signals: what is sent to all processes is for the training
    alone. They end with this, after an error too: Python would tell them by SIGTERM, and wait for ever."""
    loader.worker_init_fn = _ignore
    found = iter(loader)
    try:
        yield found
    finally:
        if end := getattr(found, "_shutdown_workers", None):
            end()


def _ignore(worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def command() -> str:
    """The command that this process was started with, as one types it."""
    program = Path(sys.argv[0])
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])
