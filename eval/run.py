"""One upstream on a list of tasks: corpus, features, heads, metric, one json a task."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from star_upstream import cluster, compat, cores, outputs
from star_upstream.data import corpora
from star_upstream.environment import cache_home
from star_upstream.errors import StarError
from star_upstream.files import home, replacing, write_json
from star_upstream.say import say

from . import record as record_of
from . import tasks
from .encoding import encoded, features_of, of_share
from .features import encode, upstreams
from .heads import train
from .heads.probe import Task
from .heads.probe import schedule as pick_schedule
from .launch import Failure, Result, launched
from .machine import environment, peak_memory, reset_peak_memory
from .options import Run

FORMAT = 1
"""Version of the records."""
MAKER = "python -m eval run"
MANIFESTS = "manifest:"
"""What a corpus of manifests is called, before the name of its folder."""
PROGRESS = ".progress"
"""Folder in ``out`` for what a broken run goes on from."""
RESAMPLES = ".resamples.npz"
"""Ending, after the task's name, of what paired tests need: each metric's values over resamples of the test items."""


def run(options: Run, launch: cluster.Launch) -> int:
    """Evaluate; one task's failure does not stop the others. Returns the exit code: 0; 1 when a task failed; 2 when
    nothing could be done because of the input.

    Raises :class:`StarError` for what concerns every task: an unknown task or upstream, a device that is not there.
    """
    wanted = tasks.parse(options.tasks)
    if options.limit is not None and options.limit < 1:
        raise StarError(f"--limit {options.limit}: must be at least 1")
    if not all(0 < lr < math.inf for lr in options.lr_grid):
        raise StarError("--lr-grid: learning rates must be numbers above 0")
    if not 0 <= options.cache_gb < math.inf:
        raise StarError(f"--cache-gb {options.cache_gb:g}: must be a number of at least 0")
    for task in wanted:
        pick_schedule(task, options.schedule or next(iter(task.schedules)), options.steps)
    launch.check()
    away = launch.away
    if options.encode_jobs and not (away and options.encode_jobs > 0):
        raise StarError(f"--encode-jobs {options.encode_jobs}: is a number of jobs, for --launcher submitit")
    alone = not away and (launch.jobs == 1 or len(wanted) == 1)
    if torch.get_num_threads() > cores.available():  # a container's quota, which torch does not see
        torch.set_num_threads(cores.available())
    device = _device(options.device, elsewhere=away)
    root, _ = corpora_folder(options.data)  # says now what is wrong with it
    if options.dry_run:
        counts = {task.name: len(corpora.load(task.name, root)) for task in wanted}
        say(f"{root}: {', '.join(f'{count} rows for {name}' for name, count in counts.items())}")
        return 0
    _claim(options, wanted, outputs.check_folder)
    upstream = _upstream(options, device if alone else "cpu")
    _claim(options, wanted, outputs.claim_folder)
    say(
        f"{upstream.name}: {upstream.parameters / 1e6:.2f} M parameters, {upstream.layers} layers of {upstream.width}, "
        f"digest {upstream.digest[:12]}"
    )
    here = wanted if alone else [task for task in wanted if away and _is_there(task, options)]
    results = {task.name: _attempt(task, upstream, options, device) for task in here}
    others = [task.name for task in wanted if task.name not in results]
    if options.encode_jobs and others and not options.exact:
        share = functools.partial(_share, options, others)
        encoded(share, options.encode_jobs, options.out, launch, int(device.type == "cuda"))
    results |= launched(functools.partial(_by_itself, options), others, options.out, launch, int(device.type == "cuda"))
    results = {task.name: results[task.name] for task in wanted}
    with contextlib.suppress(OSError):  # not there, or not empty
        (options.out / PROGRESS).rmdir()
    done = [result for result in results.values() if not isinstance(result, Failure)]
    failures = {name: result for name, result in results.items() if isinstance(result, Failure)}
    _summary(options, done, failures)
    if not failures:
        return 0
    return 2 if not done and all(failure.log is None for failure in failures.values()) else 1


def _claim(options: Run, wanted: list[Task], claim) -> None:
    """Take --out for this run, if it is new, empty or holds results, and no file that a task writes is somebody
    else's."""
    claim(options.out, MAKER, lambda folder: any(map(is_record, folder.glob("*.json"))))
    for task in wanted:
        outputs.check_file(options.out / f"{task.name}.json", MAKER, is_record)


