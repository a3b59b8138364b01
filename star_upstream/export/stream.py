"""A model that streams as one ONNX file: a step's samples and the state in, a chunk of frames and the next state out.

Inputs: ``samples`` (1 x ``samples`` of the metadata, float32, 16 kHz), ``end`` (1, int64: samples of the whole
waveform, :data:`~star_upstream.encoder.stream.UNKNOWN` before its end) and ``in_<i>``, the state. Outputs:
``state_<layer>`` (1 x chunk x D) and ``out_<i>``. All shapes are constant. :mod:`star_upstream.runtime_stream` cuts a
waveform into steps; the metadata's ``stream`` says what it has to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import extras, runtime_stream
from ..audio import RATE
from ..encoder import Encoder
from ..encoder.stream import UNKNOWN, StreamStep
from ..errors import StarError
from . import onnx, origin

SECONDS = (0.01, 0.3, 3.7, 12.0)
"""Lengths that are compared, each in pieces."""


class Graph(nn.Module):
    """What is exported."""

    def __init__(self, encoder: Encoder, layers: Sequence[int] | Literal["all"] | None = None):
        super().__init__()
        if encoder.config.attention != "chunked":
            raise StarError("--stream: this model attends to whole utterances; leave the option out")
        self.step, (count, width) = StreamStep(encoder), encoder.config.exposed
        chosen = range(count) if layers is None or isinstance(layers, str) else layers
        self.layers = sorted({onnx.place(layer, count) for layer in chosen})
        self.about = {f"state_{i}": {"kind": "state", "layer": i, "width": width} for i in self.layers}
        self.eval().requires_grad_(False)

    def forward(self, samples_1N: Tensor, end_1: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, after = self.step(samples_1N, end_1, state)
        states = self.step.encoder.exposed(output)
        return (*(states[layer] for layer in self.layers), *after)


def export(
    source: str | Path,
    path: str | Path,
    layers: Sequence[int] | Literal["all"] | None = None,
    licence: str | None = None,
    config: str | Path | None = None,
) -> dict[str, Any]:
    """Write ``source`` (anything that ``star_upstream.load`` takes, and that streams) to ``path``; returns the
    metadata. ``layers`` as in :func:`.onnx.export`. Raises :class:`StarError` where what comes of a stream would differ
    from torch's by more than :data:`.onnx.TOLERANCE`; no file is kept then."""
    extras.need("export")
    path = onnx.check_path(path)
    encoder, of = origin.load(source, config)
    graph = Graph(encoder, layers)
    step, shape = graph.step, encoder.config
    state = step.begin()
    content = {
        "format": runtime_stream.FORMAT,
        "of": of,
        "licence": licence or origin.licence(source),
        **onnx.about(encoder, encoder, graph.about),
        "stream": {
            "samples": step.plan.samples,
            "start": step.plan.start,
            "frame": step.frame,
            "chunk": shape.chunk,
            "unknown": UNKNOWN,
            "latency_ms": shape.latency_ms,
            "window_ms": shape.window_ms,
            "state": [_described(x) for x in state],
        },
    }
    names = [f"{way}_{i}" for way in ("in", "out") for i in range(len(state))]
    inputs, outputs = ["samples", "end", *names[: len(state)]], [*graph.about, *names[len(state) :]]
    example = (torch.zeros(1, step.plan.samples), torch.tensor([UNKNOWN]), *state)
    proto = onnx.trace(graph, inputs, example, outputs, dynamic=False)
    return onnx.keep(proto, content, path, lambda part: compare(part, graph), SECONDS)


def _described(x: Tensor) -> dict[str, Any]:
    """A tensor of the first state: its type, its shape, and its values where any is not 0."""
    kind = str(x.dtype).removeprefix("torch.")
    return {"type": kind, "shape": list(x.shape), **({"values": x.flatten().tolist()} if x.any() else {})}


@torch.no_grad()
def compare(path: Path, graph: Graph) -> float:
    """Largest difference between a stream of the file and the whole waveform in torch. See
    :data:`.onnx.TOLERANCE`."""
    stream, encoder, worst = runtime_stream.Stream(path), graph.step.encoder, 0.0
    for seed, seconds in enumerate(SECONDS):
        wave = onnx._noise(round(RATE * seconds), seed)
        right = encoder.exposed(encoder(wave[None]))
        pieces = [*(stream.push(piece) for piece in np.array_split(wave.numpy(), 7)), stream.flush()]
        for layer in graph.layers:
            found = np.concatenate([piece[f"state_{layer}"] for piece in pieces])
            worst = max(worst, onnx.off(found, right[layer][0].numpy()))
    return worst
