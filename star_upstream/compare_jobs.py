"""The jobs of ``star compare``: a recipe trained with a seed and scored, or one run of the learning-rate search."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from . import cluster
from .asked import Scoring
from .files import write_json
from .formats import checkpoint
from .say import say
from .training import grid
from .training import recipe as recipes
from .training.config import TrainingConfig

SEARCH_SEED = 1000
"""Of the learning-rate search: no seed that is compared sees the runs that chose its rate."""


def each(
    work: Callable[[str], str], names: Sequence[str], out: Path, launch: cluster.Launch, config: TrainingConfig
) -> Iterator[tuple[str, str]]:
    """Run ``work`` for each name, here, in processes side by side or as jobs of an array, and say how each ended: its
    name, and what went wrong or an empty text. ``config``: a training as all of them are."""
    begun = time.monotonic()
    for i, (name, error) in enumerate(_ended(work, names, out, launch, config), 1):
        say(f"[{i}/{len(names)}, {time.monotonic() - begun:.0f} s] {name}: {error or 'done'}")
        yield name, error


def _ended(
    work: Callable[[str], str], names: Sequence[str], out: Path, launch: cluster.Launch, config: TrainingConfig
) -> Iterator[tuple[str, str]]:
    # a run of several processes starts them by its own command line
    if launch.away or launch.jobs > 1 or config.processes > 1:
        gpus, logs = _gpus(config), out / "logs"
        for job in cluster.each(work, names, out, launch, "star-compare", gpus, lambda name: logs / f"{name}.txt"):
            yield job.name, f"{job.why}, see {job.log}" if job.why else _error(job.result)
    else:
        for name in names:
            yield name, _error(work(name))


def _error(result: str) -> str:
    return "" if result == "done" else result


def _gpus(config: TrainingConfig) -> int:
    """Of each job: as many as a training takes, where it takes some."""
    import torch

    taken = config.accelerator == "gpu" or (config.accelerator == "auto" and torch.cuda.is_available())
    return config.devices if taken else 0


# what a job does


def cell(out: Path, scoring: Scoring, cells: Mapping[str, tuple[str, int]], name: str) -> str:
    """Train a recipe with a seed, and score it; ``done``, or what went wrong."""
    recipe, seed = cells[name]
    source, run = out / "recipes" / f"{recipe}.yaml", out / "runs" / name
    if (run / "done.json").is_file() and not (run / recipes.load(source).result / checkpoint.WEIGHTS).is_file():
        return f"{run}: its weights are not there to be scored; remove it to train it again"
    ended = grid.train("distill", source, [f"training.seed={seed}"], run)
    return score(out, scoring, cells, name) if ended == "done" else ended


def score(out: Path, scoring: Scoring, cells: Mapping[str, tuple[str, int]], name: str) -> str:
    """Score a run, or check the scores that are there; ``done``, or what went wrong."""
    recipe, seed = cells[name]
    model = out / "runs" / name / recipes.load(out / "recipes" / f"{recipe}.yaml").result
    where = ["--upstream", str(model), "--out", str(out / "scores" / name)]
    if evaluate(["run", *where, "--seed", str(seed), *scoring.words()]):
        return "scoring failed; what it said says why"
    return "done"


def is_complete(out: Path, scoring: Scoring, name: str) -> bool:
    """Whether a run has ended, and has a record of each task."""
    tasks = importlib.import_module("eval.tasks").parse(scoring.tasks)
    records = (out / "scores" / name / f"{task.name}.json" for task in tasks)
    return (out / "runs" / name / "done.json").is_file() and all(record.is_file() for record in records)


def trial(out: Path, name: str) -> str:
    """One run of the search, with its outcome beside it; ``done``, or what went wrong."""
    folder = out / "search" / name
    ended = grid.train("distill", folder.with_name(f"{name}.yaml"), [f"training.seed={SEARCH_SEED}"], folder)
    if ended == "done":
        loss = json.loads((folder / "done.json").read_text(encoding="utf-8"))["validation_loss"]
    elif ended.startswith(("the loss is", "the validation loss is")):
        loss = None  # this rate is too high, which is an outcome
    else:
        return ended
    write_json(folder.with_name(f"{name}.json"), {"validation_loss": loss, "ended": ended})
    return "done"


def evaluate(words: Sequence[str]) -> int:
    """``python -m eval WORDS``, which this package does not import, in this process, so that none outlives it; the exit
    code."""
    before, sys.argv = sys.argv, ["star-eval", *words]
    try:
        runpy.run_module("eval", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0
