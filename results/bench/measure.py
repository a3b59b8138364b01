"""One task with one upstream: the times of the two sides, turn by turn."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import generated
import official
from ours import Ours, table_of
from problem import Theirs

from eval import tasks
from eval.features.store import Store
from eval.features.upstreams import Upstream
from eval.heads.probe import Schedule, Task
from star_upstream.audio import RATE
from star_upstream.say import say

BY_LENGTH = ("pr", "asr", "sf")
"""Their batches are of utterances of about one length; the generated ones are all alike, so that one batch stands for
all."""
LOOKED = 4
"""Utterances of an evaluation that is timed."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    repeats: int
    """Turns of each side."""
    seconds: float
    """No further turn once s3prl's have taken so long."""
    batch: int | None
    """Instead of the official batch size; nothing is then projected."""
    utterance_seconds: float | None
    """Average length of generated utterances, instead of the corpus's; nothing is then projected."""


def measure(task: Task, upstream: Upstream, data: str, sizes: Sizes) -> dict[str, Any]:
    """The record of one task. ``data``: ``generated``, or a folder of corpora or manifests."""
    official_schedule = task.schedules["superb"]
    schedule = replace(official_schedule, batch=sizes.batch or official_schedule.batch)
    with tempfile.TemporaryDirectory(prefix="star_bench_") as folder:
        store = Store(Path(folder) / "features", 20.0)
        made = data == "generated"
        distinct = 1 if made and task.name in BY_LENGTH else sizes.repeats
        if made:
            root = generated.make(
                Path(folder) / "data", task.name, distinct * schedule.batch, LOOKED, sizes.utterance_seconds
            )
        ours, theirs = _sides(task, Path(data) if not made else root, schedule, upstream, store)
        times = _turns(ours, theirs, distinct, sizes)
        theirs.close()
        hours = official.OFFICIAL[task.name] if made else _hours(ours)
    record = {
        "task": task.name,
        "upstream": upstream.name,
        "batch": schedule.batch,
        "accumulate": schedule.accumulate,
        "steps": official_schedule.steps,
        **times,
    }
    if sizes.batch is None and sizes.utterance_seconds is None:
        frame_bytes = upstream.layers * upstream.width * 2 * 3600 * RATE / upstream.stride
        per_hour = frame_bytes if task.features == "frames" else 0.0
        projection = official.project(
            hours,
            official_schedule,
            their_batch=times["theirs_seconds_a_batch"],
            our_step=times["ours_seconds_a_step"],
            encode=3600 * times["encode_seconds"] / times["encode_audio_seconds"],
            their_look=3600 * times["theirs_look_seconds"] / times["look_audio_seconds"],
            our_look=3600 * times["ours_look_seconds"] / times["look_audio_seconds"],
            bytes_an_hour=per_hour,
        )
        record |= {"hours": asdict(hours), "projected_hours": projection.record(), "aim": official.AIMS.get(task.name)}
    return record


def _sides(task: Task, root: Path, schedule: Schedule, upstream: Upstream, store: Store) -> tuple[Ours, Theirs]:
    table = table_of(task, root, upstream.stride)
    ours = Ours(task, table, schedule, upstream, store)
    changes: dict[str, Any] = {"build_optimizer": {"conf": {"lr": schedule.lr}}}
    if schedule.head:
        changes["build_downstream"] = schedule.head
    if task.name == "asv":  # its filter of short utterances reads all the audio first; ours is as long for both
        changes["build_dataset"] = {"train": {"min_secs": None, "max_secs": task.crop_seconds}}
    return ours, Theirs(task.name, table, upstream.expert, getattr(ours.probe, "tokenizer", None), changes)


def _turns(ours: Ours, theirs: Theirs, distinct: int, sizes: Sizes) -> dict[str, Any]:
    """Times of both sides; each turn is one batch of s3prl's, and a few of our steps on the same batches."""
    table, accumulate = ours.probe.table, ours.schedule.accumulate
    batches = ours.batches(distinct)
    features, encode_seconds, audio = ours.encode([row for batch in batches for row in batch])
    steps = 50 if ours.task.features == "means" else 2
    short = [batches[0][:1]]
    ours.train(features, short, 1, 1)
    theirs.train(short, 1, 1)
    our_steps, their_batches = [], []
    for turn in range(sizes.repeats):
        our_steps += ours.train(features, batches, steps, accumulate)[0]
        their_batches += theirs.train([batches[turn % distinct]], 1, 1)
        if sum(their_batches) > sizes.seconds:
            break
    _, head = ours.train(features, short, 1, 1)
    looked = batches[0][:LOOKED] if ours.task.name == "asv" else ours.probe.split["dev"][:LOOKED]
    dev = features if ours.task.name == "asv" else ours.encode(looked)[0]
    ours.evaluate(head, dev, looked[:1])
    seconds = table["samples"] / RATE
    size = theirs.batch_of_evaluation
    result = {
        "batch_audio_seconds": round(sum(seconds.iloc[b].sum() for b in batches) / distinct, 2),
        "encode_seconds": encode_seconds,
        "encode_audio_seconds": audio,
        "theirs_batches": their_batches,
        "theirs_seconds_a_batch": statistics.median(their_batches),
        "ours_steps": our_steps,
        "ours_seconds_a_step": statistics.median(our_steps),
        "look_audio_seconds": float(seconds.iloc[looked].sum()),
        "look_batch": size,
        "ours_look_seconds": ours.evaluate(head, dev, looked),
        "theirs_look_seconds": theirs.evaluate(looked, size),
    }
    say(
        f"{ours.task.name}: s3prl {accumulate * result['theirs_seconds_a_batch']:.3g} s a step, "
        f"ours {result['ours_seconds_a_step']:.3g} s "
        f"({len(their_batches)} and {len(our_steps)} measured)"
    )
    return result


def _hours(ours: Ours) -> official.Hours:
    """Of a corpus that was given."""
    table = ours.probe.table
    train, dev, test = (
        table["samples"].iloc[ours.probe.split[name]].sum() / RATE / 3600 for name in ("train", "dev", "test")
    )
    return official.Hours(train, dev, test, table["samples"].sum() / RATE / 3600, 5 if ours.task.name == "er" else 1)


def all_tasks() -> list[str]:
    """In SUPERB's order, those that s3prl has a problem for."""
    return [name for name in tasks.names() if name in official.OFFICIAL]