def is_record(path: Path) -> bool:
    """Whether a file is a task's record, of this version or an earlier one."""
    return outputs.holds(path.name, "task", "metric", "value", "upstream_digest")(path.parent)


def _is_there(task: Task, options: Run) -> bool:
    """Whether a task's record is there, and to stay."""
    return (options.out / f"{task.name}.json").is_file() and not options.overwrite


def _attempt(task: Task, upstream, options: Run, device: torch.device) -> Result:
    try:
        return _task(task, upstream, options, device)
    except Exception as error:  # the summary names it; the other tasks go on
        log = None
        if not isinstance(error, StarError):
            log = options.out / f"{task.name}.error.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
        if len(tasks.parse(options.tasks)) > 1:  # else the summary says it at once
            say(f"{task.name}: failed: {one_line(error)}")
        return Failure(one_line(error), log)


def _by_itself(options: Run, name: str) -> Result:
    """A task in a process of its own, which shares nothing but the cache with the others."""
    device = _device(options.device)
    return _attempt(tasks.get(name), _upstream(options, device), options, device)


def _share(options: Run, names: list[str], share: str) -> list[str]:
    """Encode a job's share of what the tasks' features lack; of which tasks it could not, and why."""
    device, mine = _device(options.device), of_share(share)
    upstream = _upstream(options, device)
    root, kind = corpora_folder(options.data)
    store = encode.Store(options.cache or cache_home() / "features", options.cache_gb)
    failed = []
    for task in map(tasks.get, names):
        try:
            schedule = pick_schedule(task, options.schedule or _default_schedule(task, root, kind), options.steps)
            table = task.probe.prepare(task, corpora.load(task.name, root), root, upstream.stride, options.limit)
            probe = task.probe(task, task.probe.splits(task, table)[0], schedule, options.seed)
            features_of(task, probe.table, schedule, upstream, store, False, mine)
        except Exception as error:  # the task's own job says it, too
            traceback.print_exc()
            failed.append(f"{task.name}: {one_line(error)}")
    return failed


def _upstream(options: Run, device: torch.device | str):
    upstream = upstreams.load(options.upstream, device)
    if options.exact:
        upstream.autocast = None
    return upstream


