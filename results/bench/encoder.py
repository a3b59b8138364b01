"""``python results/bench/encoder.py``: forward passes of encoders side by side, beside transformers and torchaudio.

HuBERT Base has random weights, the same in all three implementations, whose states are compared first; students have
random weights. About five minutes on two cores with the defaults.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch
import turns
from page import number, table
from script import check_page, path, processor, write
from torch import Tensor

from star_upstream import runtime, strict
from star_upstream.analysis.latency import in_threads
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.encoder.size import macs, parameters
from star_upstream.environment import environment
from star_upstream.errors import StarError
from star_upstream.export import onnx
from star_upstream.say import command, say
from star_upstream.training import recipe

MAKER, TITLE = "results/bench/encoder.py", "# Encoders side by side"
STUDENTS = ("star_hubert", "star_hubert_mel", "star_hubert_xs", "star_hubert_mel_xs")
FIRST = "transformers HuBERT Base"
TOLERANCE = {"torch.float32": 1e-3, "torch.bfloat16": 0.1}
"""Largest relative difference of the last states of two sides that compute the same."""

Side = Callable[[Tensor], Any]


def bases() -> tuple[dict[str, Side], EncoderConfig]:
    """HuBERT Base in three implementations, and its shape."""
    import torchaudio

    torch.manual_seed(0)
    theirs, ours = models.hubert()
    other = torchaudio.models.wav2vec2.utils.import_huggingface_model(theirs.eval()).eval()
    return {
        FIRST: lambda x_BN: theirs(x_BN).last_hidden_state,
        "torchaudio HuBERT Base": lambda x_BN: other(x_BN)[0],
        "ours, HuBERT Base": last(ours),
    }, ours.config


def last(encoder: Encoder) -> Side:
    return lambda x_BN: encoder(x_BN).states[-1]


def students(
    names: list[str], files: list[Path], folder: Path, counts: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sides and shapes of students; of the first one also in bf16 and exported (a file a number of threads)."""
    sides: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for i, name in enumerate(names):
        torch.manual_seed(0)
        config = recipe.load(name).student_config()
        encoder = Encoder(config).eval()
        sides[name], shapes[name] = last(encoder), config
        if i == 0:
            halved = Encoder(config).eval()
            halved.load_state_dict(encoder.state_dict())
            sides[f"{name}, bf16"], shapes[f"{name}, bf16"] = last(halved.bfloat16()), config
            file = folder / f"{name}.onnx"
            onnx.write(onnx.Graph(encoder, layers=[-1]), file, {"of": {}, "licence": ""}, seconds=(0.3, 1.0))
            files = [file, *files]
    for file in files:
        loaded = {count: runtime.Model(file, count) for count in counts}
        about = loaded[counts[0]].about
        name = f"{file.stem}, {about['precision']}, onnxruntime"
        sides[name] = {count: exported(model) for count, model in loaded.items()}
        shapes[name] = strict.build(EncoderConfig, about["encoder"])
    return sides, shapes


def exported(model: runtime.Model) -> Side:
    name = list(model.outputs)[-1]
    return lambda x_BN: torch.from_numpy(model.run(list(x_BN.numpy()), [name])[name])


def agree(sides: dict[str, Any], students_: dict[str, Any], waves_BN: Tensor) -> dict[str, float]:
    """Relative difference of last states, of each side from the one that it must equal. Raises :class:`StarError`."""
    found = {}
    right_BTD = sides[FIRST](waves_BN)
    pairs = dict.fromkeys(list(sides)[1:], right_BTD)
    plain = next(iter(students_))
    for name, side in students_.items():
        if name != plain and name.split(",")[0] == plain:
            sides = {**sides, name: side if callable(side) else next(iter(side.values()))}
            pairs[name] = students_[plain](waves_BN)
    for name, other_BTD in pairs.items():
        difference_BTD = sides[name](waves_BN).float() - other_BTD
        found[name] = (difference_BTD.norm() / other_BTD.norm()).item()
        limit = TOLERANCE["torch.bfloat16" if "bf16" in name or "int8" in name else "torch.float32"]
        if not found[name] <= limit:
            raise StarError(f"{name}: its states are {found[name]:.2g} of their size off (limit {limit})")
    return found


