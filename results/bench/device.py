"""``python results/bench/device.py``: what an encoder costs on a device in each precision, and what that changes in its
scores, as ``results/device.md`` and ``.json``.

Exports the model, times all precisions in turns, measures the memory of each in a process of its own, and scores them
by ``star-eval run`` (a rerun goes on where the last one stopped). The scores take most of the time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import turns
from page import table
from script import path, processor, write

import star_upstream
from star_upstream import environment, outputs
from star_upstream.analysis.latency import PEAK, peak_memory
from star_upstream.say import command, say

REPO = Path(__file__).resolve().parents[2]
MAKER = "results/bench/device.py"
TITLE = "# On a device: "
BUSY = (
    "**The machine was busy with other work (load {load} when the timing began): the times say nothing, and are to be "
    "measured again. Sizes, memory and changes hold.**"
)
CLOCK = (
    "The machine was busy with other work: times are of the processor, all threads together (`--clock cpu`), and hold "
    "what the others take from its caches."
)
SOURCE = "STAR_DEVICE_SOURCE"
KINDS = {
    "torch_fp32": "torch, fp32",
    "torch_bf16": "torch, bf16",
    "fp32": "onnxruntime, fp32",
    "int8_static": "onnxruntime, int8, static",
    "int8_dynamic": "onnxruntime, int8, dynamic",
}
SCORED = ("torch_fp32", "torch_bf16", "int8_static", "int8_dynamic")
"""The exported fp32 file gives torch's states within 1e-4: its scores are those of torch."""
SECONDS = (2.0, 10.0)


def bf16() -> star_upstream.UpstreamExpert:
    """The model of ``$STAR_DEVICE_SOURCE`` in bf16, for ``star-eval run --upstream device:bf16``."""
    return star_upstream.load(os.environ[SOURCE]).bfloat16()


def export(source: str, audio: list[str], work: Path) -> dict[str, Path]:
    """The exported files; those that are there and of this model stay."""
    from star_upstream.export import int8, onnx

    work.mkdir(parents=True, exist_ok=True)
    digest, files = star_upstream.load(source).digest, {}
    for kind in ("fp32", "int8_static", "int8_dynamic"):
        path = files[kind] = work / f"{kind}.onnx"
        if not path.exists() or onnx.describe(path)["sha256"] != digest:
            say(f"device: exporting {path}")
            if kind == "fp32":
                onnx.export(source, path)
            else:
                int8.export(source, path, int8.draw(audio), dynamic=kind == "int8_dynamic")
    return files


def runner(kind: str, source: str, file: Path | None, threads: int) -> Callable[[np.ndarray], Any]:
    """One forward pass of a waveform (N), to the states that SUPERB is given."""
    if file is not None:
        from star_upstream.runtime import Model

        exported = Model(file, threads)
        return lambda wave: exported.run([wave])
    model = star_upstream.load(source).requires_grad_(False)
    model = model.bfloat16() if kind == "torch_bf16" else model

    def run(wave: np.ndarray) -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model([torch.from_numpy(wave)])

    return run


def times(source: str, files: dict[str, Path], rounds: int, counts: list[int], clock: str) -> dict[str, Any]:
    """Seconds of each kind by threads and length: the median of ``rounds`` rounds in turns, after one to warm up."""
    found: dict[str, Any] = {kind: {} for kind in KINDS}
    for threads in counts:
        models = {kind: runner(kind, source, files.get(kind), threads) for kind in KINDS}
        for seconds in SECONDS:
            calls = {kind: functools.partial(model, _wave(seconds)) for kind, model in models.items()}
            for kind, taken in turns.in_turns(calls, rounds, clock).items():
                found[kind][f"{threads} threads, {seconds:g} s"] = [statistics.median(taken), min(taken), max(taken)]
    return found


def memory(kind: str, source: str, file: Path | None) -> float:
    """Peak resident MB of a process that loads the model and hears 10 s; of a file, without torch."""
    if file is not None:
        return peak_memory(file)
    code = f"import device; device.runner({kind!r}, {source!r}, None, 1)(device._wave(10.0)); {PEAK}"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=REPO, env=_env(), check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024 / 1e6


