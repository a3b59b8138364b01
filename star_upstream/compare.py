"""``star compare``: recipes at one size, on the same audio in the same order for the same updates, scored by ``eval``.

A comparison is a folder:

comparison.json   what was asked for, and what that made of each recipe
recipes/          each recipe as it is trained: ``star distill OUT/recipes/NAME.yaml training.seed=S`` repeats a run
search/           runs of the learning-rate search, each with its outcome beside it
runs/ scores/     a distillation a recipe and seed, and what ``python -m eval run`` measured of it
logs/ jobs/       what each job said, where there are several at once (jobs: of an array)
latency.json      time of a forward pass of each model, in turns
table.json table.csv table.md page.html   what ``python -m eval comparison OUT`` makes of all that

What is there is not made again, and a job that was cut off goes on. What has been scored needs its weights no more,
nor the data its place: a comparison goes on elsewhere from its small files.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import extras, losses, outputs, strict
from .analysis import latency
from .asked import Asked
from .cluster import Launch
from .compare_jobs import cell, each, evaluate, is_complete, score, trial
from .encoder import Encoder, EncoderConfig
from .errors import StarError
from .files import home, replacing, write_json
from .formats import checkpoint, sources
from .say import say
from .training import recipe as recipes
from .training import scale, start
from .training.config import untold
from .training.recipe import Recipe

MAKER = "star compare"
SHARED = (
    "accumulate", "batches_per_update", "precision", "accelerator", "devices", "nodes", "log_every", "validate_every",
    "save_every",
)  # fmt: skip
"""What all take from the first recipe's ``training``, besides its whole ``data``."""


@dataclass(frozen=True)
class Entry:
    """A recipe as it is compared."""

    recipe: Recipe
    parameters: int
    changed: tuple[str, ...]
    """What is not as in the recipe's file, in words."""


def run(asked: Asked, out: Path, launch: Launch | None = None) -> Path:
    """Make what is missing of the comparison in ``out``; its page.

    Raises :class:`StarError` for recipes that cannot be compared before anything runs, for a folder with another
    comparison, and at the end where jobs failed.
    """
    for extra in ("train", "eval"):
        extras.need(extra)
    launch, out = launch or Launch(), outputs.check_folder(out, MAKER).resolve()
    entries = plan(asked)
    config = next(iter(entries.values())).recipe.training
    launch.check()
    if launch.away and config.nodes > 1:
        raise StarError("training.nodes: a job of --launcher submitit is on one machine; leave it at 1")
    _check(asked, entries, out)
    if evaluate(["run", "--upstream", "fbank", "--out", str(out / "scores"), "--dry-run", *asked.scoring.words()]):
        raise StarError("the scoring cannot be as asked, for the reason above; nothing was run")
    outputs.claim_folder(out, MAKER)
    for name, entry in entries.items():
        say(f"{name}: {entry.parameters:,} parameters; {'; '.join(entry.changed) or 'as in its file'}")
    if not (out / "comparison.json").is_file():  # what the search is of
        _write(asked, entries, {name: entry.recipe for name, entry in entries.items()}, out)
    rates = _search(asked, entries, out, launch) if asked.search_rates else {}
    chosen = {name: _at_rate(entry.recipe, rates[name]) if rates else entry.recipe for name, entry in entries.items()}
    _write(asked, entries, chosen, out)
    # seed by seed, so that a table is there early
    cells = {f"{name}-s{seed}": (name, seed) for seed in range(asked.seeds) for name in entries}
    made = [name for name in cells if is_complete(out, asked.scoring, name)]
    weightless = {name for name in made if not _weights(out, entries, *cells[name]).is_file()}
    if weightless:
        say(f"{out}: {len(weightless)} runs without weights stay as they were scored")
    made = [name for name in made if launch.away or name in weightless]
    checked = {name: score(out, asked.scoring, cells, name) for name in made if name not in weightless}
    failed = {name: error for name, error in checked.items() if error != "done"}
    left = {name: at for name, at in cells.items() if name not in made}
    for name, error in each(partial(cell, out, asked.scoring, cells), list(left), out, launch, config):
        _, seed = left.pop(name)
        if error:
            failed[name] = error
        if left and not failed and seed not in {other for _, other in left.values()}:
            page(out)
    if not failed:
        _time(asked, entries, out)
    if len(failed) < len(cells):
        page(out)
    if failed:
        name, error = next(iter(failed.items()))
        raise StarError(
            f"{len(failed)} of {len(cells)} runs failed; the first: {name}: {error}; the same command runs those again"
        )
    return out / "page.html"


def _weights(out: Path, entries: Mapping[str, Entry], name: str, seed: int) -> Path:
    return out / "runs" / f"{name}-s{seed}" / entries[name].recipe.result / checkpoint.WEIGHTS