@torch.inference_mode()
def run(args: argparse.Namespace, typed: list[str]) -> int:
    """Measure, and write the page and, beside it, the numbers."""
    check_page(args.out, MAKER, TITLE, "encoders")
    rows = []
    with tempfile.TemporaryDirectory(prefix="star_bench_") as folder:
        sides, base = bases()
        own, shapes = students(args.students, args.file, Path(folder), args.threads)
        shapes |= dict.fromkeys(sides, base)
        off = agree(sides, own, _noise(2, 2.0))
        for count in args.threads:
            with in_threads(count):
                for batch in args.batch:
                    for seconds in args.seconds:
                        waves_BN = _noise(batch, seconds)
                        calls = {
                            name: side if callable(side) else side[count] for name, side in {**sides, **own}.items()
                        }
                        timed: dict[str, Callable[[], Any]] = {
                            name: functools.partial(side, waves_BN) for name, side in calls.items()
                        }
                        timed["product"] = turns.product(torch.float32)
                        times = turns.in_turns(timed, args.repeats, args.clock)
                        rows.append(_row(count, batch, seconds, times, shapes))
                        say(f"{count} threads, {batch} x {seconds:g} s: done")
    result = {
        "command": shlex.join(["python", MAKER, *typed]), "processor": processor(), "load": turns.load(),
        "clock": args.clock,
        "environment": environment(), "differences": off, "encoders": rows,
        "parameters": {name: parameters(shape) for name, shape in shapes.items()},
    }  # fmt: skip
    write(args.out, page(result), result)
    print(json.dumps({"out": str(args.out)}))
    return 0


def _noise(batch: int, seconds: float) -> Tensor:
    return 0.1 * torch.randn(batch, round(seconds * 16_000), generator=torch.Generator().manual_seed(0))


def _row(
    count: int, batch: int, seconds: float, times: dict[str, list[float]], shapes: dict[str, Any]
) -> dict[str, Any]:
    product = turns.rate(min(times.pop("product")))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    work = {name: batch * macs(shapes[name], round(seconds * 16_000)) / 1e9 for name in times}
    sides = {
        name: {
            "median_s": medians[name], "fastest_s": min(times[name]), "slowest_s": max(times[name]),
            "times_faster": medians[FIRST] / medians[name], "macs_g": work[name],
            "share_of_product_rate": work[name] / medians[name] / product,
        }
        for name in times
    }  # fmt: skip
    return {"threads": count, "batch": batch, "seconds": seconds, "product_gmacs": product, "sides": sides}


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [TITLE, "", f"Made by `{result['command']}` on {result['processor']} ({result['load']}), torch "
             f"{result['environment']['versions']['torch']}. In turns in one run; medians of seconds by the "
        f"{result['clock']} clock.", ""]  # fmt: skip
    told = ", ".join(f"{name} {value:.1g}" for name, value in result["differences"].items())
    lines += [
        f"Last states before timing, relative difference from {FIRST}'s or from the same student's in torch: {told}.",
        "",
    ]
    header = ["", "M parameters", "ms", "fastest to slowest", "times as fast", "share of the product rate"]
    for row in result["encoders"]:
        rate, size = row["product_gmacs"], turns.SIZE
        title = f"## {row['batch']} x {row['seconds']:g} s, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        lines += [
            title,
            "",
            f"fp32 products of {size} x {size} matrices: {rate:.0f} G multiply-accumulates a second.",
            "",
        ]
        cells = [
            [
                name, f"{result['parameters'][name] / 1e6:.1f}", number(1e3 * side["median_s"]),
                f"{number(1e3 * side['fastest_s'])} to {number(1e3 * side['slowest_s'])}",
                f"{side['times_faster']:.2f}", f"{side['share_of_product_rate']:.0%}",
            ]
            for name, side in row["sides"].items()
        ]  # fmt: skip
        lines += [table(header, cells), ""]
    return "\n".join(lines)


def numbers(kind: type) -> Callable[[str], list[Any]]:
    return lambda text: [kind(word) for word in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python {MAKER}", description=__doc__)
    add = parser.add_argument
    add(
        "--seconds",
        type=numbers(float),
        default=[10.0],
        help="lengths, commas between (default 10; the whole: 2,10,30)",
    )
    add("--batch", type=numbers(int), default=[1], help="utterances, commas between (default 1; the whole: 1,8)")
    add("--threads", type=numbers(int), default=[1, 2], help="CPU threads, commas between (default 1,2)")
    add("--repeats", type=int, default=5, help="rounds (default 5)")
    add("--students", type=numbers(str), default=list(STUDENTS), help=f"recipes (default {','.join(STUDENTS)})")
    add("--file", action="append", type=path, default=[], help="a file of `star export` more, of any precision")
    add(
        "--out",
        type=path,
        default=Path("results/speed/encoder.md"),
        help="the page; the numbers go beside it, in .json",
    )
    add("--clock", choices=list(turns.CLOCKS), default="wall", help="cpu: one thread on a busy machine")
    typed = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(typed)
    return run(args, typed)


if __name__ == "__main__":
    command(main)
