"""Several tasks at once, each in a process or a job of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_upstream import cluster, cores
from star_upstream.say import say


@dataclass(frozen=True)
class Failure:
    """A task without a record."""

    message: str
    log: Path | None
    """None where the input is to blame, and the message says it all."""


Result = dict[str, Any] | Failure
"""A task's record, or why there is none."""


def launched(
    work: Callable[[str], Result], names: Sequence[str], out: Path, launch: cluster.Launch, gpus: int
) -> dict[str, Result]:
    """``work`` of each task's name, by name; what each says is in its own log."""
    if names and not launch.away:
        count = min(launch.jobs, len(names), cores.available())
        say(f"{count} tasks at once; what they say is in {out}/TASK.log")
    results: dict[str, Result] = {}
    logs = {name: out / f"{name}.log" for name in names}
    for one in cluster.each(work, names, out, launch, "star-eval", gpus, logs.__getitem__):
        result = results[one.name] = Failure(one.why, one.log) if one.why else one.result
        how = f"failed: {result.message}" if isinstance(result, Failure) else "done"
        say(f"{one.name}: {how} ({len(results)} of {len(names)})")
    return results
