"""An encoder, with its heads if it has any, as one ONNX file.

Inputs: ``waveforms`` (B x N, float32, 16 kHz, zero-padded, not normalised) and ``lengths`` (B, int64, valid samples),
for any B and N of 1 or more. Outputs, each by its name:

- ``state_<i>`` (B x T x D): what ``star_upstream.load(...)`` gives as ``hidden_states[i]``; frames past an utterance's
  end repeat its last one
- ``prediction_<layer>`` (B x T x D): what a prediction head makes of that layer of the teacher
- ``weighted_<task>`` (B x T x D): the states' sum with the weights that a head of ``star-eval`` learnt
- a head's name (B x C): every label's share of one, or (B x E) a vector of length 1
- ``frames`` (B, int64): valid frames of each utterance

Waveform normalisation, the padding of what is shorter than a frame, and the padding rule are in the graph. The
metadata entry ``star_upstream`` is json: :func:`describe` gives it.

torch's tracing exporter writes it (``dynamo=False``): it takes every architecture here with dynamic shapes in under a
second, where the newer one (torch 2.11) takes a minute for 8 layers, writes a slower graph, and refuses WavLM's gate.

Shapes: B utterances, N samples, T frames, D width, C classes, E channels of a vector.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from .. import extras, outputs, strict
from ..audio import RATE
from ..encoder import Encoder
from ..environment import versions
from ..errors import StarError
from ..files import replacing
from ..formats import checkpoint
from ..formats.upstream import filled
from ..heads import export as heads_file
from ..heads.head import select
from ..heads.model import MultitaskModel
from ..runtime import EXACT, FORMAT, KEY
from . import origin

VERSION, MAKER = 1, "star export"
OPSET = 17
"""The first with LayerNormalization: onnxruntime 1.14 and newer."""
ATTENTION = "aten::scaled_dot_product_attention"
TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch; a share of an output's root mean square where that is above 1."""
SECONDS = (0.025, 0.031, 0.3, 1.0, 3.7, 30.0)
"""Lengths that are compared, alone; all but the longest also in one padded batch."""
LARGEST = 2**31 - 2**20
"""Bytes that a protobuf message, and so an ONNX file, can have."""


