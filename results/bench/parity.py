"""``python results/bench/parity.py TASK ...``: the pipeline that made the published numbers, beside ours, on the same
recordings.

s3prl's downstream runner trains and tests a head of each task on corpora in their published layouts (the mini corpora
unless ``--data`` names others), unchanged but for :mod:`star_upstream.compat`. Ours has the same upstream, steps,
learning rate and seed, three times: with s3prl's batches and initial head and features as ``eval run --exact`` makes
them; the same with features kept once; and as ``eval run`` does it, with its own batches and head, from several seeds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import follow
import legacy
import numpy as np
import torch
from follow import Side
from ours import table_of
from parity_page import TITLE, page
from pipelines import PIPELINES, Case
from script import check_page, guarded, path, write

import star_upstream
from eval import tasks
from eval.encoding import features_of
from eval.features import upstreams
from eval.features.store import Store
from eval.heads.probe import Task
from eval.machine import environment
from eval.run import corpora_folder, one_line
from star_upstream import compat, metrics
from star_upstream.errors import StarError
from star_upstream.say import command, say

FORMAT = 3
MAKER = "results/bench/parity.py"
POOLED = (100, 1e-3)
SHORT = {
    "ks": POOLED,
    "sid": POOLED,
    "ic": POOLED,
    "er": (60, 1e-3),
    "pr": (40, 2e-3),
    "asr": (60, 2e-3),
    "sf": (40, 2e-3),
    "asv": (10, 1e-4),
    "sd": (10, 1e-3),
}
"""Updates and learning rate of each task: few, since s3prl encodes at every one of them."""
LEAST_SECONDS = 0.5
"""Of a training utterance of asv once silence is cut; the mini corpora have few of the published two seconds."""


def run(args: argparse.Namespace, typed: list[str]) -> int:
    """Write ``--out`` (Markdown) and the same with .json, after each task; tasks that are there of the same data
    and upstream stay. Returns 1 where a task did not run."""
    wanted = tasks.parse(",".join(args.tasks or PIPELINES))
    for task in wanted:
        if task.name not in PIPELINES:
            raise StarError(f"parity: s3prl's runner scores no {task.name!r}; tasks: {', '.join(PIPELINES)}")
    for name, value in (("--steps", args.steps), ("--own-seeds", args.own_seeds)):
        if value is not None and value < 1:
            raise StarError(f"{name} {value}: must be at least 1")
    if args.lr is not None and not 0 < args.lr < 1:
        raise StarError(f"--lr {args.lr:g}: must be above 0 and below 1")
    check_page(args.out, MAKER, TITLE, "runs")
    root, _ = corpora_folder(args.data)
    _check_upstream(args.upstream)
    upstream = upstreams.load(args.upstream)
    file = args.out.with_suffix(".json")
    identity = {
        "format": FORMAT,
        "data": args.data,
        "upstream": args.upstream,
        "digest": upstream.digest,
    }
    _begun(file, identity)
    failed = []
    for task in wanted:
        try:
            record = compare(task, upstream, root, args)
            told = record["sides"]["exact"]
            say(f"{task.name}: s3prl {record['theirs']['value']:.2f}, ours {told['value']:.2f} (its batches and head)")
        except Exception as error:  # the page says of each task that does not run why
            if not isinstance(error, StarError):
                traceback.print_exc()
            record = {"task": task.name, "failed": one_line(error)}
            failed.append(task.name)
            say(f"{task.name}: {record['failed']}")
        record |= {"command": shlex.join(["python", MAKER, *typed]), "environment": environment()}
        result = _begun(file, identity)  # another process may have written its tasks meanwhile
        others = [old for old in result["runs"] if old["task"] != task.name]
        result["runs"] = sorted([*others, record], key=lambda r: list(PIPELINES).index(r["task"]))
        write(args.out, page(result), result)
    print(json.dumps({"out": str(args.out), "failed": failed}))
    return 1 if failed else 0


def _check_upstream(name: str) -> None:
    star_upstream.register()
    from s3prl import hub

    if not hasattr(hub, name):
        fix = "give one of star_upstream's names or of s3prl's"
        raise StarError(f"--upstream {name}: s3prl's runner takes a name that its hub knows; {fix}")


def _begun(file: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What is there of the same data and upstream: other tasks stay on the page."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if all(found[key] == value for key, value in identity.items()):
            return found
    except FileNotFoundError:
        return {**identity, "runs": []}
    except (ValueError, KeyError, TypeError):
        pass
    raise StarError(f"{file}: is of other data or another upstream; choose another --out, or remove it")


def compare(task: Task, upstream: upstreams.Upstream, root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All four sides' scores on test, and how far ours are from s3prl's."""
    compat.apply()
    pipeline = PIPELINES[task.name]
    legacy.check(pipeline, args.checkout)
    steps, lr = SHORT[task.name]
    steps, lr = args.steps or steps, args.lr or lr
    schedule = replace(task.schedules["superb"], steps=steps, eval_every=steps, lr=lr)
    if pipeline.specaug:  # without augmentation and dropout, which each side draws for itself
        schedule = replace(schedule, head=tasks.get("asr").schedules["mini"].head)
    if task.name == "asv":
        schedule = replace(schedule, min_seconds=LEAST_SECONDS)
    table = table_of(task, root, upstream.stride)
    own = [task.probe(task, table, schedule, seed) for seed in range(args.seed, args.seed + args.own_seeds)]
    probe = task.probe(task, table, schedule, args.seed)
    follow.as_published(probe)
    with tempfile.TemporaryDirectory(prefix="star_parity_") as folder:
        work = Path(folder)
        their = legacy.run(pipeline, Case(probe, root, work), args.upstream, args.seed, args.checkout)
        rows = follow.batches(probe, their)
        initial = follow.initial(pipeline, probe, their, upstream)
        say(f"{task.name}: s3prl's runner took {their.seconds:.0f} s")
        store = Store(work / "features")
        kept = features_of(task, table, schedule, upstream, store, exact=False)
        exact = features_of(task, table, schedule, upstream, store, exact=True)
        for side in (*own, probe):
            side.ready(kept)
        sides = {
            "exact": [follow.fitted(follow.Following(probe, rows, initial), exact, upstream)],
            "kept": [follow.fitted(follow.Following(probe, rows, initial), kept, upstream)],
            "own": [follow.fitted(side, kept, upstream) for side in own],
        }
    theirs = Side(follow.answers(probe, their), their.losses, their.seconds)
    items = probe.split["test"]
    value, interval = scored(probe, theirs.answers)
    return {
        "task": task.name,
        "metric": task.metric,
        "unit": task.metrics[0].unit,
        "items": probe.items(items),
        "train": len(probe.split["train"]),
        "seed": args.seed,
        "steps": steps,
        "lr": lr,
        "batch": schedule.batch,
        "accumulate": schedule.accumulate,
        "theirs": {"value": value, "interval_95": interval, "seconds": round(their.seconds, 1), "said": their.said},
        "losses": {"first": their.losses[0], "last": their.losses[-1]},
        "sides": {name: _beside(probe, side, theirs, schedule.accumulate) for name, side in sides.items()},
    }


