"""An exported file with 8-bit weights (one scale an output channel) and 8-bit activations, by onnxruntime's quantiser.

What is quantised is measured on the calibration audio. Each convolution of the front end, and the linear maps of each
layer, are quantised alone; what moves the outputs by more than :data:`LIMIT` stays in float. Static: the activations'
ranges are those of the calibration audio. Dynamic: those of each utterance, for the linear maps alone.

Always in float: norms, softmax and GELU; the heads; products of two activations and the positional convolution, which
are slower in 8 bits (results/device.md).

Shapes: B utterances, N samples, T frames, D width.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import audio
from ..data.clips import find
from ..errors import StarError
from ..files import replacing
from . import onnx

LIMIT = 0.1
"""Largest root mean square change of an output, as a share of its standard deviation, that one part may bring alone."""
SECONDS = 60.0
"""Audio that ranges and changes are measured on."""
LONGEST = 8.0
"""Seconds of one piece of it."""
_CONVOLUTION = re.compile(r".*/(frontend/convs\.\d+)/Conv")
_LINEAR = re.compile(
    r".*/(layers\.\d+|frontend/projection|time_reduction|output_projections\.\d+|predictions)(/.*)?/MatMul"
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
    import onnx as library
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    content, right = onnx.describe(path), _outputs(path, waves)
    types = quantization.QuantType
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser gives advice on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain, result, ranges = (Path(folder) / name for name in ("plain.onnx", "result.onnx", "ranges.json"))
            quant_pre_process(str(path), str(plain), skip_symbolic_shape=True)
            parts = _parts(library.load(plain).graph, dynamic)
            if not parts:
                raise StarError(f"{path}: no part of this model is worth 8 bits")

            def changes(chosen: dict[str, list[str]]) -> dict[str, float]:
                nodes = [node for part in chosen.values() for node in part]
                options: dict[str, Any] = {"per_channel": True, "weight_type": types.QInt8, "nodes_to_quantize": nodes}
                if dynamic:
                    quantization.quantize_dynamic(plain, result, **options)
                else:
                    reader = None if ranges.exists() else _reader(waves)
                    options |= {"activation_type": types.QUInt8, "calibration_cache_path": ranges}
                    quantization.quantize_static(plain, result, reader, **options)
                return _changes(right, _outputs(result, waves), content["outputs"])

            changes(parts)  # keeps the ranges of all
            alone = {name: max(changes({name: nodes}).values()) for name, nodes in parts.items()}
            kept = {name: nodes for name, nodes in parts.items() if alone[name] <= LIMIT}
            if not kept:
                raise StarError(f"{path}: every part in 8 bits changes an output by more than {LIMIT} of its size")
            total = changes(kept)
            content["precision"] = f"int8, {'dynamic' if dynamic else 'static'}"
            content["int8"] = {
                "parts": list(kept),
                "alone": {name: round(change, 4) for name, change in alone.items()},
                "limit": LIMIT,
                "change": {name: round(change, 4) for name, change in total.items()},
                "seconds": round(sum(map(len, waves)) / audio.RATE, 1),
            }
            onnx.save(library.load(result), content, target)
    finally:
        logging.getLogger().setLevel(level)
    return content


def draw(sources: Sequence[str | Path], seconds: float = SECONDS, seed: int = 0) -> list[np.ndarray]:
    """Pieces of at most :data:`LONGEST` from folders, lists of audio and audio files, drawn until they last
    ``seconds``. Raises :class:`StarError` where there is no audio."""
    clips, waves, left = find(list(map(str, sources))), list[np.ndarray](), seconds * audio.RATE
    for i in np.random.default_rng(seed).permutation(len(clips)):
        if left > 0:
            waves.append(audio.piece(clips[i].path, clips[i].start, min(clips[i].samples, round(LONGEST * audio.RATE))))
            left -= len(waves[-1])
    return waves


def _parts(graph: Any, dynamic: bool) -> dict[str, list[str]]:
    """Nodes with weights by the part of the model that they are in."""
    weights, parts = {tensor.name for tensor in graph.initializer}, dict[str, list[str]]()
    for node in graph.node:
        found = _LINEAR.fullmatch(node.name) or (None if dynamic else _CONVOLUTION.fullmatch(node.name))
        if found and node.input[1] in weights:
            parts.setdefault(found.group(1).replace("/", "."), []).append(node.name)
    return parts


def _reader(waves: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        left = iter(waves)

        def get_next(self) -> dict[str, np.ndarray] | None:
            wave = next(self.left, None)
            return None if wave is None else {"waveforms": wave[None], "lengths": np.array([len(wave)])}

    return Reader()


def _outputs(path: Path, waves: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    session = onnx.session(path)
    return [session.run(None, {"waveforms": wave[None], "lengths": np.array([len(wave)])}) for wave in waves]


def _changes(right: list, given: list, outputs: dict[str, Any]) -> dict[str, float]:
    """For each output the root mean square change over its standard deviation (states: of each channel over frames)."""
    changes = {}
    for i, name in enumerate(outputs):
        one = np.concatenate([values[i].reshape(-1, values[i].shape[-1]) for values in right])
        other = np.concatenate([values[i].reshape(-1, values[i].shape[-1]) for values in given])
        spread = one.std(0) if len(one) > 1 else np.abs(one)
        changes[name] = float(np.sqrt(np.square(one - other).mean() / max(np.square(spread).mean(), 1e-12)))
    return changes
