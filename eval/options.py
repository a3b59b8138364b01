"""What ``star-eval run`` is told, besides how it starts its tasks (:class:`star_upstream.cluster.Launch`)."""

# ruff: noqa: RUF009, for flag() is a dataclasses.field()
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from star_upstream.flags import flag, named, rates, seed


@dataclass(frozen=True)
class Run:
    """``run``."""

    upstream: str = flag(
        "fbank or another s3prl name, a star_upstream name, a checkpoint, or module:function", read=named
    )
    out: Path = flag("folder for the results; a rerun goes on where the last one stopped")
    tasks: str = flag("commas between, of {tasks}; or all (default)", "all")
    data: str = flag(
        "mini (made by speech synthesis when not there) or a folder of corpora or manifests", "mini", named
    )
    schedule: str | None = flag(
        "superb, superb-sched (its steps with warm-up and decay) or mini (default: mini for mini data and manifests, "
        "else superb)",
        None,
    )
    lr_grid: tuple[float, ...] = flag(
        "learning rates tried together, chosen on dev (default: the schedule's)", (), rates
    )
    steps: int | None = flag("optimizer updates, instead of the schedule's", None)
    limit: int | None = flag("at most this many rows a split: a smoke run, marked as such", None)
    seed: int = flag("draws heads and batches (default 0)", 0, seed)
    device: str = flag("auto (default), cpu, cuda or cuda:N", "auto")
    cache: Path | None = flag(
        "folder for features (default: $STAR_CACHE/features or ~/.cache/star_upstream/features)", None
    )
    cache_gb: float = flag("most that the cache may hold; the oldest leave first (default 20)", 20.0)
    encode_jobs: int = flag(
        "with --launcher submitit: so many jobs encode the tasks' audio first, each its share (default 0: each task "
        "encodes its own)",
        0,
    )
    exact: bool = flag("encode padded batches at every step as s3prl does, without a cache: many times slower", False)
    overwrite: bool = flag("run tasks again whose json is there", False)
    dry_run: bool = flag("look whether options and the tasks' data are right, and stop", False)
