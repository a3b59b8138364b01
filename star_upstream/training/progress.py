"""How far a training is: a bar on a terminal; elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..say import say

COLUMNS = {"train/loss": "loss {:.4g}", "valid/loss": "valid {:.4g}", "learning_rate": "lr {:.2g}"}


class Progress:
    """``loop`` is asked for ``share``, ``update``, ``row``, ``speed`` and ``training``; nothing is shown unless
    ``shown``."""

    def __init__(self, loop: Any, shown: bool, every_seconds: float = 15.0):
        self.loop, self.shown, self.every = loop, shown, every_seconds
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
            self.task = self.bar.add_task(f"{self.loop.training.label}waiting for the first update", total=1.0)
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        """After an update."""
        if self.bar is not None:
            self.bar.update(self.task, completed=min(1.0, self.loop.share), description=self._line())
        elif self.printed is None or time.monotonic() - self.printed > self.every:
            # the first line comes at once, so that a file shows, too, that the run is alive and how fast
            self._print()

    def validating(self) -> None:
        """Before a validation."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self._line()}  validating")

    def validated(self) -> None:
        """After a validation."""
        if self.bar is None:
            self._print()

    def _print(self) -> None:
        if self.shown:
            self.printed = time.monotonic()
            say(f"{min(1.0, self.loop.share):4.0%}  {self._line()}")

    def _line(self) -> str:
        row, training = self.loop.row, self.loop.training
        parts = [text.format(row[name]) for name, text in COLUMNS.items() if name in row]
        speed = row.get("audio_seconds_per_second") or self.loop.speed
        words = [f"{training.label}update {self.loop.update}", *parts, training.note(row)]
        words.append(f"{speed:.3g} s of audio a second" if speed else "")
        return "  ".join(word for word in words if word)