def _beside(probe: Any, seeds: list[Side], theirs: Side, accumulate: int) -> dict[str, Any]:
    side = seeds[0]
    values = [scored(probe, seed.answers)[0] for seed in seeds]
    value = float(np.mean(values))
    low, high = difference(probe, [seed.answers for seed in seeds], theirs.answers)
    found = {
        "value": value,
        "seeds": values,
        "difference": value - scored(probe, theirs.answers)[0],
        "difference_95": [low, high],
        "inside": low <= 0.0 <= high,
        "same_answers": float(np.mean([same(probe, seed.answers, theirs.answers) for seed in seeds])),
        "seconds": round(side.seconds, 1),
    }
    if side.losses:
        apart = [abs(a - b) / max(abs(b), 1e-9) for a, b in zip(side.losses, theirs.losses, strict=True)]
        found["losses"] = {
            "first_update": max(apart[:accumulate]),
            "median": float(np.median(apart)),
            "worst": max(apart),
        }
    return found


def scored(probe: Any, answers: list[Any]) -> tuple[float, list[float]]:
    """The task's metric and its 95 % interval."""
    rows = probe.split["test"]
    return probe.value(answers, rows), list(metrics.bootstrap(probe.counts(answers, rows)))


def difference(probe: Any, seeds: list[list[Any]], theirs: list[Any]) -> tuple[float, float]:
    """95 % interval of the difference of one of our seeds' scores from theirs: the same items are drawn for both, and
    every seed as often as another."""
    drawn = [metrics.resample(probe.counts(answers, probe.split["test"])) for answers in (theirs, *seeds)]
    low, high = np.percentile(np.stack(drawn[1:]) - drawn[0], [2.5, 97.5])
    return float(low), float(high)


def same(probe: Any, mine: list[Any], theirs: list[Any]) -> float:
    """The share of equal answers: of texts and labels; for sd of frames and speakers with the same decision (each
    recording in the better order of the speakers); for asv of trials whose cosines are within 0.01."""
    if probe.task.name == "sd":
        equal = [max(float(((a > 0) == (b[:, o] > 0)).mean()) for o in ([0, 1], [1, 0])) for a, b in zip(mine, theirs)]
        return float(np.mean(equal))
    if probe.task.name == "asv":
        place = {row: at for at, row in enumerate(probe.split["test"])}
        cosines = [np.array([s[place[a]] @ s[place[b]] for _, a, b in probe.trials]) for s in (mine, theirs)]
        return float((np.abs(cosines[0] - cosines[1]) < 0.01).mean())
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python {MAKER}", description=__doc__)
    add = parser.add_argument
    add("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(PIPELINES)} (default: all)")
    add("--data", default="mini", help="mini (default), or a folder of corpora in their published layouts")
    add("--upstream", default="star_mini", help="a star_upstream name that s3prl's hub knows (default star_mini)")
    add("--steps", type=int, help="updates (default: a few tens or hundreds, by task)")
    add("--lr", type=float, help="learning rate (default: one at which so few updates teach something)")
    add("--seed", type=int, default=0)
    add("--own-seeds", type=int, default=5, metavar="N", help="seeds of our own batches and head (default 5)")
    add(
        "--checkout",
        type=path,
        help="s3prl's repository at 0.4.18 (commit ec8064b5): pr and sf need a part that the wheel lacks",
    )
    add("--out", type=path, default=Path("results/parity.md"), help="the page; the numbers go beside it, in .json")
    typed = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(typed)
    torch.set_num_threads(1)
    return guarded(run, args, typed)


if __name__ == "__main__":
    command(main)
