"""``python -m eval parity``: s3prl's own problem, from its data to its test score, beside our run on the same utterances.

Ours is ``--generation problem``. Both sides have the same upstream, train, dev and test, batch size, accumulation, number of updates, learning
rate, initial head, sampler and its seed (``same_batches`` gives s3prl the very batches of ours). The difference of the two scores is judged on the
same test utterances, resampled in pairs.
"""

from __future__ import annotations

import json
import shlex
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from star_upstream import metrics
from star_upstream.errors import StarError
from star_upstream.files import replacing, write_json

from .. import probe, tasks, train
from ..machine import environment
from ..probe import Task
from ..run import _data, say
from ..store import Store
from ..upstreams import Upstream, unseeded
from . import check_page, upstreams
from .check import s3prl_state
from .ours import Ours, table_of
from .page import _number, _table
from .theirs import NEVER, Theirs, silent

TITLE = "# Scores of s3prl's own problems beside ours"
TASKS = ("ks", "ic", "er", "sid", "pr", "asr")
"""Those whose s3prl problem ends in one score a test utterance has its share of."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    data: str
    tasks: str = "ks,pr"
    upstream: str = "star_mini"
    steps: int = 300
    lr: float | None = None
    """None: the published one."""
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    """Rows of a split, at most."""
    same_batches: bool = False
    """s3prl trains on our batches, in the place of its own sampling."""
    arguments: tuple[str, ...] = ()


def run(options: Options) -> int:
    """Write ``options.out`` (Markdown) and the same with .json. Returns 1 where a difference is more than the test set's noise."""
    wanted = tasks.parse(options.tasks)
    for task in wanted:
        if task.name not in TASKS:
            raise StarError(f"parity: not for {task.name!r}; tasks: {', '.join(TASKS)}")
    if options.out.suffix != ".md":
        raise StarError(f"--out {options.out}: must end in .md (the numbers go beside it, in .json)")
    if options.steps < 1:
        raise StarError(f"--steps {options.steps}: must be at least 1")
    if options.limit is not None and options.limit < 1:
        raise StarError(f"--limit {options.limit}: must be at least 1")
    check_page(options.out, "python -m eval parity", TITLE, "runs")
    root = _data(options.data)[0]
    upstream = upstreams.get(options.upstream)
    file = options.out.with_suffix(".json")
    identity = {"data": str(root), "upstream": options.upstream, "upstream_digest": upstream.digest}
    result = _begun(file, identity)
    command = shlex.join(["python", "-m", "eval", *options.arguments])
    apart = []
    for task in wanted:
        for seed in options.seeds:
            record = compare(task, upstream, root, options, seed)
            difference = record["difference"]
            say(
                f"{task.name}, seed {seed}: s3prl {record['theirs']['value']:.2f}, ours {record['ours']['value']:.2f}, difference "
                f"{difference['value']:+.2f} [{difference['interval_95'][0]:+.2f}, {difference['interval_95'][1]:+.2f}]"
            )
            if not record["within_noise"]:
                apart.append(f"{task.name} (seed {seed})")
            others = [r for r in result["runs"] if _which(r) != _which(record)]
            result["runs"] = sorted([*others, {**record, "command": command}], key=_which)
            result["environment"] = environment()
            write_json(file, result)
            with replacing(options.out) as part:
                part.write_text(_page(result), encoding="utf-8")
    print(json.dumps({"out": str(options.out), "differing": apart}))
    return 1 if apart else 0


def _which(record: dict[str, Any]) -> tuple[str, int, bool]:
    return record["task"], record["seed"], record["same_batches"]


def _begun(file: Path, identity: dict[str, str]) -> dict[str, Any]:
    """What is there of the same data and upstream: other tasks and seeds stay on the page."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if all(found[key] == value for key, value in identity.items()):
            return found
    except FileNotFoundError:
        return {**identity, "runs": []}
    except (ValueError, KeyError, TypeError):
        pass
    raise StarError(f"{file}: is of other data or another upstream; choose another --out, or remove it")


def compare(task: Task, upstream: Upstream, root: Path, options: Options, seed: int) -> dict[str, Any]:
    """Both sides' scores on test, and their difference over the same utterances, each with a 95 % interval."""
    published = probe.schedule(task, "superb", generation="problem")
    schedule = replace(published, steps=options.steps, eval_every=options.steps, lr=options.lr or published.lr)
    table = table_of(task, root, upstream.stride, options.limit)
    with tempfile.TemporaryDirectory(prefix="star_parity_") as folder:
        ours = Ours(task, table, schedule, upstream, Store(Path(folder), 20.0), seed)
        rows = ours.probe.split["test"]
        begun = time.perf_counter()
        features = ours.encode(range(len(table)))[0]
        ours.probe.ready(features)
        (fitted,) = train.fit(
            [ours.probe], features, upstream.layers, upstream.width, upstream.stride, (schedule.lr,), say=lambda line: None
        )
        mine = train.predict(fitted.head, ours.probe, features, rows)
        spent = time.perf_counter() - begun
    theirs, official_value, their_spent = _theirs(ours, table, seed, options.same_batches)
    sides = {"theirs": (theirs, their_spent), "ours": (mine, spent)}
    counts = {name: np.asarray(ours.probe.counts(predictions, rows), dtype=float) for name, (predictions, _) in sides.items()}

    def drawn(generator: np.random.Generator) -> float:
        picked = generator.integers(len(rows), size=len(rows))
        return _value(counts["ours"][picked]) - _value(counts["theirs"][picked])

    low, high = metrics.bootstrap([drawn], 0)
    return {
        "task": task.name, "metric": task.metric, "unit": task.unit, "seed": seed, "items": len(rows), "train": len(ours.probe.split["train"]),
        "schedule": asdict(schedule), "same_batches": options.same_batches,
        **{
            name: {
                "value": ours.probe.value(predictions, rows), "interval_95": list(metrics.bootstrap([counts[name]], 0)),
                "seconds": round(seconds, 1),
            }
            for name, (predictions, seconds) in sides.items()
        },
        "theirs_own_result": official_value,
        "difference": {"value": _value(counts["ours"]) - _value(counts["theirs"]), "interval_95": [low, high]},
        "same_answers": sum(a == b for a, b in zip(theirs, mine)) / len(rows),
        "within_noise": low <= 0.0 <= high,
    }  # fmt: skip


