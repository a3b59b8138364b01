"""``python -m eval bench``: s3prl's own training loop and ours, side by side on the same upstream, data and batches."""

from __future__ import annotations

import json
import platform
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from star_upstream import outputs
from star_upstream.errors import StarError, nearest
from star_upstream.files import replacing, write_json

from .. import tasks
from ..machine import environment
from ..run import _data, say
from . import generated, measure, upstreams
from .page import TITLE, page

FORMAT = 1


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    tasks: str = "all"
    upstreams: tuple[str, ...] = ("hubert_base_random", "star_hubert_random")
    data: str = "generated"
    threads: int | None = None
    overwrite: bool = False
    arguments: tuple[str, ...] = ()
    """As they were typed, for the page."""
    sizes: measure.Sizes = field(default_factory=measure.Sizes)


def run(options: Options) -> int:
    """Measure, and write ``options.out`` (Markdown) and the same with .json after each task; a rerun goes on from there. Returns the
    exit code: 1 where the two sides' losses differ."""
    wanted = _tasks(options.tasks)
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = options.data if options.data == "generated" else str(_data(options.data)[0])
    file = options.out.with_suffix(".json")
    settings = {"format": FORMAT, "data": data, "threads": torch.get_num_threads(), "sizes": asdict(options.sizes)}
    result = _begun(file, settings, options.overwrite) or {**settings, "upstreams": {}}
    command = shlex.join(["python", "-m", "eval", *options.arguments])
    for name in options.upstreams:
        upstream = upstreams.get(name)
        found = result["upstreams"].setdefault(name, {})
        say(f"{name}: {upstream.parameters / 1e6:.2f} M parameters, {upstream.layers} layers of {upstream.width}")
        for task in wanted:
            if task.name in found:
                say(f"{task.name}: already in {file}")
                continue
            found[task.name] = measure.measure(task, upstream, data, options.sizes, say)
            result["upstreams"][name] = {n: found[n] for n in measure.all_tasks() if n in found}
            found = result["upstreams"][name]
            result |= {
                "command": command, "processor": processor(), "environment": environment(),
                "lengths": {n: lengths.about for n, lengths in generated.LENGTHS.items()}, "about": upstreams.shapes(),
            }  # fmt: skip
            write_json(file, result)
            with replacing(options.out) as part:
                part.write_text(page(result), encoding="utf-8")
    records = [record for name in options.upstreams for record in result["upstreams"][name].values()]
    differing = [f"{r['upstream']} {r['task']}" for r in records if r["agreement"] and not r["agreement"]["good"]]
    if differing:
        say(f"the two sides' losses differ: {', '.join(differing)}")
    ratios = {f"{r['upstream']}/{r['task']}": r["projected_hours"]["ratio"] for r in records if "projected_hours" in r}
    print(json.dumps({"out": str(options.out), "ratios": ratios, "differing": differing}))
    return 1 if differing else 0


def _tasks(text: str) -> list[Any]:
    names = measure.all_tasks()
    wanted = tasks.parse(",".join(names) if text.strip() == "all" else text)
    for task in wanted:
        if task.name not in names:
            raise StarError(f"bench: s3prl has no problem for {task.name!r}; tasks: {', '.join(names)} or all")
    return wanted


def _check(options: Options) -> None:
    sizes = options.sizes
    for flag, value, least in (
        ("--repeats", sizes.repeats, 1), ("--check-steps", sizes.check_steps, 0), ("--batch", sizes.batch, 1),
        ("--threads", options.threads, 1), ("--seconds", sizes.seconds, 0), ("--utterance-seconds", sizes.utterance_seconds, 0.5),
    ):  # fmt: skip
        if value is not None and value < least:
            raise StarError(f"{flag} {value}: must be at least {least}")
    if options.out.suffix != ".md":
        raise StarError(f"--out {options.out}: must end in .md (the numbers go beside it, in .json)")
    check_page(options.out, "python -m eval bench", TITLE, "upstreams")
    for name in options.upstreams:
        if name.endswith("_random") and name not in upstreams.shapes():
            known = upstreams.shapes()
            raise StarError(f"--upstream {name}: unknown shape{nearest(name, known)}; with random weights: {', '.join(known)}")


def check_page(out: Path, maker: str, title: str, key: str) -> None:
    """Raises :class:`StarError` where ``out`` or the numbers beside it are there and no earlier result, told by the page's title and a
    key of the json."""

    def numbers(path: Path) -> bool:
        try:
            return key in json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError):
            return False

    outputs.check_file(out, maker, outputs.begins_with(title))
    outputs.check_file(out.with_suffix(".json"), maker, numbers)


def _begun(file: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    if overwrite or not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key, value in settings.items() if result.get(key) != value]
    except (ValueError, AttributeError):
        raise StarError(f"{file}: not a benchmark's json; remove it, or use --overwrite") from None
    if other:
        raise StarError(f"{file}: holds other measurements ({', '.join(other)} differ); choose another --out, or use --overwrite")
    return result


def processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()
