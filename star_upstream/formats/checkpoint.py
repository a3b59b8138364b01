"""Our checkpoint: a folder with ``config.json`` (encoder configuration, provenance) and ``model.safetensors``. Nothing
in it runs.

``config.json``: ``format`` ("star_upstream"), ``version`` (1), ``encoder`` (:class:`EncoderConfig`), ``provenance``
(free), ``tensors_sha256`` (:func:`tensors_digest` of the weights), ``sha256`` (of all other keys with their values);
both are compared where they are there, and other keys are refused. A fine-tuned model with its heads is a single
``.safetensors`` file whose metadata holds the same json under ``star_upstream`` (:mod:`star_upstream.heads.export`);
:func:`load` gives its encoder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .. import outputs, strict
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError
from ..files import replacing, write_json, write_tensors
from .identify import read_safetensors

CONFIG, WEIGHTS, FORMAT, VERSION = "config.json", "model.safetensors", "star_upstream", 1
_KEYS = {"format", "version", "encoder", "heads", "provenance", "tensors_sha256", "sha256"}
OWN = (CONFIG, WEIGHTS, "gates.json", "gates.safetensors")
"""What a checkpoint's folder holds; the last two beside the gated student of a run that prunes."""
MASK_VECTOR = "mask_vector"
"""What a model that was trained with masked frames had in their place, beside its weights: no parameter, in no
digest."""
LATER = {
    "prediction_layers": [],
    "prediction_inner": 0,
    "prediction_width": 0,
    "position_norm": "weight",
    "position_layers": 1,
    "adapter": 0,
    "feature_gradient": 1.0,
    "time_reduction": 1,
    "reference_frames": "convolutions",
    "upsampling": "none",
    "frontend": "waveform",
    "mel_bins": 80,
    "scale_layer_gradients": False,
    "statistics": "utterance",
    "attention": "full",
    "chunk": 16,
    "left_context": 64,
    "look_ahead": 4,
}
"""Options that :class:`EncoderConfig` did not have from the start, with the value that changes nothing."""


