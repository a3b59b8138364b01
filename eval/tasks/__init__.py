"""The tasks. Each module of this package but this one states a ``TASK``: a new task is a new file.

A task of another package is added by :func:`register`, or is found by its name where that package is installed and
declares an entry point ``mine = my_package.my_task:TASK`` of the group ``star_upstream.tasks`` (which ``--jobs`` needs:
its processes know no more than what is installed). Its corpus comes the same way:
:func:`star_upstream.data.corpora.register`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from star_upstream.errors import StarError, nearest

if TYPE_CHECKING:  # the help lists the names, and should not wait for torch
    from ..heads.probe import Metric, Task

GROUP = "star_upstream.tasks"
ORDER = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er")
"""As SUPERB's tables have them."""
_REGISTERED: dict[str, Task] = {}


def names() -> list[str]:
    """The tasks there are: SUPERB's in its order, then others by name."""
    found = {*_files(), *_REGISTERED, *entry_points(group=GROUP).names}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def register(task: Task) -> None:
    """Add a task from outside this package. Raises :class:`StarError` for a name, or a metric, that another task
    has."""
    if _REGISTERED.get(task.name) is task:
        return
    if task.name in _REGISTERED or task.name in _files():
        raise StarError(f"task {task.name!r}: is there already; choose another name")
    taken = {metric.name for name in (*_files(), *_REGISTERED) for metric in get(name).metrics}
    for metric in task.metrics:
        if metric.name in taken:
            raise StarError(f"task {task.name!r}: metric {metric.name!r} is another task's; choose another name")
    _REGISTERED[task.name] = task


def get(name: str) -> Task:
    """The task of that name. Raises :class:`StarError` with the nearest name when there is none."""
    if name in _files():
        return importlib.import_module(f"{__name__}.{name}").TASK
    if name not in _REGISTERED:
        for entry in entry_points(group=GROUP, name=name):
            try:
                task = entry.load()
            except Exception as error:
                raise StarError(
                    f"task {name!r}: {entry.value} cannot be loaded ({error}); mend or uninstall it"
                ) from error
            if task.name != name:
                raise StarError(f"task {name!r}: the entry point's task calls itself {task.name!r}; use one name")
            register(task)
    if name not in _REGISTERED:
        raise StarError(f"unknown task {name!r}{nearest(name, names())}; tasks: {', '.join(names())} or all")
    return _REGISTERED[name]


def parse(text: str) -> list[Task]:
    """The tasks of a comma-separated list, or of ``all``, each once."""
    wanted = names() if text.strip() == "all" else [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise StarError(f"no task given; tasks: {', '.join(names())} or all")
    return [get(name) for name in dict.fromkeys(wanted)]


def metrics() -> dict[str, Metric]:
    """Every task's metrics by name, in the order of the tasks."""
    return {metric.name: metric for name in names() for metric in get(name).metrics}


@functools.cache
def _files() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))
