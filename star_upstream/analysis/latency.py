"""Models side by side: sizes, and the time that one forward pass takes, measured in turns on this machine.

A model's time is the median over the rounds. Shapes: B utterances, N samples.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import audio, extras, strict
from ..encoder import Encoder, EncoderConfig
from ..encoder.size import profile
from ..errors import StarError
from ..formats import checkpoint
from ..formats.sources import load
from ..pruning.gates import GatedEncoder
from ..training import recipe as recipes
from ..training.pretrain_recipe import PretrainRecipe

REST = 0.05
"""Seconds before each timed call: threads of the call before, torch's and onnxruntime's, go on waiting for work on a
core for some milliseconds, which made what followed in two threads up to three times as slow."""
PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
"""Python that prints the peak of its process's resident memory in KiB (Linux; ``resource`` counts the parent's too)."""


class Exported:
    """A file of ``star export`` that is called as a model is: B x N waveforms of one length."""

    def __init__(self, path: str, threads: int | None = None):
        self.config = _exported(path)
        from ..export.onnx import describe, session

        if "stream" in describe(path):
            raise StarError(f"{path}: a stream has no forward pass of a whole waveform to be timed; leave --time out")
        self.session = session(Path(path), threads)

    def __call__(self, waves_BN: torch.Tensor) -> Any:
        lengths = torch.full(waves_BN.shape[:1], waves_BN.shape[1])
        return self.session.run(None, {"waveforms": waves_BN.numpy(), "lengths": lengths.numpy()})


Model = Encoder | GatedEncoder | Exported


def sizes(source: str) -> dict[str, Any]:
    """:func:`~star_upstream.encoder.size.profile` of a recipe's student (as it starts) or of anything that can be a
    teacher, without loading weights where they are not needed; for a checkpoint of ours also ``bytes``, the size of its
    weights on disk."""
    if source.endswith(".onnx"):
        return {**profile(_exported(source)), "bytes": Path(source).stat().st_size}
    if checkpoint.is_checkpoint(source):
        values = profile(strict.build(EncoderConfig, checkpoint.describe(source).get("encoder"), "encoder"))
        path = Path(source)
        weights = path if checkpoint.is_single(path) else (path if path.is_dir() else path.parent) / checkpoint.WEIGHTS
        return {**values, "bytes": weights.stat().st_size} if weights.is_file() else values
    if source in recipes.names(PretrainRecipe):
        return profile(recipes.load(source, (), PretrainRecipe).encoder_config())
    if _is_recipe(source):
        loaded = recipes.load(source)
        teacher = load(loaded.teacher).config if loaded.student == "teacher" else None
        return profile(loaded.student_config(teacher))
    return profile(load(source).config)


def model(source: str, threads: int | None = None) -> Model:
    """What runs, in eval mode: random weights for a recipe, and for the ``gated`` folder of a run that prunes the model
    with its gates. An exported file runs in ``threads``."""
    if source.endswith(".onnx"):
        return Exported(source, threads)
    if (Path(source) / "gates.json").is_file():
        from ..training import prune

        return prune.load_gated(source)
    if source in recipes.names(PretrainRecipe):
        return Encoder(recipes.load(source, (), PretrainRecipe).encoder_config()).eval()
    if checkpoint.is_checkpoint(source) or not _is_recipe(source):
        return load(source)
    loaded = recipes.load(source)
    return load(loaded.teacher) if loaded.student == "teacher" else Encoder(loaded.student).eval()


def in_turns(calls: Mapping[str, Callable[[], Any]], repeats: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` rounds after one to warm up, in another order each round: a machine's speed
    drifts, and other work comes and goes."""
    names, taken = list(calls), {name: list[float]() for name in calls}
    for round_ in range(repeats + 1):
        for i in range(len(names)):
            name = names[(i + round_) % len(names)]
            _rest()
            start = now()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                taken[name].append(now() - start)
    return taken


def _rest() -> None:
    """Awake: a core that slept is slower at first."""
    until = time.monotonic() + REST
    while time.monotonic() < until:
        pass


