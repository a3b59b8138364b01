"""Messages for people, on stderr; what a program may read is printed on stdout."""

from __future__ import annotations

import logging
import sys

LOG = logging.getLogger("star_upstream")
"""What is said goes through it, as INFO: who uses the package from Python silences it with its level, or gives it
handlers of their own, which take the place of stderr."""


class _Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time, which a task in a process of its own has turned into its log."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), end=getattr(record, "end", "\n"), file=sys.stderr, flush=True)


def say(text: str, end: str = "\n") -> None:
    """Say ``text`` at once. ``end=""`` leaves the line open: one that begins with a carriage return takes its place."""
    if not LOG.handlers:
        LOG.addHandler(_Stderr())
        LOG.propagate = False  # or it is said twice where the root logger has a handler
    if LOG.level == logging.NOTSET:
        LOG.setLevel(logging.INFO)
    LOG.info("%s", text, extra={"end": end})
