"""Folders of the transformers library: HuBERT, wav2vec 2.0, WavLM, UniSpeech, UniSpeechSat and data2vec audio, with or
without a task's head.

The files are read directly; transformers itself is not needed. Both encoder variants (``do_stable_layer_norm``), both
front ends (``feat_extract_norm`` group, layer) and all three positional convolutions are known. What follows the
encoder (heads, the convolutional adapter of ``add_adapter``) is left out; the attention adapters of MMS, inside the
layers, are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...encoder import Encoder
from ...encoder.mel import RATE
from ...errors import StarError
from ...files import pointer
from ...say import say
from ..identify import read_safetensors
from . import pickles
from .names import build, divide, expect, fold_batch_norm, inside, rename, truth

MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; a large model has an index (``*.index.json``) that names its parts."""
PART = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
"""Such a part's name."""
OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".gguf")
"""Endings of files that may be meant where there are none of :data:`WEIGHTS`."""

TABLE = (
    ("feature_extractor.conv_layers.#.conv.@", "frontend.convs.#.@"),
    ("feature_extractor.conv_layers.#.layer_norm.@", "frontend.norms.#.@"),
    ("feature_projection.layer_norm.@", "frontend.norm.@"),
    ("feature_projection.projection.@", "frontend.projection.@"),
    ("encoder.pos_conv_embed.conv.bias", "position.bias"),
    ("encoder.pos_conv_embed.conv.{parametrizations.weight.original0|weight_g}", "position.magnitude"),
    ("encoder.pos_conv_embed.conv.{parametrizations.weight.original1|weight_v}", "position.direction"),
    ("encoder.pos_conv_embed.conv.weight", "position.weight"),
    ("encoder.pos_conv_embed.batch_norm.scale", "position.scale"),
    ("encoder.pos_conv_embed.batch_norm.shift", "position.shift"),
    ("encoder.pos_conv_embed.layers.#.conv.weight", "position.weights.#"),
    ("encoder.pos_conv_embed.layers.#.conv.bias", "position.biases.#"),
    ("encoder.layer_norm.@", "norm.@"),
    ("encoder.layers.#.attention.q_proj.@", "layers.#.attention.query.@"),
    ("encoder.layers.#.attention.k_proj.@", "layers.#.attention.key.@"),
    ("encoder.layers.#.attention.v_proj.@", "layers.#.attention.value.@"),
    ("encoder.layers.#.attention.out_proj.@", "layers.#.attention.output.@"),
    ("encoder.layers.0.attention.rel_attn_embed.weight", "relative_position.embedding.weight"),
    ("encoder.layers.#.attention.gru_rel_pos_linear.@", "layers.#.attention.gate.linear.@"),
    ("encoder.layers.#.attention.gru_rel_pos_const", "layers.#.attention.gate.scale"),
    ("encoder.layers.#.layer_norm.@", "layers.#.attention_norm.@"),
    ("encoder.layers.#.feed_forward.intermediate_dense.@", "layers.#.ffn_in.@"),
    ("encoder.layers.#.feed_forward.output_dense.@", "layers.#.ffn_out.@"),
    ("encoder.layers.#.final_layer_norm.@", "layers.#.ffn_norm.@"),
    ("encoder.layers.#.adapter_layer.norm.@", "layers.#.adapter.norm.@"),
    ("encoder.layers.#.adapter_layer.linear_1.@", "layers.#.adapter.down.@"),
    ("encoder.layers.#.adapter_layer.linear_2.@", "layers.#.adapter.up.@"),
    ("masked_spec_embed", "mask_vector"),
)
_FIRST = "feature_extractor.conv_layers.0.conv.weight"
NORM = "encoder.pos_conv_embed.batch_norm"
_IGNORED = (
    *("quantizer.", "project_q.", "project_hid."),  # of the pre-training
    *(
        "lm_head.",
        "projector.",
        "classifier.",
        "layer_weights",
        "feature_extractor_proj",
        "tdnn.",
        "objective.",
    ),  # of tasks
    "adapter.",
    "final_proj.",  # ports of fairseq's HuBERT (ContentVec)
)


def is_folder(path: str | Path) -> bool:
    """Whether the folder holds a model that this module reads, or at least one of the transformers library."""
    try:
        return "model_type" in json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def load(folder: str | Path, reference_padding: bool = False) -> Encoder:
    """The encoder of the folder, in eval mode, fp32.

    The waveform is normalised where ``preprocessor_config.json`` says so (``do_normalize``, which transformers takes as
    true where the file has no such key); without that file, where the front end has layer norms, as the models' authors
    train them.
    """
    folder = Path(folder)
    preprocessor = folder / "preprocessor_config.json"
    prepared = read_json(preprocessor) if preprocessor.exists() else None
    config, where = read_json(folder / "config.json"), str(folder)
    _known(config, f"{where}: config.json")
    return load_weights(_weights(folder), config, prepared, where, f"{where}: config.json", reference_padding)