def _value(counts: np.ndarray) -> float:
    return 100.0 * counts[:, 0].sum() / counts[:, 1].sum()


def _theirs(ours: Ours, table, seed: int, same_batches: bool) -> tuple[list[str], dict[str, float], float]:
    """s3prl's answers for our test rows, its own metrics, and the seconds of its whole run."""
    schedule, name = ours.schedule, ours.task.name
    changes = {
        "train": {"total_steps": schedule.steps, "eval_step": schedule.steps, "save_step": NEVER, "log_step": NEVER, "seed": seed},
        "build_optimizer": {"conf": {"lr": schedule.lr}},
        "build_batch_sampler": {"train": {"seed": seed}},
    }
    batches = ours.batches(schedule.steps * schedule.accumulate) if same_batches else None
    begun = time.perf_counter()
    with silent(), unseeded():
        initial = s3prl_state(ours.head())
        theirs = Theirs(name, table, ours.upstream.expert, changes=changes, whole=True, initial=initial, batches=batches)
    spent = time.perf_counter() - begun
    answers = dict(zip(theirs.tested["unique_name"], theirs.tested["prediction"]))
    found = [answers[str(uid)] for uid in table["id"].iloc[ours.probe.split["test"]]]
    own = {key: float(value) for key, value in theirs.result.items()}
    theirs.close()
    return [" ; ".join(answer) if isinstance(answer, np.ndarray) else answer for answer in found], own, spent


def _page(result: dict[str, Any]) -> str:
    rows = []
    for r in result["runs"]:
        sides = [f"{r[s]['value']:.2f} [{r[s]['interval_95'][0]:.2f}, {r[s]['interval_95'][1]:.2f}]" for s in ("theirs", "ours")]
        low, high = r["difference"]["interval_95"]
        rows.append([
            f"{r['task']} ({r['metric']}, {r['unit']})", str(r["seed"]), str(r["schedule"]["steps"]), f"{r['schedule']['lr']:g}",
            f"{r['schedule']['batch']} x {r['schedule']['accumulate']}", "ours on both sides" if r["same_batches"] else "each its own",
            f"{r['train']} / {r['items']}", *sides,
            f"{r['difference']['value']:+.2f} [{low:+.2f}, {high:+.2f}]", "yes" if r["within_noise"] else "**no**",
            f"{100 * r['same_answers']:.0f} %", f"{_number(r['theirs']['seconds'])} / {_number(r['ours']['seconds'])}",
        ])  # fmt: skip
    header = [
        "task", "seed", "steps", "lr", "batch", "sampling", "train / test items", "s3prl", "ours", "ours - s3prl, paired", "0 inside", "same answers",
        "seconds s3prl / ours",
    ]  # fmt: skip
    environment = result["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "s3prl"))
    means = []
    settings = [(r["task"], r["same_batches"], r["schedule"]["lr"], r["schedule"]["steps"]) for r in result["runs"]]
    for setting in dict.fromkeys(settings):
        name, runs = setting[0], [r for r, s in zip(result["runs"], settings) if s == setting]
        if len(runs) > 1:
            sides = {s: [r[s]["value"] for r in runs] for s in ("theirs", "ours")}
            text = [f"{statistics.mean(v):.2f} (deviation {statistics.stdev(v):.2f})" for v in sides.values()]
            means.append(f"- {name}, mean of {len(runs)} seeds: s3prl {text[0]}, ours {text[1]}")
    parts = [
        TITLE,
        "\n".join(f"- `{command}`" for command in dict.fromkeys(r["command"] for r in result["runs"])),
        f"Upstream {result['upstream']} ({result['upstream_digest'][:12]}), data {result['data']}; {versions}, {environment['threads']} "
        f"threads; commit {environment['git_commit']}; {environment['finished']}.",
        "s3prl: the problem's `run` with its own encoders, tokenizer, samplers, training, checkpoint and test; only its data step is "
        "replaced, by one that writes our table as its csv files. Ours: as `python -m eval run --generation problem` does it. Both look at dev "
        "once, at the last step, begin with the same head, and use the published batch and accumulation. Sampling: each its own, the same "
        "sampler with one seed, or our batches on both sides. Intervals: 95 %, percentile bootstrap over test utterances, "
        "1000 resamples; that of the difference resamples both sides' answers together.",
        _table(header, rows),
        *(["\n".join(means)] if means else []),
    ]
    return "\n\n".join(parts) + "\n"