def page(out: Path) -> None:
    """Table and page of what is there."""
    with contextlib.redirect_stdout(io.StringIO()):
        if evaluate(["comparison", str(out)]):
            raise StarError(f"{out}: has no page; its runs and scores are there")


def plan(asked: Asked) -> dict[str, Entry]:
    """Name -> recipe as it is compared. Raises :class:`StarError` for what cannot be."""
    names = [Path(source).stem for source in asked.sources]
    for name in names:
        if names.count(name) > 1:
            raise StarError(f"{name}: two recipes have this name; rename one of the files")
    loaded = {name: recipes.load(source, asked.overrides) for name, source in zip(names, asked.sources)}
    first = loaded[names[0]]
    if not first.data.train:
        raise StarError("data.train: name a folder or manifest, e.g. data.train='/data/LibriSpeech/train-*'")
    first = start.absolute(replace(first, teacher=asked.teacher))
    shape = sources.load(first.teacher).config
    found = {}
    for name, recipe in loaded.items():
        try:
            equal = _equal(recipe, first, asked.updates)
            scaled, count = scale.adapt(equal, asked.parameters, first.teacher, shape)
            _fits(scaled, shape)
        except StarError as error:
            raise StarError(f"{name}: {error}") from None
        said = [text for text in scale.differences(recipe, scaled) if not text.startswith(("teacher ", "data.train "))]
        found[name] = Entry(scaled, count, tuple(said))
    return found


