"""The one error that users are meant to read."""


class StarError(ValueError):
    """A mistake in the input, said in one line that names the fix. The command line prints it without a traceback and
    exits with 2."""


def nearest(word: str, known) -> str:
    """``"; did you mean 'x'?"`` for the closest of the ``known`` names, or an empty string when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
