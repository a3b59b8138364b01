"""An exported file whose products have 8-bit weights (one scale an output channel) and 8-bit activations.

What is in 8 bits is measured on the calibration audio: each convolution of the front end, the positional convolution
and the linear maps of each layer are tried alone. What moves the outputs by more than :data:`LIMIT` stays in float, and
so does a convolution that makes the whole slower by more than :data:`SLOWER` on this machine. Static: the ranges of
linear maps' inputs are those of the calibration audio. Dynamic: those of the utterances that are run together. The
front end's convolutions have ranges of each frame in both (:mod:`.integers`).

Always in float: norms, softmax and GELU; the heads; the first convolution, whose input is the waveform; products of two
activations, which would gain little in short utterances: attention of 8 heads of 54 channels, a range for each row of
shares, took 0.37 ms for 0.40 at 2 s, 5.0 for 7.3 at 10 s, and was 0.02 of its size off.

Shapes: B utterances, N samples, T frames, D width.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import audio
from ..data.clips import find
from ..errors import StarError
from ..files import replacing
from . import integers, onnx

LIMIT = 0.1
"""Largest root mean square change of an output, as a share of its standard deviation, that one part may bring alone."""
SECONDS = 60.0
"""Audio that ranges and changes are measured on."""
LEAST = 1.0
"""Seconds below which ranges say nothing."""
LONGEST = 8.0
"""Seconds of one piece of it."""
SLOWER = 0.03
"""Largest share of its time that the whole may lose by one convolution in 8 bits: less is within the timing's error."""
TIMED, ROUNDS = 4.0, 7
"""Seconds of audio that are timed, on one thread, and how often: the fastest counts."""
NEEDS = "on x86 without VNNI: onnxruntime's session.x64quantprecision = 1 (star_upstream.runtime sets it)"
"""Without: sums of two products of 8 bits are cut off at 16 bits."""
_PART = re.compile(
    r".*/(frontend/convs\.\d+|position|layers\.\d+|frontend/projection|time_reduction|output_projections\.\d+|predictions)/.*"
)