def scores(args: argparse.Namespace, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Records of ``star-eval run`` by kind and task."""
    found: dict[str, dict[str, Any]] = {}
    for kind in SCORED:
        upstream = {"torch_fp32": args.source, "torch_bf16": "device:bf16"}.get(kind) or str(files[kind])
        out = args.work / "scores" / kind
        words = [
            "--upstream",
            upstream,
            "--tasks",
            args.tasks,
            "--data",
            args.data,
            "--schedule",
            "mini",
            "--out",
            out,
        ]
        env = _env() | {SOURCE: args.source}
        subprocess.run(
            [sys.executable, "-m", "eval", "run", *map(str, words)],
            cwd=REPO,
            env=env,
            check=True,
        )
        records = {task: json.loads((out / f"{task}.json").read_text()) for task in args.tasks.split(",")}
        keys = ("title", "metric", "unit", "direction", "value", "interval_95", "items")
        found[kind] = {task: {key: record[key] for key in keys} for task, record in records.items()}
    return found


def page(found: dict[str, Any]) -> str:
    """The page of what was measured."""
    first = found["times"]["torch_fp32"]
    columns = list(first)
    busy = found["load"] > (os.cpu_count() or 1)
    lines = [
        f"{TITLE}{found['source']}",
        "",
        f"`{found['command']}`, {found['machine']}, versions {found['versions']}.",
        *(["", CLOCK if found["clock"] == "cpu" else BUSY.format(**found)] if busy else []),
        "",
        "Milliseconds are the median of rounds in turns, the fastest round in brackets; RTF is the median over the "
        "audio's length. Memory is the peak of a process that loads the model and hears 10 s, Python included; "
        "exported files run without torch. MB are weights as stored: of torch, parameters times their bytes.",
        "",
    ]
    rows = []
    for kind, title in KINDS.items():
        cells = []
        for column in columns:
            median, fastest, _ = found["times"][kind][column]
            seconds = float(column.split(", ")[1].removesuffix(" s"))
            cells.append(f"{1000 * median:.1f} ({1000 * fastest:.1f}), {median / seconds:.4f}")
        rows.append([title, f"{found['megabytes'][kind]:.2f}", *cells, f"{found['memory'][kind]:.0f}"])
    header = ["", "MB", *(f"{column}: ms (fastest), RTF" for column in columns), "peak MB"]
    lines.append(table(header, rows))
    base = found["times"]["fp32"]
    gains = [
        f"{column}: {base[column][0] / found['times']['int8_static'][column][0]:.2f} (static), "
        f"{base[column][0] / found['times']['int8_dynamic'][column][0]:.2f} (dynamic)"
        for column in columns
    ]
    lines += [
        "",
        f"Times as fast in int8 as in fp32, both by onnxruntime: {'; '.join(gains)}.",
        "",
    ]
    lines += [
        "## What stays in float",
        "",
        "Change of the outputs with one part alone in 8 bits, the largest of them:",
        "",
    ]
    for kind in ("int8_static", "int8_dynamic"):
        said = found["int8"][kind]
        floats = [
            f"{name} {change}" + (", slower" if said["slower"].get(name, -1.0) > said["slower_limit"] else "")
            for name, change in said["alone"].items()
            if name not in said["parts"]
        ]
        inside = [f"{name} {said['alone'][name]}" for name in said["parts"]]
        total = max(said["change"].values())
        lines.append(
            f"- {KINDS[kind]}: in float {', '.join(floats) or 'nothing that was tried'}; in 8 bits {', '.join(inside)}."
            f" All of these together: {total} at most (limit for one part: {said['limit']}; a convolution that slows "
            f"the whole by more than {said['slower_limit']:.0%} stays in float)."
        )
    if found["scores"]:
        tasks = list(found["scores"]["torch_fp32"])
        plain = found["scores"]["torch_fp32"]
        lines += [
            "",
            "## Scores",
            "",
            f"`{found['scored_by']}`, one seed; 95 % bootstrap intervals over test items.",
            "",
        ]
        rows = []
        for kind, each in found["scores"].items():
            cells = []
            for task in tasks:
                if task not in each:
                    cells.append("not measured")
                    continue
                low, high = each[task]["interval_95"]
                least, most = plain[task]["interval_95"]
                outside = "" if least <= each[task]["value"] <= most else " *outside*"
                cells.append(f"{each[task]['value']:.2f} [{low:.2f}, {high:.2f}]{outside}")
            rows.append([KINDS[kind], *cells])
        lines += [
            table(["", *(f"{plain[task]['title']} ({plain[task]['metric']})" for task in tasks)], rows),
            "",
            "*outside*: the value lies outside of fp32's interval. The exported fp32 file gives torch's states "
            "within 1e-4 and was not scored again.",
        ]
    return "\n".join(lines) + "\n"


def _wave(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def _env() -> dict[str, str]:
    paths = [str(REPO), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        default="star_mini",
        help="anything that star_upstream.load takes (star_mini)",
    )
    parser.add_argument("--data", default="../shared/realspeech", help="corpora to score on")
    parser.add_argument(
        "--calibrate",
        nargs="+",
        help="audio to calibrate on (the corpora's, all of it)",
    )
    parser.add_argument("--tasks", default="ks,sid,pr,asv,er", help="or none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clock", choices=turns.CLOCKS, default="wall", help="cpu: where the machine is busy")
    parser.add_argument(
        "--work",
        type=path,
        default=Path("build/device"),
        help="exported files and records",
    )
    parser.add_argument("--out", type=path, default=Path("results/device.md"))
    args = parser.parse_args()
    args.data, args.work = str(Path(args.data).resolve()), args.work.resolve()
    args.source = str(Path(args.source).resolve()) if Path(args.source).exists() else args.source
    out = outputs.check_file(args.out, MAKER, outputs.begins_with(TITLE))
    files = export(args.source, args.calibrate or [str(Path(args.data) / "audio")], args.work)
    from star_upstream.export import onnx

    measured = scores(args, files) if args.tasks != "none" else {}
    say(f"device: timing, {args.rounds} rounds")
    sizes = {kind: path.stat().st_size / 1e6 for kind, path in files.items()}
    parameters = sum(p.numel() for p in star_upstream.load(args.source).parameters())
    found = {
        "made_by": MAKER,
        "source": Path(args.source).name,
        "command": f"python {MAKER} {shlex.join(sys.argv[1:])}".strip(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "versions": environment.versions(("torch", "onnx", "onnxruntime")),
        "sha256": star_upstream.load(args.source).digest,
        "megabytes": {
            "torch_fp32": 4 * parameters / 1e6,
            "torch_bf16": 2 * parameters / 1e6,
            **sizes,
        },
        "clock": args.clock,
        "times": times(args.source, files, args.rounds, args.threads, args.clock),
        "memory": {kind: memory(kind, args.source, files.get(kind)) for kind in KINDS},
        "int8": {kind: onnx.describe(files[kind])["int8"] for kind in ("int8_static", "int8_dynamic")},
        "scored_by": f"star-eval run --tasks {args.tasks} --data {Path(args.data).name} --schedule mini",
        "scores": measured,
    }
    write(out, page(found), found)
    say(f"device: wrote {out}")
    return 0


if __name__ == "__main__":
    command(main)