class Graph(nn.Module):
    """What is exported: :attr:`names` says what the outputs are, :attr:`about` what each holds.

    ``heads``: fine-tuned ones, and ``sums``: weights of the states, by name, which ride on them.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[int] | Literal["all"] | None = None,
        predictions: bool = False,
        heads: MultitaskModel | None = None,
        sums: Mapping[str, list[float]] | None = None,
    ):
        super().__init__()
        if encoder.config.attention == "chunked":
            raise StarError("this model streams; give --stream, and no heads or predictions")
        self.encoder, self.heads, self.sums = encoder, heads, dict(sums or {})
        count, width = encoder.config.exposed
        if layers is None:
            layers = [] if heads or sums or predictions else "all"
        layers = range(count) if isinstance(layers, str) else layers
        self.layers = sorted({place(layer, count) for layer in layers})
        self.predicted = list(encoder.config.prediction_layers) if predictions else []
        if predictions and not self.predicted:
            raise StarError("--predictions: this model has no prediction heads (prediction_layers)")
        for name, weights in self.sums.items():
            if len(weights) != count:
                raise StarError(f"{name}: a sum of {len(weights)} states, where this model gives {count}")
        self.about: dict[str, dict[str, Any]] = {}
        for layer in self.layers:
            self.about[f"state_{layer}"] = {"kind": "state", "layer": layer, "width": width}
        for layer in self.predicted:
            channels = encoder.config.prediction_width or encoder.config.width
            self.about[f"prediction_{layer}"] = {"kind": "prediction", "layer": layer, "width": channels}
        for name, weights in self.sums.items():
            self.about[f"weighted_{name}"] = {"kind": "weighted", "weights": weights, "width": width}
        for name, labels in (self.heads.labels if self.heads else {}).items():
            if name in self.about or name == "frames":
                raise StarError(f"{name}: a head cannot have the name of an output; fine-tune with another task name")
            self.about[name] = {"kind": "shares", "labels": labels} if labels else {"kind": "vector"}
        self.names = [*self.about, "frames"]
        self.eval().requires_grad_(False)

    def forward(self, waveforms_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        shortest = self.encoder.config.receptive_field
        samples = shape_as_tensor(waveforms_BN)[1].clamp(min=shortest)
        waveforms_BN = F.pad(waveforms_BN, (0, shortest))[:, :samples]
        output = self.encoder(waveforms_BN, lengths_B)
        states, frames_B = self.encoder.exposed(output), output.lengths_B
        sums = [sum(w * x_BTD for w, x_BTD in zip(weights, states)) for weights in self.sums.values()]
        predictions = output.predictions[: len(self.predicted)] if output.predictions else []
        given = [*(states[layer] for layer in self.layers), *predictions, *sums]
        states = [filled(x_BTD, frames_B) for x_BTD in given]
        answers = [] if self.heads is None else [self._answer(name, output, frames_B) for name in self.heads.heads]
        return (*states, *answers, frames_B)

    def _answer(self, name: str, output: Any, frames_B: Tensor) -> Tensor:
        assert self.heads is not None
        head: Any = self.heads.heads[name]
        x_BE = head(select(self.encoder, output, head.task.input), frames_B)
        if self.heads.labels[name]:
            return head.loss.logits(x_BE).softmax(-1)
        return F.normalize(x_BE, dim=1)


def place(layer: int, count: int) -> int:
    """A layer's place from 0. Raises :class:`StarError` where the model has no such state."""
    if not -count <= layer < count:
        raise StarError(f"--layers: this model gives the states 0 to {count - 1}, got {layer}")
    return layer % count


def export(
    source: str | Path,
    path: str | Path,
    layers: Sequence[int] | Literal["all"] | None = None,
    heads: Sequence[str | Path] = (),
    predictions: bool = False,
    licence: str | None = None,
    config: str | Path | None = None,
) -> dict[str, Any]:
    """Write ``source`` (anything that ``star_upstream.load`` takes) to ``path``; returns what the file says of itself.

    layers: which of the states it gives, counted as in ``hidden_states``, negative from the end; None: all, or none
        where there are heads. heads: files of ``star finetune`` (the answers of their heads) and records of
        ``star-eval`` (the weighted sum that the record's head used), of this very model. A ``source`` with heads
        brings its own.

    Raises :class:`StarError` where the file would differ from torch by more than :data:`TOLERANCE`; none is kept then.
    """
    extras.need("export")
    path = check_path(path)
    encoder, of = origin.load(source, config)
    files = [source, *heads] if checkpoint.is_single(source) else heads
    graph = Graph(encoder, layers, predictions, *_heads(encoder, files))
    return write(graph, path, {"of": of, "licence": licence or origin.licence(source)})


def check_path(path: str | Path) -> Path:
    """``path``, where a file may be written. Raises :class:`StarError`."""
    if Path(path).suffix != ".onnx":
        raise StarError(f"{path}: the name of an exported file ends in .onnx")

    def made(file: Path) -> bool:
        try:
            return describe(file)["made_by"] == MAKER
        except StarError:
            return False

    return outputs.check_file(path, MAKER, made)


def write(graph: Graph, path: Path, extra: dict[str, Any], seconds: Sequence[float] = SECONDS) -> dict[str, Any]:
    """Trace ``graph``, compare it with torch and keep it where they agree; returns the metadata."""
    proto = trace(graph, ("waveforms", "lengths"), _example(graph.encoder), graph.names)
    content = {"format": FORMAT, **extra, **about(graph, graph.encoder, graph.about)}
    return keep(proto, content, path, lambda part: compare(part, graph, seconds), seconds)


