"""The tasks: each module of this package but this one states a ``TASK``. A new task is a new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from star_upstream.errors import StarError, nearest

if TYPE_CHECKING:  # the help lists the names, and should not wait for torch
    from eval.probe import Task

ORDER = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er")
"""As SUPERB's tables have them."""


def names() -> list[str]:
    """The tasks there are, in SUPERB's order."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def get(name: str) -> Task:
    """The task of that name. Raises :class:`StarError` with the nearest name when there is none."""
    if name not in names():
        raise StarError(f"unknown task {name!r}{nearest(name, names())}; tasks: {', '.join(names())} or all")
    return importlib.import_module(f"{__name__}.{name}").TASK


def parse(text: str) -> list[Task]:
    """The tasks of a comma-separated list, or of ``all``, each once."""
    wanted = names() if text.strip() == "all" else [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise StarError(f"no task given; tasks: {', '.join(names())} or all")
    return [get(name) for name in dict.fromkeys(wanted)]