def save(folder: str | Path, encoder: Encoder, provenance: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write ``folder`` whole or not at all. ``dtype`` (e.g. ``torch.float16``) shrinks the weights.

    A checkpoint of ours that is there is replaced, other files beside it stay. Raises :class:`StarError` for a folder
    that holds anything else, and for a file.
    """
    outputs.check_folder(folder, "star_upstream", is_checkpoint)
    state = encoder.state_dict() | ({} if encoder.mask_vector is None else {MASK_VECTOR: encoder.mask_vector})
    if not all(isinstance(value, torch.Tensor) and not value.is_quantized for value in state.values()):
        raise StarError(f"{folder}: a quantised model is not kept in this format; save it as it was before")
    weights = {k: v.detach().cpu().to(dtype or v.dtype).contiguous() for k, v in state.items()}
    for name, value in weights.items():
        if not value.isfinite().all() and state[name].isfinite().all():
            raise StarError(f"{folder}: {name} has values that {str(dtype).removeprefix('torch.')} has no room for")
    with replacing(folder, OWN) as part:
        part.mkdir()
        write_tensors(part / WEIGHTS, weights)
        content = {
            "encoder": strict.plain(encoder.config),
            "tensors_sha256": tensors_digest(weights),
            "provenance": provenance,
        }
        write_json(part / CONFIG, _sealed(content))


def shortest_type(encoder: Encoder) -> torch.dtype:
    """bfloat16 or float16 where it holds every weight of an fp32 encoder as it is, else float32."""
    values = [*encoder.state_dict().values(), *([] if encoder.mask_vector is None else [encoder.mask_vector])]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(value, value.to(dtype).to(value.dtype)) for value in values):
            return dtype
    return torch.float32


def amend(path: str | Path, extra: dict[str, Any]) -> None:
    """Add ``extra`` to the provenance of a checkpoint that is there: a folder, or a single file."""
    content = describe(path)
    content["provenance"] = {**content.get("provenance", {}), **extra}
    if is_single(path):
        save_single(path, load_single(path), content)
    else:
        write_json(_folder(path) / CONFIG, _sealed(content))


def save_single(path: str | Path, weights: dict[str, torch.Tensor], content: dict[str, Any]) -> None:
    """Write one file whole or not at all; ``content`` goes, as json, into its metadata.

    A file of the same maker (``provenance.made_by``) is replaced. Raises :class:`StarError` for any other, and for a
    folder.
    """
    maker = content.get("provenance", {}).get("made_by", "this program")
    outputs.check_file(
        path,
        maker,
        lambda file: is_single(file) and describe(file).get("provenance", {}).get("made_by", "this program") == maker,
    )
    text = json.dumps(_sealed({**content, "tensors_sha256": tensors_digest(weights)}), allow_nan=False)
    with replacing(path) as part:
        write_tensors(part, weights, {FORMAT: text})


def load_single(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of one file. Raises :class:`StarError` for a file that is damaged or not there."""
    weights = read_safetensors(path)
    _check_digest(weights, describe(path), path)
    return weights


def save_tensors(path: str | Path, weights: dict[str, torch.Tensor]) -> None:
    """Write tensors that belong beside a checkpoint (gates), whole or not at all, with their digest."""
    with replacing(path) as part:
        write_tensors(part, weights, {"tensors_sha256": tensors_digest(weights)})


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """What :func:`save_tensors` wrote. Raises :class:`StarError` for a file that is damaged or not there."""
    weights = read_safetensors(path)
    with safe_open(path, "pt") as file:
        _check_digest(weights, file.metadata() or {}, path)
    return weights


def tensors_digest(weights: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and values of tensors on the CPU."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        _add(sha, name, tensor)
    return sha.hexdigest()


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with format, version and the digest of it all."""
    content = {"format": FORMAT, "version": VERSION, **content}
    return {**content, "sha256": _seal(content)}


def _seal(content: dict[str, Any]) -> str:
    rest = json.loads(json.dumps({key: value for key, value in content.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_digest(weights: dict[str, torch.Tensor], content: dict[str, Any], where: str | Path) -> None:
    """Raise :class:`StarError` for weights other than those that were saved; files from before digests were kept
    pass."""
    if content.get("tensors_sha256") not in (None, tensors_digest(weights)):
        raise StarError(
            f"{where}: not the weights that its configuration was saved with (tensors_sha256): damaged, or exchanged; "
            "copy the checkpoint again"
        )


def is_single(path: str | Path) -> bool:
    """Whether ``path`` is one file of ours with configuration and weights."""
    return _metadata(Path(path)) is not None


def _metadata(path: Path) -> str | None:
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(FORMAT)
    except (OSError, SafetensorError):
        return None


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a folder (or one of its two files), or a single file, in our format."""
    if is_single(path):
        return True
    folder = _folder(path)
    try:
        return json.loads((folder / CONFIG).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def describe(path: str | Path) -> dict[str, Any]:
    """The contents of ``config.json``. Raises :class:`StarError` for another format or a newer version."""
    folder, single = _folder(path), _metadata(Path(path))
    try:
        content = json.loads((folder / CONFIG).read_bytes() if single is None else single)
    except OSError:
        raise StarError(
            f"{folder}: no {CONFIG}; a checkpoint of star_upstream is a folder with {CONFIG} and {WEIGHTS}"
        ) from None
    except ValueError as error:
        raise StarError(f"{folder / CONFIG}: not json ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StarError(f'{folder / CONFIG}: not a star_upstream checkpoint (no "format": "{FORMAT}")')
    if content.get("version") != VERSION:
        raise StarError(
            f"{folder / CONFIG}: version {content.get('version')!r}; this release reads {VERSION}: update star_upstream"
        )
    where = folder / CONFIG if single is None else path
    if foreign := sorted(content.keys() - _KEYS):
        raise StarError(f"{where}: unknown key {foreign[0]!r}: damaged, or of a newer star_upstream")
    if content.get("sha256", _seal(content)) != _seal(content):
        raise StarError(
            f"{where}: not as it was saved (sha256): damaged; copy the checkpoint again (where you edited it yourself, "
            "remove the key sha256)"
        )
    return content


def load(path: str | Path, reference_padding: bool = False) -> Encoder:
    """The encoder, in eval mode, fp32, on the CPU.

    Raises :class:`StarError` for a folder that is incomplete, damaged or of another format.
    """
    folder, content = _folder(path), describe(path)
    encoder = Encoder(strict.build(EncoderConfig, content.get("encoder"), "encoder"), reference_padding)
    if is_single(path):
        weights = {k.removeprefix("encoder."): v for k, v in load_single(path).items() if k.startswith("encoder.")}
        load_weights(encoder, weights, str(path))
        return encoder.eval()
    if not (folder / WEIGHTS).exists() and not (folder / WEIGHTS).is_symlink():
        raise StarError(f"{folder}: no {WEIGHTS} beside {CONFIG}")
    weights = read_safetensors(folder / WEIGHTS)
    load_weights(encoder, weights, str(folder / WEIGHTS))
    _check_digest(weights, content, folder / WEIGHTS)
    return encoder.eval()


def load_weights(encoder: torch.nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Copy ``weights`` into ``encoder``; every tensor must be there, with its shape, and no other. Half precision is
    widened."""
    expected = encoder.state_dict()
    if MASK_VECTOR in weights:
        encoder.mask_vector = weights[MASK_VECTOR].detach().float()
        expected[MASK_VECTOR] = expected["norm.weight"]
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise StarError(f"{where}: does not fit its configuration (missing: {missing[:3]}, not known: {extra[:3]})")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise StarError(
                f"{where}: {name} has shape {list(weights[name].shape)}, the configuration asks for "
                f"{list(tensor.shape)}"
            )
        if not weights[name].is_floating_point():
            kind = str(weights[name].dtype).removeprefix("torch.")
            raise StarError(f"{where}: {name} is of type {kind}, where weights are floating-point numbers")
        if not weights[name].float().isfinite().all():
            raise StarError(f"{where}: {name} holds values that are no numbers (NaN or infinite): damaged, or diverged")
    encoder.load_state_dict({k: v.to(expected[k].dtype) for k, v in weights.items() if k != MASK_VECTOR})


def digest(encoder: Encoder) -> str:
    """sha256 over configuration and weights (names, shapes, values): the same for the same model wherever it came
    from."""
    # options that came later leave the digests of models without them as they were
    config = {k: v for k, v in strict.plain(encoder.config).items() if k not in LATER or v != LATER[k]}
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        _add(sha, name, value)
    return sha.hexdigest()


def _add(sha, name: str, value: Any) -> None:
    """One entry of a ``state_dict``. Quantised layers keep tuples of quantised tensors, and types, beside tensors."""
    if isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            _add(sha, f"{name}.{i}", item)
    elif not isinstance(value, torch.Tensor):
        sha.update(f"{name}{value!r}".encode())
    elif value.is_meta:
        raise StarError(f"{name}: has no values to take a digest of (it is on the meta device)")
    else:
        sha.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.is_quantized:
            # scales and zero points are what one step and the value zero become
            sha.update(f"{value.qscheme()}".encode())
            _add(sha, f"{name}.dequantized", value.detach().dequantize())
            value = value.int_repr()
        # bytes, since numpy has no bfloat16
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _folder(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name in (CONFIG, WEIGHTS) else path