def load_weights(
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    where: str,
    config_where: str,
    reference_padding: bool,
) -> Encoder:
    """The encoder of tensors with transformers' names, its ``config.json`` and, where there is one,
    ``preprocessor_config.json``."""
    _known(config, config_where)
    weights = inside(weights, _FIRST, where)
    if any(name.startswith("adapter.") for name in weights):
        say(f"star: {where}: read without the adapter that follows its encoder (add_adapter)")
    values = _values(config, config_where) | {"normalize_epsilon": 1e-7}
    if preprocessor is not None:
        values["normalize_waveform"] = truth(preprocessor, "do_normalize", True, f"{where}: preprocessor_config.json")
        if (rate := preprocessor.get("sampling_rate", RATE)) != RATE:
            raise StarError(
                f"{where}: preprocessor_config.json: sampling_rate: the model hears audio at {rate} Hz; here audio has "
                f"{RATE} Hz"
            )
    else:
        values["normalize_waveform"] = values["conv_norm"] == "layer"
    if values["position_norm"] == "batch":
        weights = fold_batch_norm(weights, NORM, f"{NORM}.scale", f"{NORM}.shift", where)
    return build(values, rename(weights, TABLE, _IGNORED, where), where, reference_padding)


def _known(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("model_type")
    expect(kind in MODEL_TYPES, f"{where}: model_type", f"{kind!r} (known: {', '.join(MODEL_TYPES)})")


def _values(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = config["model_type"]
    for key in ("hidden_act", "feat_extract_activation"):
        given = config.get(key, "gelu")
        expect(given == "gelu", f"{where}: {key}", repr(given))
    # data2vec has one variant, whatever these keys say; only HuBERT has a batch norm or a front end without its last
    # norm
    norm = "layer" if kind == "data2vec-audio" else config.get("feat_extract_norm", "group")
    expect(norm in ("group", "layer"), f"{where}: feat_extract_norm", repr(norm))
    stable = kind != "data2vec-audio" and truth(config, "do_stable_layer_norm", False, where)
    adapted = stable and kind != "wavlm"
    width, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    channels = config.get("conv_dim", [512] * 7)
    kernels = config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])
    strides = config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])
    lists = (channels, kernels, strides)
    if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) > 1:
        raise StarError(f"{where}: conv_dim, conv_kernel and conv_stride: one value a convolution each")
    values = {
        "conv_layers": list(zip(channels, kernels, strides)),
        "conv_bias": config.get("conv_bias", False),
        "conv_norm": norm,
        "projection_norm": config.get("feat_proj_layer_norm", True) if kind == "hubert" else True,
        "width": width,
        "position_kernel": config.get("num_conv_pos_embeddings", 128),
        "position_norm": "batch" if kind == "hubert" and config.get("conv_pos_batch_norm", False) else "weight",
        "position_groups": config.get("num_conv_pos_embedding_groups", 16),
        "layers": config.get("num_hidden_layers", 12),
        "heads": heads,
        "head_width": divide(width, heads, f"{where}: num_attention_heads"),
        "ffn": config.get("intermediate_size", 3072),
        "norm": "pre" if stable else "post",
        "adapter": (config.get("adapter_attn_dim") or 0) if adapted else 0,
        "norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "dropout": config.get("hidden_dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.1),
        "activation_dropout": config.get("activation_dropout", 0.1),
        "feature_dropout": config.get("feat_proj_dropout", 0.0),
    }
    if kind == "data2vec-audio":
        values |= {
            "position_norm": "layer",
            "position_layers": config.get("num_conv_pos_embeddings", 5),
            "position_kernel": config.get("conv_pos_kernel_size", 19),
        }
    if kind == "wavlm":
        values["relative_position"] = {
            "buckets": config.get("num_buckets", 320),
            "max_distance": config.get("max_bucket_distance", 800),
            "total_heads": heads,
        }
    return values


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        parts = [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(
                isinstance(part, str) and Path(part).name == part for part in listed.values()
            ):
                raise StarError(f"{index}: expected 'weight_map' with file names of this folder")
            parts = [folder / part for part in sorted(set(listed.values()))]
        if index.exists() or parts[0].exists() or parts[0].is_symlink():
            return {key: tensor for part in parts for key, tensor in _read(part).items()}
    if pieces := sorted(entry.name for entry in folder.iterdir() if PART.fullmatch(entry.name)):
        raise StarError(
            f"{folder}: holds parts of a model ({pieces[0]}, ...) without their index (*.index.json), which is part of "
            "it too"
        )
    others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in OTHER_WEIGHTS)
    held = f"; it holds {', '.join(others[:3])}, which is not read" if others else ""
    variant = next(
        (name for name in others if re.fullmatch(r"model\.\w+\.safetensors|pytorch_model\.\w+\.bin", name)), None
    )
    if variant:
        first, *_, last = variant.split(".")
        held = f"; where {variant} is meant, rename it to {first}.{last}"
    raise StarError(f"{folder}: no weights ({' or '.join(WEIGHTS)}) beside config.json{held}")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = pickles.read(path)
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise StarError(f"{path}: holds more than weights by name")
    return dict(content)


def read_json(path: Path) -> dict[str, Any]:
    """Keys and values, in any of json's encodings, with or without a byte-order mark. Raises :class:`StarError`."""
    if said := pointer(path):
        raise StarError(f"{path}: {said}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise StarError(f"{path}: not json ({error})") from None
    if not isinstance(content, dict):
        raise StarError(f"{path}: expected keys with values")
    return content