def _task(task: Task, upstream, options: Run, device: torch.device) -> dict[str, Any]:
    root, kind = corpora_folder(options.data)
    store = encode.Store(options.cache or cache_home() / "features", options.cache_gb)
    name = options.schedule or _default_schedule(task, root, kind)
    published = pick_schedule(task, name)
    schedule = pick_schedule(task, name, options.steps)
    lrs = tuple(dict.fromkeys(options.lr_grid or schedule.lr_grid or (schedule.lr,))) if schedule.steps else ()
    whole = corpora.load(task.name, root)
    remarks = list(whole.attrs.get("remarks", ()))
    for remark in remarks:
        say(f"{task.name}: NOTE: {remark}")
    table = task.probe.prepare(task, whole, root, upstream.stride, options.limit)
    exact = options.exact and schedule.steps > 0  # where nothing is trained, no batch is padded
    settings = {
        "task": task.name,
        "task_version": task.version,
        "upstream_digest": upstream.digest,
        "corpus": f"{MANIFESTS}{root.name}"
        if corpora.from_manifest(task.name, root)
        else _kind(task, whole, kind, options),
        "table_digest": _table_digest(table, root),
        "schedule": name,
        "steps": schedule.steps,
        "lr_grid": list(lrs),
        "seed": options.seed,
        "limit": options.limit,
        "encoding": "every step" if exact else "once",
    }
    if _is_there(task, options):
        return _finished(options.out / f"{task.name}.json", settings, asdict(schedule))

    reset_peak_memory(device)
    parts = task.probe.splits(task, table)
    probes = [task.probe(task, part, schedule, options.seed) for part in parts]
    features = features_of(task, probes[0].table, schedule, upstream, store, exact)
    mark = options.out / PROGRESS / f"{task.name}.pt"
    identity = hashlib.sha256(json.dumps([settings, asdict(schedule)], sort_keys=True).encode()).hexdigest()
    for probe in probes:
        probe.ready(features)
    if schedule.steps:
        shape = (upstream.layers, upstream.width, upstream.stride)
        fits = train.fit(probes, features, *shape, lrs, device, mark, identity)
    else:
        fits = [probe.choose(features, upstream.layers, mark, identity) for probe in probes]
    chosen_by, direction = train.selection(probes[0])
    lr, dev, heads = train.choose_rate(fits, direction)
    scores, resamples = record_of.scores(task, probes, heads, fits, features, options.seed, device)
    record = {
        "format": FORMAT,
        **settings,
        "title": task.title,
        **scores,
        # a longer mini schedule is another protocol, and no smoke run
        "limited": options.limit is not None
        or (schedule.steps < published.steps if name == "mini" else schedule.steps != published.steps),
        "rows": {"used": len(table), "corpus": len(whole)},
        "corpus_digest": _table_digest(whole, root),
        "remarks": remarks,
        "official_corpus": task.corpus,
        "official_splits": task.splits,
        "differences": _differences(task, upstream, exact, schedule.steps),
        "lr": lr,
        "chosen_by": chosen_by,
        "dev_value": dev,
        "grid": fits[0].grid if len(fits) == 1 else record_of.mean_grid(fits),
        "schedule_details": asdict(schedule),
        "layer_weights": record_of.mean_weights([head.layer_weights() for head in heads]),
        "head_parameters": sum(p.numel() for p in heads[0].parameters()),
        "seconds_encoding": round(features.seconds, 2),
        "seconds_training": round(sum(fit.seconds for fit in fits), 2),
        "peak_memory_mb": round(peak_memory(device)),
        "upstream": upstream.name,
        "method": upstream.method,
        "parameters": upstream.parameters,
        "macs_g": upstream.macs_g,
        "stride": upstream.stride,
        "layers": upstream.layers,
        "width": upstream.width,
        "batching": f"padded batches of {schedule.batch}, as s3prl trains" if exact else upstream.batching,
        "encoding_precision": "fp32" if exact else upstream.precision,
        "features": "frames, fp32"
        if exact
        else "per-layer time means, fp32"
        if task.features == "means"
        else "frames, fp16",
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "patched": compat.apply(),
        **environment(),
    }
    with replacing(options.out / f"{task.name}{RESAMPLES}") as part, open(part, "wb") as file:
        np.savez_compressed(file, **{name: values.astype(np.float32) for name, values in resamples.items()})  # type: ignore[arg-type]
    write_json(options.out / f"{task.name}.json", record)
    mark.unlink(missing_ok=True)
    (options.out / f"{task.name}.error.txt").unlink(missing_ok=True)
    return record


def _differences(task: Task, upstream, exact: bool, steps: int) -> list[str]:
    """Where this run differs from the published ones."""
    found = list(task.differences) + ([] if exact else list(task.differences_once))
    if not exact and steps:
        states = "" if upstream.padded else " and the states of some upstreams"
        found.append(
            "each utterance is encoded as if alone; s3prl pads training batches, which changes the last frame of "
            "utterances that are"
            f" not the longest{states}"
        )
    return found


