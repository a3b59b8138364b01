"""How far a training is: a bar on a terminal; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from ..say import say

COLUMNS = {"train/loss": "loss {:.4g}", "valid/loss": "valid {:.4g}", "learning_rate": "lr {:.2g}"}


class Progress:
    """Nothing is shown unless ``shown``."""

    def __init__(self, label: str, shown: bool, every_seconds: float = 15.0):
        self.label, self.shown, self.every = label, shown, every_seconds
        self.bar: Any = None
        self.printed: float | None = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            columns = (
                SpinnerColumn(),
                BarColumn(16),
                TextColumn("{task.percentage:.0f} %"),
                *times,
                TextColumn("{task.description}"),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=False)
            self.task = self.bar.add_task(f"{self.label}waiting for the first update", total=1.0)
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, share: float, line: str) -> None:
        """After an update: how much of the run has passed, and the :func:`line` that says so."""
        if self.bar is not None:
            self.bar.update(self.task, completed=min(1.0, share), description=line)
        elif self.printed is None or time.monotonic() - self.printed > self.every:
            # the first line comes at once, so that a file shows, too, that the run is alive and how fast
            self._print(share, line)

    def validating(self, line: str) -> None:
        """Before a validation."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"{line}  validating")

    def validated(self, share: float, line: str) -> None:
        """After a validation."""
        if self.bar is None:
            self._print(share, line)

    def _print(self, share: float, line: str) -> None:
        if self.shown:
            self.printed = time.monotonic()
            say(f"{min(1.0, share):4.0%}  {line}")


def line(label: str, update: int, row: Mapping[str, Any], speed: float, note: str) -> str:
    """How far a run is; ``row``: the latest value of every column of its log."""
    parts = [text.format(row[name]) for name, text in COLUMNS.items() if name in row]
    words = [f"{label}update {update}", *parts, note, f"{speed:.3g} s of audio a second" if speed else ""]
    return "  ".join(word for word in words if word)