@contextmanager
def in_threads(count: int) -> Iterator[None]:
    """So many of torch's threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    models: Mapping[str, Model], seconds: float = 10.0, repeats: int = 15, threads: int | None = None
) -> dict[str, Any]:
    """Time each model on the same ``seconds`` of noise on the CPU, ``repeats`` rounds after one to warm up.

    ``threads``: None takes torch's number. The result states all of these; per model: the median, fastest and slowest
    of its rounds in seconds, how many times faster than the audio the median is, and ``speedup`` over the first model.
    """
    if seconds * audio.RATE < max(m.config.receptive_field for m in models.values()) or repeats < 1:
        raise StarError("seconds must be enough for one frame, and repeats 1 or more")
    waves_BN = torch.randn(1, round(seconds * audio.RATE), generator=torch.Generator().manual_seed(0)) * 0.1
    with in_threads(threads or torch.get_num_threads()), torch.inference_mode():
        used = torch.get_num_threads()
        taken = in_turns({name: partial(model, waves_BN) for name, model in models.items()}, repeats, time.perf_counter)
    first = statistics.median(next(iter(taken.values())))
    rows = {}
    for name, times in taken.items():
        median = statistics.median(times)
        rows[name] = {
            "median_s": round(median, 5),
            "fastest_s": round(min(times), 5),
            "slowest_s": round(max(times), 5),
            "times_real_time": round(seconds / median, 1),
            "real_time_factor": round(median / seconds, 5),
            "speedup": round(first / median, 3),
        }
    return {"seconds": seconds, "repeats": repeats, "threads": used, "device": "cpu", "models": rows}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Names down the side; sizes and times across, where any model has them."""
    shown: tuple[str, ...] = ("parameters", "bytes", "macs_g", "median_s", "fastest_s", "slowest_s", "real_time_factor")
    shown += ("times_real_time", "speedup", "peak_mb")
    columns = [key for key in shown if any(key in row for row in rows.values())]
    width = max(map(len, ["model", *rows]))
    cells = {key: [_cell(row.get(key)) for row in rows.values()] for key in columns}
    widths = {key: max(len(key), *map(len, texts)) for key, texts in cells.items()}
    lines = ["  ".join(["model".ljust(width), *(key.rjust(widths[key]) for key in columns)])]
    for i, name in enumerate(rows):
        lines.append("  ".join([name.ljust(width), *(cells[key][i].rjust(widths[key]) for key in columns)]))
    return "\n".join(lines)


def compare(
    sources: Sequence[str], timed: bool, seconds: float = 10.0, repeats: int = 15, threads: int | None = None
) -> dict[str, Any]:
    """``models``: sizes of each source and, where ``timed``, its times; then the conditions of the timing."""
    if len(set(sources)) != len(sources):
        raise StarError("a model is named twice")
    rows = {source: sizes(source) for source in sources}
    if not timed:
        return {"models": rows}
    measured = side_by_side({source: model(source, threads) for source in sources}, seconds, repeats, threads)
    for source, row in measured["models"].items():
        if source.endswith(".onnx"):
            row["peak_mb"] = round(peak_memory(source, seconds, measured["threads"]), 1)
    return {**measured, "models": {source: {**rows[source], **times} for source, times in measured["models"].items()}}


def peak_memory(path: str | Path, seconds: float = 10.0, threads: int = 1) -> float:
    """MB, at its peak, of a process that loads an exported file and hears ``seconds`` without torch; Python, numpy and
    onnxruntime are part of it (about 60)."""
    code = (
        "import sys, numpy; from star_upstream.runtime import Model; "
        "Model(sys.argv[1], int(sys.argv[3])).run([numpy.zeros(int(sys.argv[2]), 'float32')]); "
        "assert 'torch' not in sys.modules; " + PEAK
    )
    words = [sys.executable, "-c", code, str(path), str(round(seconds * audio.RATE)), str(threads)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    return int(subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout) * 1024 / 1e6


def _exported(path: str) -> EncoderConfig:
    extras.need("export")
    from ..export.onnx import describe

    return strict.build(EncoderConfig, describe(path)["encoder"], path)


def _is_recipe(source: str) -> bool:
    return source in recipes.names() or source.endswith((".yaml", ".yml"))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
