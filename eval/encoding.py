"""A task's audio to its features: by the task itself, or before, in shares, by several jobs that fill the one cache.

A share is of the cache's keys, which are digests of all that decides a feature: what two tasks have in common is in one
job's share alone, and shares are about equal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from star_upstream import cluster
from star_upstream.audio import RATE
from star_upstream.say import say

from .features import encode
from .features.exact import Padded
from .features.upstreams import Upstream
from .heads.probe import Schedule, Task


def features_of(
    task: Task,
    table: pd.DataFrame,
    schedule: Schedule,
    upstream: Upstream,
    store: encode.Store,
    exact: bool,
    mine: encode.Mine | None = None,
) -> encode.Means | encode.Frames | Padded:
    """The task's features of ``table``: encoded here and kept, or with every batch; with ``mine`` a share of them, for
    the cache."""
    means = task.features == "means"
    crop_seconds = task.crop_seconds if means and not exact else None
    windows = encode.windows(table, crop_seconds, schedule.crops)
    minutes = f"{table['samples'].sum() / RATE / 60:.1f} minutes"
    seconds = schedule.crop_seconds or task.crop_seconds
    longest = round(seconds * RATE) if seconds else None
    if exact:
        say(f"{task.name}: {len(windows)} utterances, {minutes}, to be encoded at every step")
        return Padded(windows, upstream, task.effects, longest, task.eval_batch)
    encode.settle(windows, upstream, task.effects)
    say(f"{task.name}: encoding {'a share of ' if mine else ''}{sum(map(len, windows))} windows, {minutes}")
    if means:
        return encode.Means(windows, upstream, store, task.effects, mine)
    crop = upstream.frames(longest) if longest else None
    return encode.Frames(windows, upstream, store, task.effects, crop, mine)


def encoded(work: Callable[[str], list[str]], count: int, out: Path, launch: cluster.Launch, gpus: int) -> None:
    """``count`` jobs, each of which does ``work`` for its share; what they could not do is left to the tasks."""
    names = [f"{number}-of-{count}" for number in range(1, count + 1)]
    ended = cluster.each(work, names, out, launch, "star-encode", gpus, lambda name: out / f"encoding-{name}.log")
    for i, one in enumerate(ended, 1):
        why = [one.why] if one.why else one.result
        how = f"failed: {'; '.join(why)}; see {one.log}" if why else "done"
        say(f"encoding {one.name}: {how} ({i} of {count})")


def of_share(name: str) -> encode.Mine:
    """Whether a key is of the share ``NUMBER-of-COUNT``."""
    number, count = map(int, name.split("-of-"))
    return lambda key: int(key[:12], 16) % count == number - 1