def export(
    source: str | Path, path: str | Path, waves: Sequence[np.ndarray], dynamic: bool = False, **options: Any
) -> dict[str, Any]:
    """Write ``source`` in 8 bits to ``path``; ``options`` as of :func:`.onnx.export`. Returns the metadata, whose
    ``int8`` says what was quantised and what it changes.

    waves: 1-D, 16 kHz (:func:`draw` reads them), on which ranges and changes are measured. Raises :class:`StarError`.
    """
    path = onnx.check_path(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        onnx.export(source, plain, **options)
        with replacing(path) as part:
            return quantise(plain, part, waves, dynamic)


def quantise(path: Path, target: Path, waves: Sequence[np.ndarray], dynamic: bool = False) -> dict[str, Any]:
    """The exported file ``path`` in 8 bits, as ``target``; returns the metadata."""
    content, right = onnx.describe(path), _outputs(path, waves)
    with tempfile.TemporaryDirectory() as folder:
        plain, result = Path(folder) / "plain.onnx", Path(folder) / "result.onnx"
        model = _folded(path, plain)
        parts = _parts(model)
        if not parts:
            raise StarError("--int8: no part of this model is worth 8 bits")
        ranges = None if dynamic else _ranges(plain, model, waves)

        def write(names: Sequence[str], to: Path = result) -> Path:
            nodes = [node for name in names for node in parts[name]]
            onnx.save(integers.rewrite(model, nodes, ranges), content, to)
            return to

        alone, slower = dict[str, float](), dict[str, float]()
        for name in parts:
            changes = _changes(right, _outputs(write([name]), waves), content["outputs"])
            alone[name] = round(max(changes.values()), 4)
            if name.startswith(("frontend.convs", "position")):
                slower[name] = round(_slower(plain, result), 3)
        kept = [name for name in parts if alone[name] <= LIMIT and slower.get(name, SLOWER) <= SLOWER]
        if not kept:
            raise StarError(f"--int8: every part in 8 bits changes an output by more than {LIMIT} of its size")
        total = _changes(right, _outputs(write(kept), waves), content["outputs"])
        content["precision"] = f"int8, {'dynamic' if dynamic else 'static'}"
        content["int8"] = {
            "parts": kept,
            "alone": alone,
            "limit": LIMIT,
            "slower": slower,
            "slower_limit": SLOWER,
            "change": {name: round(change, 4) for name, change in total.items()},
            "seconds": round(sum(map(len, waves)) / audio.RATE, 1),
            "needs": NEEDS,
        }
        write(kept, target)
    return content


def draw(sources: Sequence[str | Path], seconds: float = SECONDS, seed: int = 0) -> list[np.ndarray]:
    """Pieces of at most :data:`LONGEST` from folders, lists of audio and audio files, drawn until they last
    ``seconds``. Raises :class:`StarError` where there is no audio, or none to measure ranges on."""
    clips, waves, left = find(list(map(str, sources))), list[np.ndarray](), seconds * audio.RATE
    for i in np.random.default_rng(seed).permutation(len(clips)):
        if left > 0:
            waves.append(audio.piece(clips[i].path, clips[i].start, min(clips[i].samples, round(LONGEST * audio.RATE))))
            left -= len(waves[-1])
            if not np.isfinite(waves[-1]).all():
                raise StarError(f"{clips[i].path}: samples that are not finite; leave the file out")
    if sum(map(len, waves)) < LEAST * audio.RATE or not any(wave.any() for wave in waves):
        raise StarError(f"--calibrate: {LEAST:g} s of audio are needed at least, and not silence alone")
    return waves


def _folded(path: Path, target: Path) -> Any:
    """The model with its constants computed, which is also written to ``target``."""
    import onnx as library
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.log_severity_level = str(target), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return library.load(target)


def _parts(model: Any) -> dict[str, list[str]]:
    """Nodes that can be in 8 bits by the part of the model that they are in."""
    parts = dict[str, list[str]]()
    for name in integers.possible(model):
        if found := _PART.fullmatch(name):
            parts.setdefault(found.group(1).replace("/", "."), []).append(name)
    return parts


def _ranges(plain: Path, model: Any, waves: Sequence[np.ndarray]) -> Mapping[str, integers.Range]:
    """Least and largest value of every input of a linear map over all waves."""
    import onnx as library

    names = sorted(set(integers.possible(model).values()))
    watched = library.load(plain)
    watched.graph.output.extend(library.helper.make_tensor_value_info(name, 1, None) for name in names)
    session = onnx.session(watched.SerializeToString())
    found = dict.fromkeys(names, (0.0, 0.0))
    for wave in waves:
        for name, x in zip(names, session.run(names, _inputs(wave))):
            found[name] = min(found[name][0], float(x.min())), max(found[name][1], float(x.max()))
    return found


def _slower(plain: Path, other: Path) -> float:
    """Share of its time that the whole loses (below 0: wins) in ``other``, by the processor's clock: this machine may
    be busy."""
    wave = np.random.default_rng(0).normal(0, 0.1, round(TIMED * audio.RATE)).astype(np.float32)
    sessions, fastest = [onnx.session(path, 1) for path in (plain, other)], [float("inf")] * 2
    for _ in range(ROUNDS + 1):
        for i, session in enumerate(sessions):
            start = time.process_time()
            session.run(None, _inputs(wave))
            fastest[i] = min(fastest[i], time.process_time() - start)
    return fastest[1] / fastest[0] - 1


def _inputs(wave: np.ndarray) -> dict[str, np.ndarray]:
    return {"waveforms": wave[None], "lengths": np.array([len(wave)])}


def _outputs(path: Path, waves: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    session = onnx.session(path)
    return [session.run(None, _inputs(wave)) for wave in waves]


def _changes(right: list, given: list, outputs: dict[str, Any]) -> dict[str, float]:
    """For each output the root mean square change over its standard deviation (states: of each channel over frames)."""
    changes = {}
    for i, name in enumerate(outputs):
        one = np.concatenate([values[i].reshape(-1, values[i].shape[-1]) for values in right])
        other = np.concatenate([values[i].reshape(-1, values[i].shape[-1]) for values in given])
        spread = one.std(0) if len(one) > 1 else np.abs(one)
        changes[name] = float(np.sqrt(np.square(one - other).mean() / max(np.square(spread).mean(), 1e-12)))
    return changes