def about(model: nn.Module, encoder: Encoder, given: dict[str, Any]) -> dict[str, Any]:
    """What a file says of a ``model`` around ``encoder``; ``given``: of its outputs."""
    return {
        "version": VERSION,
        "made_by": MAKER,
        "encoder": strict.plain(encoder.config),
        "sha256": checkpoint.digest(encoder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rate": RATE,
        "stride": encoder.config.stride,
        "receptive_field": encoder.config.receptive_field,
        "outputs": given,
        "precision": "fp32",
        "opset": OPSET,
        "exporter": "torch.onnx.export(dynamo=False)",
        "versions": versions(("torch", "onnx", "onnxruntime")),
    }


def keep(
    proto: Any, content: dict[str, Any], path: Path, difference: Callable[[Path], float], seconds: Sequence[float]
) -> dict[str, Any]:
    """Write the model with ``content`` in its metadata, which is returned, where its ``difference`` from torch, over
    ``seconds`` of audio, is within :data:`TOLERANCE`; nothing, and a :class:`StarError`, elsewhere."""
    with replacing(path) as part:
        save(proto, content, part)
        content["differs"] = {"most": difference(part), "tolerance": TOLERANCE, "seconds": list(seconds)}
        if not content["differs"]["most"] <= TOLERANCE:
            raise StarError(
                f"{path}: not written, since onnxruntime's outputs differ from torch's by "
                f"{content['differs']['most']:.2g} (more than {TOLERANCE}); please report the model's configuration"
            )
        save(proto, content, part)
    return content


def off(found: np.ndarray, right: np.ndarray) -> float:
    """How far an output is from torch's; see :data:`TOLERANCE`."""
    if found.shape != right.shape:
        return float("inf")
    scale = max(1.0, float(np.sqrt(np.square(right, dtype=np.float64).mean())))
    most = float(np.abs(found - right).max()) / scale
    return most if most == most else float("inf")


def trace(
    module: nn.Module, inputs: Sequence[str], example: tuple[Tensor, ...], names: Sequence[str], dynamic: bool = True
) -> Any:
    """The ONNX model of a module whose first inputs' first two dimensions, where they have them, are dynamic; or all
    of whose shapes are constant."""
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > LARGEST:
        raise StarError(f"{size / 2**30:.1f} GiB of weights: an ONNX file holds less than 2 GiB")
    axes = {name: dict(enumerate(("B", "N")[: tensor.dim()])) for name, tensor in zip(inputs, example)}
    buffer = io.BytesIO()
    torch.onnx.register_custom_op_symbolic(ATTENTION, _attention, OPSET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, on shapes that are constants here, and on a newer exporter
            torch.onnx.export(
                module,
                example,
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                input_names=list(inputs),
                output_names=list(names),
                dynamic_axes=axes | {name: {0: "B"} for name in names} if dynamic else None,
                opset_version=OPSET,
            )
    finally:
        torch.onnx.unregister_custom_op_symbolic(ATTENTION, OPSET)
    return onnx.load_from_string(buffer.getvalue())


def _attention(g: Any, query: Any, key: Any, value: Any, mask: Any, *_: Any) -> Any:
    """Attention without the exporter's guard against rows that attend to nothing, of which there are none (every
    utterance has a frame): a fifth of star_mini's time at 10 s."""
    width = query.type().sizes()[-1]

    def number(x: float) -> Any:
        return g.op("Constant", value_t=torch.tensor(x))

    key = g.op("Transpose", key, perm_i=[0, 1, 3, 2])
    scores = g.op("MatMul", g.op("Mul", query, number(width**-0.5)), key)
    if mask is not None and not mask.node().mustBeNone():
        if mask.type().scalarType() == "Bool":
            mask = g.op("Where", mask, number(0.0), number(float("-inf")))
        scores = g.op("Add", scores, mask)
    return g.op("MatMul", g.op("Softmax", scores, axis_i=-1), value)


def save(proto: Any, content: dict[str, Any], path: Path) -> None:
    """The model with ``content`` in its metadata."""
    import onnx

    proto.producer_name, proto.producer_version = "star_upstream", str(content["versions"]["star-upstream"])
    onnx.helper.set_model_props(proto, {KEY: json.dumps(content, allow_nan=False)})
    onnx.save(proto, path)


def describe(path: str | Path) -> dict[str, Any]:
    """What an exported file says of itself. Raises :class:`StarError` for a file that ``star export`` did not write."""
    extras.need("export", "onnx")
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
        return json.loads({entry.key: entry.value for entry in proto.metadata_props}[KEY])
    except FileNotFoundError:
        raise StarError(f"{path}: no such file") from None
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # protobuf has errors of its own
        raise StarError(f"{path}: not a file of {MAKER}") from None


@torch.no_grad()
def compare(path: Path, graph: Graph, seconds: Sequence[float] = SECONDS) -> float:
    """Largest difference between the file's outputs and torch's, over ``seconds`` of noise: each length alone, and all
    but the longest in a padded batch against torch alone. See :data:`TOLERANCE`."""
    runs = session(path)
    waves = [_noise(round(RATE * length), seed) for seed, length in enumerate(seconds)]
    right = [graph(wave[None], torch.tensor([len(wave)])) for wave in waves]
    worst = 0.0
    batches = [[i] for i in range(len(waves))] + [list(range(len(waves) - 1))]
    for batch in batches:
        waveforms_BN = nn.utils.rnn.pad_sequence([waves[i] for i in batch], batch_first=True)
        lengths = np.array([len(waves[i]) for i in batch])
        given = runs.run(graph.names, {"waveforms": waveforms_BN.numpy(), "lengths": lengths})
        for row, i in enumerate(batch):
            frames = int(given[-1][row])
            if frames != int(right[i][-1]):
                return float("inf")
            for theirs, ours in zip(given[:-1], right[i]):
                one, other = theirs[row], ours[0].numpy()
                worst = max(worst, off(one[:frames] if other.ndim == 2 else one, other))
    return worst


def session(path: Path | bytes, threads: int | None = None) -> Any:
    """onnxruntime with the file, or what it holds, on the CPU, quiet. ``threads``: None takes torch's number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or torch.get_num_threads(), 3
    options.add_session_config_entry("session.x64quantprecision", EXACT)
    return onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
    )


def _noise(samples: int, seed: int) -> Tensor:
    """Noise whose loudness goes up and down as speech's does, with an offset."""
    noise_N = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return noise_N * 0.1 * (torch.arange(samples) * (2 * torch.pi / 4000)).sin().abs() + 0.01


def _example(encoder: Encoder) -> tuple[Tensor, Tensor]:
    samples = max(4000, 3 * encoder.config.receptive_field)
    return _noise(2 * samples, 0).view(2, samples), torch.tensor([samples, samples // 2])


def _heads(encoder: Encoder, files: Sequence[str | Path]) -> tuple[MultitaskModel | None, dict[str, list[float]]]:
    """The fine-tuned heads, and the weights of sums by task, in ``files``."""
    model, sums = None, {}
    for file in files:
        if checkpoint.is_single(file):
            if model is not None:
                raise StarError(f"{file}: the second file with heads; export one at a time")
            model = heads_file.load(file)
            own = checkpoint.digest(model.encoder)
        else:
            record = _record(file)
            sums[str(record["task"])], own = record["layer_weights"], record["upstream_digest"]
        if own != checkpoint.digest(encoder):
            raise StarError(f"{file}: its heads were trained on another model than this one (their digests differ)")
    return model, sums


def _record(file: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not {"task", "layer_weights", "upstream_digest"} <= record.keys():
        reason = "neither a file of star finetune nor a task's record of star-eval"
        raise StarError(f"{file}: {reason if Path(file).exists() else 'no such file'}")
    return record
