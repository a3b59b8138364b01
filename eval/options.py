"""What each command can be told: every flag is a field, with its default, type and help, and stated here alone."""

# ruff: noqa: RUF009, for flag() is a dataclasses.field()
from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --out=~/results as it is


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected learning rates with commas between, as in 1e-3,1e-2"
        ) from None


def flag(about: str, default: Any = MISSING, read: Callable[[str], Any] | None = None) -> Any:
    """A field that is a flag. ``read`` makes its value of a word (default: the field's type)."""
    return field(default=default, metadata={"about": about, "read": read})


def add(parser: argparse.ArgumentParser, kind: type, **words: str) -> None:
    """Give ``parser`` the flags of the dataclass ``kind``; a field without default is required. ``words``: for the
    help's braces."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        hint = hints[one.name]
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        how: dict[str, Any] = {"help": one.metadata["about"].format(**words)}
        if hint is bool:
            how["action"] = "store_true"
        elif get_origin(hint) is Literal:
            how["choices"] = get_args(hint)
        elif hint == tuple[str, ...]:
            how["nargs"] = "+"
        else:
            how["type"] = one.metadata["read"] or (path if hint is Path else hint)
        if one.default is MISSING:
            how["required"] = True
        else:
            how["default"] = one.default
        parser.add_argument(f"--{one.name.replace('_', '-')}", **how)


def take(kind: type[Kind], arguments: argparse.Namespace) -> Kind:
    """The ``kind`` that ``arguments`` say."""
    values = {name: getattr(arguments, name) for name in vars(kind)["__dataclass_fields__"]}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class Run:
    """``run``."""

    upstream: str = flag("fbank or another s3prl name, a star_upstream name, a checkpoint, or module:function")
    out: Path = flag("folder for the results; a rerun goes on where the last one stopped")
    tasks: str = flag("commas between, of {tasks}; or all (default)", "all")
    data: str = flag("mini (made by speech synthesis when not there) or a folder of corpora or manifests", "mini")
    schedule: str | None = flag(
        "superb, superb-sched (its steps with warm-up and decay) or mini (default: mini for mini data and manifests, "
        "else superb)",
        None,
    )
    lr_grid: tuple[float, ...] = flag(
        "learning rates tried together, chosen on dev (default: the schedule's)", (), _rates
    )
    steps: int | None = flag("optimizer updates, instead of the schedule's", None)
    limit: int | None = flag("at most this many rows a split: a smoke run, marked as such", None)
    seed: int = flag("draws heads and batches (default 0)", 0)
    device: str = flag("auto (default), cpu, cuda or cuda:N", "auto")
    cache: Path | None = flag(
        "folder for features (default: $STAR_CACHE/features or ~/.cache/star_upstream/features)", None
    )
    cache_gb: float = flag("most that the cache may hold; the oldest leave first (default 20)", 20.0)
    jobs: int = flag("tasks at once, each a process with its log in --out (default 1)", 1)
    launcher: Literal["local", "submitit"] = flag(
        "local (default: this process, or --jobs of them) or submitit (a job for each task that is missing, all of one "
        "array, with logs in --out/jobs)",
        "local",
    )
    cluster: Literal["auto", "slurm", "local", "debug"] = flag(
        "where submitit runs jobs: auto (default: slurm where srun is, else local), slurm, local (processes here, all "
        "at once) or debug (in this process)",
        "auto",
    )
    slurm: tuple[str, ...] = flag(
        "sbatch's parameters as KEY=VALUE, as in partition=gpu time=600 (minutes) gpus_per_node=1 mem=32G", ()
    )
    exact: bool = flag("encode padded batches at every step as s3prl does, without a cache: many times slower", False)
    overwrite: bool = flag("run tasks again whose json is there", False)