def _finished(target: Path, settings: dict[str, Any], schedule: dict[str, Any]) -> dict[str, Any]:
    """The record that is there, if it is of these settings and this schedule (as far as it tells: fields are added)."""
    try:
        record = json.loads(target.read_text(encoding="utf-8"))
        record = {"encoding": "once", **record}
        kept = record.get("schedule_details", {})
        mine = json.loads(json.dumps({key: value for key, value in schedule.items() if key in kept}))
    except (ValueError, TypeError, AttributeError):
        raise StarError(f"{target}: not a record; remove it, or use --overwrite") from None
    other = [key for key, value in settings.items() if record.get(key) != value]
    if other == ["corpus"] and all(str(made["corpus"]).startswith(MANIFESTS) for made in (record, settings)):
        other = []  # another name of the folder; of what is in it the table's digest tells
    if record.get("generation") == "problem":  # an earlier version had runs by s3prl's problem package
        other.append("generation")
    if not other:
        other = [f"schedule_details.{key}" for key, value in mine.items() if kept[key] != value]
    if other:
        raise StarError(
            f"{target}: holds another run ({', '.join(other)} differ); choose another --out, or use --overwrite"
        )
    say(f"{settings['task']}: already done in {target}")
    return record


def corpora_folder(data: str) -> tuple[Path, str]:
    """The folder that ``--data`` names, and ``mini`` where its corpora are those of :mod:`eval.data.mini`, else
    ``folder``. ``mini`` itself is made where it is not there. Raises :class:`StarError` for a folder that is none."""
    from .data import mini

    if data == "mini":
        root = cache_home() / "mini"
        mini.make(root)
        return root, "mini"
    root = Path(os.path.abspath(home(data)))
    if wrong := corpora.misplaced(root):
        raise StarError(f"--data {wrong}")
    if not root.is_dir():
        raise StarError(f"--data {root}: no such folder; give the one that holds the corpora, or use `--data mini`")
    return root, "mini" if (root / mini.MARKER).is_file() else "folder"


def _default_schedule(task: Task, root: Path, kind: str) -> str:
    """SUPERB's own on the corpora that it belongs to; the short one elsewhere, said aloud where the data is the
    user's."""
    own = corpora.from_manifest(task.name, root)
    if own:
        say(f"{task.name}: own data, hence the short schedule; --schedule superb takes the published one")
    name = "mini" if own or kind == "mini" else "superb"
    return name if name in task.schedules else next(iter(task.schedules))


def _kind(task: Task, table: pd.DataFrame, kind: str, options: Run) -> str:
    """``official`` only where every known count of the published corpus is met."""
    if kind == "mini":
        return "mini"
    expected = corpora.BY_TASK[task.name].COUNTS[task.name]
    found = corpora.sizes(table)
    whole = options.limit is None and all(n is None or found.get(split, 0) == n for split, n in expected.items())
    return "official" if whole else "official layout, other counts"


def _table_digest(table: pd.DataFrame, root: Path) -> str:
    """Of ids, splits, lengths and targets, and of paths below the corpus folder, so that a moved corpus stays the
    same."""
    plain = table.assign(path=[os.path.relpath(p, root) for p in table["path"]])
    return hashlib.sha256(plain.to_csv(index=False).encode()).hexdigest()[:16]


def _device(name: str, elsewhere: bool = False) -> torch.device:
    """The device of that name; ``elsewhere``: for jobs on machines that may have what this one has not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StarError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise StarError(f"--device {name}: there is no CUDA device here; use --device cpu")
    return device


def one_line(error: Exception) -> str:
    """What an error says first, after its kind where it is none that users are meant to read."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, StarError) else f"{type(error).__name__}: {text}"


def _numbers(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [record, *record.get("further_metrics", [])]


def _summary(options: Run, done: list[dict], failures: dict[str, Failure]) -> None:
    for record in done:
        note = ", limited" if record["limited"] else ""
        for number in _numbers(record):
            value, low, high = (
                f"{n:.{2 if number['unit'] == '%' else 4}f}" for n in (number["value"], *number["interval_95"])
            )
            say(f"{record['task']:>5}  {number['metric']} {value} [{low}, {high}]  ({record['corpus']}{note})")
    for name, failure in failures.items():
        log = "" if failure.log is None else f" (see {failure.log})"
        say(f"{name:>5}  FAILED: {failure.message}{log}")
    print(
        json.dumps(
            {
                "upstream": options.upstream,
                "out": str(options.out),
                "metrics": {number["metric"]: number["value"] for record in done for number in _numbers(record)},
                "failed": {name: failure.message for name, failure in failures.items()},
            }
        )
    )