def _equal(recipe: Recipe, first: Recipe, updates: int) -> Recipe:
    """With the first recipe's data and order, and ``updates`` in all."""
    shared: dict[str, Any] = {name: getattr(first.training, name) for name in SHARED}
    # looked at often enough for a short comparison
    shared["log_every"] = min(shared["log_every"], max(1, updates // 10))
    shared["validate_every"] = min(shared["validate_every"], max(1, updates // 4))
    shared["save_every"] = min(shared["save_every"], max(1, updates // 4))
    lengths: dict[str, Any] = {"epochs": None, "minutes": None, "updates": updates}
    pruning = recipe.pruning
    if pruning is not None:
        ((kind, one),) = strict.lengths(recipe.training).items()
        ((other, two),) = strict.lengths(pruning.second).items()
        share = two / (one + two) if kind == other else 1 / 3
        after = min(updates - 1, max(1, round(updates * share)))
        lengths["updates"] = updates - after
        second = replace(pruning.second, epochs=None, minutes=None, updates=after)
        pruning = replace(pruning, second=second, second_data="onward")
    training_ = replace(recipe.training, **shared, **lengths)
    return replace(recipe, data=first.data, training=training_, pruning=pruning)


def _fits(recipe: Recipe, teacher: EncoderConfig) -> None:
    """Raises :class:`StarError` where a loss cannot be made of these models; what is measured first says so later."""
    import torch

    sections = {name: o for name, o in recipe.loss.items() if not hasattr(losses.find(name), "calibrate")}
    if sections:
        with torch.device("meta"):
            losses.build(sections, teacher, recipe.student_config(teacher))


def _at_rate(recipe: Recipe, rate: float) -> Recipe:
    """With another learning rate; a second stage's stays as many times as much."""
    pruning = recipe.pruning
    if pruning is not None:
        times = rate / recipe.training.learning_rate
        pruning = replace(pruning, second=replace(pruning.second, learning_rate=pruning.second.learning_rate * times))
    return replace(recipe, training=replace(recipe.training, learning_rate=rate), pruning=pruning)


# the folder


def _identity(asked: Asked, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """What must stay as it is; recipes, seeds and tasks may be added."""
    kept = strict.plain(asked)
    for name in ("sources", "seeds", "overrides", "teacher"):
        del kept[name]
    scoring = kept.pop("scoring")
    for name in ("tasks", "cache", "cache_gb"):
        del scoring[name]
    if scoring["data"] != "mini":
        scoring["data"] = str(home(scoring["data"]).resolve())
    teacher = checkpoint.digest(sources.load(next(iter(entries.values())).recipe.teacher))
    made = {name: _plain(entry.recipe) for name, entry in entries.items()}
    return {**kept, "first": next(iter(entries)), "teacher": teacher, "eval": scoring, "recipes": made}


def _plain(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = strict.plain(untold(recipe))
    del values["data"]["workers"]
    return values


def _check(asked: Asked, entries: Mapping[str, Entry], out: Path) -> None:
    """Raises :class:`StarError` where ``out`` holds a comparison of other settings, and names one."""
    file = out / "comparison.json"
    if not file.is_file():
        return
    there = json.loads(file.read_text(encoding="utf-8"))["identity"]
    here = json.loads(json.dumps(_identity(asked, entries)))
    gone = [name for name in there["recipes"] if name not in here["recipes"]]
    if gone:
        raise StarError(f"{out}: compares {', '.join(gone)} too; name all its recipes, or choose another --out")
    here["recipes"] = {name: here["recipes"][name] for name in there["recipes"]}
    with contextlib.suppress(StarError):  # settings that came since have their defaults
        there["recipes"] = {name: _plain(strict.build(Recipe, values)) for name, values in there["recipes"].items()}
    there.setdefault("teacher", here["teacher"])
    _move(there, here)
    if changed := strict.difference(there, here):
        raise StarError(f"{out}: holds another comparison ({changed}); choose another --out")


def _move(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Take what is not at its place any more where it is said to be now. The page looks whether it is the same: it
    compares the checksums of all audio that was heard, and the digests of the tables that were scored on."""
    pairs = [(there["eval"], here["eval"], "data")]
    for name, recipe in there["recipes"].items():
        pairs += [(recipe, here["recipes"][name], "teacher"), (recipe["data"], here["recipes"][name]["data"], "train")]
    for before, now, key in pairs:
        places = [before[key]] if isinstance(before[key], str) else before[key]
        if not all(Path(place).exists() for place in places if place.startswith("/")):
            before[key] = now[key]


def _write(asked: Asked, entries: Mapping[str, Entry], chosen: Mapping[str, Recipe], out: Path) -> None:
    for name, recipe in chosen.items():
        with replacing(out / "recipes" / f"{name}.yaml") as part:
            part.write_text(recipes.dump(recipe), encoding="utf-8")
    file = out / "comparison.json"
    before = json.loads(file.read_text(encoding="utf-8"))["asked"]["seeds"] if file.is_file() else 0
    write_json(
        file,
        {
            "command": sys.argv[1:],
            "asked": {**strict.plain(asked), "seeds": max(before, asked.seeds), "sources": list(entries)},
            "entries": {
                name: {
                    "about": entry.recipe.about,
                    "parameters": entry.parameters,
                    "learning_rate": chosen[name].training.learning_rate,
                    "changed": list(entry.changed),
                    "result": entry.recipe.result,
                }
                for name, entry in entries.items()
            },
            "identity": _identity(asked, entries),
        },
    )


# the learning rates


def _search(asked: Asked, entries: Mapping[str, Entry], out: Path, launch: Launch) -> dict[str, float]:
    """Name -> the learning rate of the lowest validation loss, among the same rates for every recipe."""
    updates = asked.search_updates or asked.updates
    cells = {}
    for name, entry in entries.items():
        short = _equal(entry.recipe, entry.recipe, updates)
        for rate in asked.search_rates:
            cell = f"{name}-rate{rate:g}"
            cells[cell] = (name, rate)
            with replacing(out / "search" / f"{cell}.yaml") as part:
                part.write_text(recipes.dump(_at_rate(short, rate)), encoding="utf-8")
    left = [cell for cell in cells if not (out / "search" / f"{cell}.json").is_file()]
    config = next(iter(entries.values())).recipe.training
    failed = {cell: error for cell, error in each(partial(trial, out), left, out, launch, config) if error}
    if failed:
        name, error = next(iter(failed.items()))
        raise StarError(f"{len(failed)} runs of the search failed; the first: {name}: {error}")
    losses_: dict[str, dict[float, float]] = {name: {} for name in entries}
    for cell, (name, rate) in cells.items():
        value = json.loads((out / "search" / f"{cell}.json").read_text(encoding="utf-8"))["validation_loss"]
        losses_[name][rate] = math.inf if value is None else value
    chosen = {}
    for name, values in losses_.items():
        chosen[name] = min(values, key=lambda rate: values[rate])
        if values[chosen[name]] == math.inf:
            raise StarError(f"{name}: diverges at every rate of the search; give lower --search-rates")
        edge = ", at the edge of what was tried" if chosen[name] in (min(values), max(values)) else ""
        say(f"{name}: learning rate {chosen[name]:g}{edge}")
    return chosen


# the time of a forward pass


def _time(asked: Asked, entries: Mapping[str, Entry], out: Path) -> None:
    """Time models of the first seed's shapes, in turns, where that is not done; their weights do not matter."""
    file = out / "latency.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["models"].keys() == entries.keys():
        return
    say(f"timing {asked.seconds:g} s of audio in turns")
    models: dict[str, latency.Model] = {}
    for name, entry in entries.items():
        told = checkpoint.describe(out / "runs" / f"{name}-s0" / entry.recipe.result)
        models[name] = Encoder(strict.build(EncoderConfig, told["encoder"])).eval()
    write_json(file, latency.side_by_side(models, asked.seconds, threads=1))
