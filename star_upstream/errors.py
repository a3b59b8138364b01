"""The one error that users are meant to read, and how others are said in a line."""

import errno
import os
import re

_UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


class StarError(ValueError):
    """A mistake in the input, said in one line that names the fix. The command line prints it without a traceback and
    exits with 2."""


class Unwritten(StarError, OSError):
    """A file could not be written."""


def nearest(word: str, known) -> str:
    """``"; did you mean 'x'?"`` for the closest of the ``known`` names, or an empty string when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unwritten(error: BaseException) -> str | None:
    """Why a file could not be written (a full disk, a quota, no permission, a name too long), as safetensors, torch and
    Python say it; None for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _UNWRITTEN else None
    text = str(error)
    if (number := re.search(r"\(os error (\d+)\)", text)) and int(number[1]) in _UNWRITTEN:
        return os.strerror(int(number[1]))
    return "the disk may be full" if "PytorchStreamWriter failed" in text or "inline_container.cc" in text else None
