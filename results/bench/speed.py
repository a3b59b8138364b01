"""``python results/bench/speed.py``: s3prl's own training loop and ours, timed side by side on the same upstream, data
and batches.

About half an hour on two cores with the defaults; a rerun goes on where the last one stopped. Whether both compute the
same is asked in ``parity.py``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import generated
import measure
import models
import torch
from page import TITLE, page
from script import check_page, guarded, path, processor, write

from eval import tasks
from eval.heads.probe import Task
from eval.machine import environment
from eval.run import corpora_folder
from star_upstream.errors import StarError
from star_upstream.say import command, say

FORMAT = 2
MAKER = "results/bench/speed.py"
UPSTREAMS = ("hubert_base_random", "star_hubert_random")
"""Those of the page, where none is named."""


def run(args: argparse.Namespace, typed: list[str]) -> int:
    """Measure, and write ``--out`` (Markdown) and the same with .json after each task; a rerun goes on from there."""
    wanted = _tasks(args.tasks)
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = args.data if args.data == "generated" else str(corpora_folder(args.data)[0])
    file = args.out.with_suffix(".json")
    sizes = measure.Sizes(args.repeats, args.seconds, args.batch, args.utterance_seconds)
    settings = {"format": FORMAT, "data": data, "threads": torch.get_num_threads(), "sizes": asdict(sizes)}
    result = _begun(file, settings, args.overwrite) or {**settings, "upstreams": {}}
    upstreams = args.upstream or UPSTREAMS
    for name in upstreams:
        upstream = models.get(name)
        found = result["upstreams"].setdefault(name, {})
        say(f"{name}: {upstream.parameters / 1e6:.2f} M parameters, {upstream.layers} layers of {upstream.width}")
        for task in wanted:
            if task.name in found:
                say(f"{task.name}: already in {file}")
                continue
            found[task.name] = measure.measure(task, upstream, data, sizes)
            result["upstreams"][name] = {n: found[n] for n in measure.all_tasks() if n in found}
            found = result["upstreams"][name]
            result |= {
                "command": shlex.join(["python", MAKER, *typed]),
                "processor": processor(),
                "environment": environment(),
                "lengths": {n: lengths.about for n, lengths in generated.LENGTHS.items()},
                "about": models.shapes(),
            }
            write(args.out, page(result), result)
    records = [record for name in upstreams for record in result["upstreams"][name].values()]
    ratios = {f"{r['upstream']}/{r['task']}": r["projected_hours"]["ratio"] for r in records if "projected_hours" in r}
    print(json.dumps({"out": str(args.out), "ratios": ratios}))
    return 0


def _tasks(text: str) -> list[Task]:
    names = measure.all_tasks()
    wanted = tasks.parse(",".join(names) if text.strip() == "all" else text)
    for task in wanted:
        if task.name not in names:
            raise StarError(f"speed: s3prl has no problem for {task.name!r}; tasks: {', '.join(names)} or all")
    return wanted


def _check(args: argparse.Namespace) -> None:
    limits = (
        ("--repeats", args.repeats, 1),
        ("--batch", args.batch, 1),
        ("--threads", args.threads, 1),
        ("--seconds", args.seconds, 0),
        ("--utterance-seconds", args.utterance_seconds, 0.5),
    )
    for flag, value, least in limits:
        if value is not None and value < least:
            raise StarError(f"{flag} {value}: must be at least {least}")
    check_page(args.out, MAKER, TITLE, "upstreams")
    for name in args.upstream or UPSTREAMS:
        models.check(name)


def _begun(file: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    if overwrite or not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key, value in settings.items() if result.get(key) != value]
    except (ValueError, AttributeError):
        raise StarError(f"{file}: not a benchmark's json; remove it, or use --overwrite") from None
    if other:
        fix = "choose another --out, or use --overwrite"
        raise StarError(f"{file}: holds other measurements ({', '.join(other)} differ); {fix}")
    return result


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python {MAKER}", description=__doc__)
    add = parser.add_argument
    add("--tasks", default="all", help="commas between; or all (default: the nine that s3prl has a problem for)")
    shapes = "random weights: hubert_base_random, star_hubert_random, tiny_random (default: the first two)"
    add("--upstream", action="append", metavar="NAME", help=f"may be given again; {shapes}; or what `eval run` takes")
    data = "generated (default: noise of the official lengths), mini, or a folder of corpora or manifests"
    add("--data", default="generated", help=data)
    add("--out", type=path, default=Path("results/bench.md"), help="the page; the numbers go beside it, in .json")
    add("--repeats", type=int, default=3, help="turns of each side (default 3)")
    add("--seconds", type=float, default=40.0, help="no further turn once s3prl's took so long (default 40)")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add("--batch", type=int, help="instead of the official batch sizes, to try it out: nothing is projected")
    add("--utterance-seconds", type=float, help="instead of the official average lengths: nothing is projected")
    add("--overwrite", action="store_true", help="measure again what is in --out")
    typed = list(sys.argv[1:] if argv is None else argv)
    return guarded(run, parser.parse_args(typed), typed)


if __name__ == "__main__":
    command(main)
