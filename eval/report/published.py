"""Rows of published.csv by name."""

from __future__ import annotations

import csv
from difflib import get_close_matches
from pathlib import Path

from star_upstream.errors import StarError

FILE = Path(__file__).with_name("published.csv")


def select(names: str) -> list[dict[str, str]]:
    """The rows of ``names`` (commas between, case ignored, names that hold a comma included), in the order asked for.

    ``all``: every row. A name with several rows, such as one a training corpus, gives them all. Raises
    :class:`StarError` for a name that is not there.
    """
    with FILE.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if names.strip().casefold() == "all":
        return rows
    known = {row["model"].casefold(): row["model"] for row in rows}
    wanted: dict[str, None] = {}
    parts = names.split(",")
    while parts:
        for count in range(len(parts), 0, -1):
            word = ",".join(parts[:count]).strip().casefold()
            if word in known:
                wanted[known[word]] = None
                break
        else:
            word, count = parts[0].strip(), 1
            if word:
                raise StarError(f"--with {word}: not in {FILE.name}{_hint(word, known)}")
        del parts[:count]
    if not wanted:
        raise StarError(f"--with: no name given; for example --with {rows[0]['model']}")
    return [row for name in wanted for row in rows if row["model"] == name]


def _hint(word: str, known: dict[str, str]) -> str:
    inside = [key for key in known if word.casefold() in key]
    close = get_close_matches(word.casefold(), known, n=1, cutoff=0.5) or inside[:1]
    return f"; did you mean {known[close[0]]!r}?" if close else f"; it has {', '.join(list(known.values())[:8])}, ..."
