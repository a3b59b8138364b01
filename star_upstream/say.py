"""Messages for people, on stderr; what a program may read is printed on stdout."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from .errors import StarError, unwritten

LOG = logging.getLogger("star_upstream")
"""What is said goes through it, as INFO: who uses the package from Python silences it with its level, or gives it
handlers of their own, which take the place of stderr."""


class _Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time, which a task in a process of its own has turned into its log."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), end=getattr(record, "end", "\n"), file=sys.stderr, flush=True)


def say(text: str, end: str = "\n") -> None:
    """Say ``text`` at once. ``end=""`` leaves the line open."""
    if not LOG.handlers:
        LOG.addHandler(_Stderr())
        LOG.propagate = False  # or it is said twice where the root logger has a handler
    if LOG.level == logging.NOTSET:
        LOG.setLevel(logging.INFO)
    LOG.info("%s", text, extra={"end": end})


def progress(text: str, last: bool = False) -> None:
    """How far something is: on a terminal each takes the place of the one before, elsewhere only the last is said."""
    if sys.stderr.isatty():
        say(f"\r{text}", end="\n" if last else "")
    elif last:
        say(text)


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Around a command: where the reader of its stdout has gone (``star recipes | head -1``), it ends without a word,
    with the status that the signal would give (141). A full disk, or a place that one may not write, is one line."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # some other pipe
        _mute()
        sys.exit(141)
    except OSError as error:
        if (said := unwritten(error)) is None:
            raise
        _mute()
        say(f"error: {error.filename or 'output'}: {said}")
        sys.exit(2)


def _mute() -> None:
    """Python flushes stdout once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # no file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` as a program: it ends with its status, and with one line and 2 for a mistake in the input."""
    with quiet_pipe():
        try:
            sys.exit(main())
        except StarError as error:
            say(f"error: {error}")
            sys.exit(2)
