"""Many fine-tunings from one command: models x (frozen, fine-tuned) x (each task alone, all together) x seeds, and
their table.

What is finished is left as it is, what was cut off goes on. Decoded audio and states of frozen encoders are shared
(``OUT/cache``).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from .. import outputs
from ..data import features
from ..errors import StarError
from ..jobs import side_by_side
from ..say import say
from . import finetune, finetune_table
from . import recipe as recipes
from . import run as run_recipe
from .config import Recipe
from .finetune_recipe import FinetuneRecipe

MAKER = "star finetune --grid"


def cells(tasks: Sequence[str], models: Mapping[str, str], seeds: Sequence[int]) -> dict[str, list[str]]:
    """Name of a run -> its overrides; seed by seed, frozen ones (which are quick) first."""
    groups = {"multi": list(tasks), **{name: [name] for name in tasks}} if len(tasks) > 1 else {tasks[0]: list(tasks)}
    found = {}
    for seed in seeds:
        for frozen in (True, False):
            for model, encoder in models.items():
                for group, names in groups.items():
                    name = f"{model}-{'frozen' if frozen else 'finetuned'}-{group}-s{seed}"
                    chosen = [f"tasks={','.join(names)}", f"frozen={str(frozen).lower()}", f"training.seed={seed}"]
                    found[name] = [f"encoder={encoder}", f"name={model}", *chosen]
    return found


def run(
    source: str,
    overrides: Sequence[str],
    models: Mapping[str, str],
    seeds: Sequence[int],
    out: Path,
    jobs: int = 1,
) -> str:
    """Run what is not finished, ``jobs`` at once, each with its log in ``out/logs``; the table (Markdown), also written
    to ``out``.

    Raises :class:`StarError` for a wrong recipe before anything runs, and at the end when runs failed.
    """
    if jobs < 1:
        raise StarError(f"--jobs {jobs}: must be at least 1")
    out = outputs.check_folder(out, MAKER, lambda folder: True).resolve()
    base = recipes.load(source, overrides, FinetuneRecipe)
    if any(text.partition("=")[0] in ("tasks", "frozen", "training.seed", "encoder", "name") for text in overrides):
        raise StarError("--grid sets encoder, name, tasks, frozen and training.seed itself; leave them out")
    cache = [] if base.data.cache else [f"data.cache={out / 'cache'}"]
    plan = {name: [*overrides, *cache, *more] for name, more in cells(list(base.tasks), models, seeds).items()}
    for values in plan.values():
        recipes.load(source, values, FinetuneRecipe)
    outputs.claim_folder(out, MAKER, lambda folder: any((folder / name / "result.json").is_file() for name in plan))
    left = [name for name in plan if not (out / name / "done.json").is_file()]
    say(f"{out}: {len(plan)} runs, {len(plan) - len(left)} finished before")
    failed, begun = {}, time.monotonic()
    if left:
        work = partial(_one, source, {name: plan[name] for name in left}, out)
        for i, run in enumerate(side_by_side(work, left, jobs, lambda name: out / "logs" / f"{name}.txt"), 1):
            ended = f"{run.why}, see {run.log}" if run.why else run.result
            if ended != "done":
                failed[run.name] = ended
            say(f"[{i}/{len(left)}, {time.monotonic() - begun:.0f} s] {run.name}: {ended}")
    if failed:
        name, error = next(iter(failed.items()))
        raise StarError(
            f"{len(failed)} of {len(plan)} runs failed; the first: {name}: {error}; run the same command again "
            "for those alone"
        )
    if not base.data.cache:
        features.clear(out / "cache")
    return finetune_table.write([out / name for name in plan], out, MAKER)


def _one(source: str, plan: Mapping[str, Sequence[str]], out: Path, name: str) -> str:
    return train("finetune", source, plan[name], out / name)


def train(command: Literal["distill", "finetune"], source: str | Path, overrides: Sequence[str], folder: Path) -> str:
    """What ``star COMMAND SOURCE OVERRIDES --out FOLDER`` does, in a process that does more; ``done``, or what went
    wrong."""
    recipe: Any = recipes.load(source, overrides, {"distill": Recipe, "finetune": FinetuneRecipe}[command])
    if recipe.training.processes > 1:
        # Lightning starts a run's other processes by the command line, and this one would start all runs again
        sys.argv = ["star", command, str(source), *overrides, "--out", str(folder)]
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("star_upstream.__main__")
        os.environ.pop("SLURM_NTASKS", None)  # else Lightning waits for Slurm to start the other processes
    try:
        (finetune.run if command == "finetune" else run_recipe)(recipe, folder)
    except StarError as error:
        say(f"star: {error}")
        return str(error)
    except SystemExit as end:  # a signal; by itself the run has ended as it should, but there is more to do
        raise StarError("stopped by a signal; the same command goes on") from end
    return "done"
