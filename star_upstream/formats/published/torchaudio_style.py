"""Models with torchaudio's names: its own wav2vec 2.0, HuBERT and WavLM, and DPHuBERT and DPWavLM (``{"state_dict",
"config"}``), whose layers each have their own number of heads and FFN units and whose convolutions each have their own
channels.

Shapes: H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...encoder import HUBERT_CONVS, Encoder
from ...errors import StarError
from .names import build, divide, expect, inside, rename, split_joint

_TABLE = (
    ("feature_extractor.conv_layers.#.conv.@", "frontend.convs.#.@"),
    ("feature_extractor.conv_layers.#.layer_norm.@", "frontend.norms.#.@"),
    ("feature_extractor.dummy_weight", "frontend.scale"),
    ("encoder.feature_projection.layer_norm.@", "frontend.norm.@"),
    ("encoder.feature_projection.projection.@", "frontend.projection.@"),
    ("encoder.transformer.pos_conv_embed.conv.bias", "position.bias"),
    ("encoder.transformer.pos_conv_embed.conv.{weight_g|parametrizations.weight.original0}", "position.magnitude"),
    ("encoder.transformer.pos_conv_embed.conv.{weight_v|parametrizations.weight.original1}", "position.direction"),
    ("encoder.transformer.layer_norm.@", "norm.@"),
    ("encoder.transformer.layers.#.attention.{attention.|}q_proj.@", "layers.#.attention.query.@"),
    ("encoder.transformer.layers.#.attention.{attention.|}k_proj.@", "layers.#.attention.key.@"),
    ("encoder.transformer.layers.#.attention.{attention.|}v_proj.@", "layers.#.attention.value.@"),
    ("encoder.transformer.layers.#.attention.{attention.|}out_proj.@", "layers.#.attention.output.@"),
    ("encoder.transformer.layers.0.attention.rel_attn_embed.weight", "relative_position.embedding.weight"),
    ("encoder.transformer.layers.#.attention.gru_rel_pos_linear.@", "layers.#.attention.gate.linear.@"),
    ("encoder.transformer.layers.#.attention.gru_rel_pos_const", "layers.#.attention.gate.scale"),
    ("encoder.transformer.layers.#.layer_norm.@", "layers.#.attention_norm.@"),
    ("encoder.transformer.layers.#.feed_forward.intermediate_dense.@", "layers.#.ffn_in.@"),
    ("encoder.transformer.layers.#.feed_forward.output_dense.@", "layers.#.ffn_out.@"),
    ("encoder.transformer.layers.#.final_layer_norm.@", "layers.#.ffn_norm.@"),
)
FIRST = "feature_extractor.conv_layers.0.conv.weight"
"""A tensor that every encoder of the kind has."""
_IGNORED = ("aux.", "mask_generator.", "logit_generator.")


def load_pruned(
    content: Mapping[str, Any], where: str, reference_padding: bool, hidden_states: str = "features"
) -> Encoder:
    """DPHuBERT or DPWavLM. ``encoder_remaining_heads`` names the heads of WavLM's position bias that survived in each
    layer."""
    config, weights = content["config"], content["state_dict"]

    def option(key: str) -> Any:
        if key not in config:
            raise StarError(f"{where}: config has no {key!r}")
        return config[key]

    def per_layer(key: str, used: str) -> list:
        numbers, use = option(key), option(used)
        if not all(isinstance(values, (list, tuple)) and len(values) == layers for values in (numbers, use)):
            raise StarError(f"{where}: {key} and {used}: expected {layers} values, one a layer")
        return [number if used_here else type(number)() for number, used_here in zip(numbers, use)]

    layers, width = option("encoder_num_layers"), option("encoder_embed_dim")
    if not isinstance(layers, int):
        raise StarError(f"{where}: encoder_num_layers: expected int, got {layers!r}")
    relative = None
    if "encoder_remaining_heads" in config:
        totals = option("encoder_total_num_heads")
        total = totals[0] if isinstance(totals, (list, tuple)) and totals else 0
        if list(totals if total else ()) != [total] * layers:
            raise StarError(f"{where}: encoder_total_num_heads: expected {layers} equal numbers, got {totals!r}")
        kept = per_layer("encoder_remaining_heads", "encoder_use_attention")
        heads = [len(indices) if isinstance(indices, (list, tuple)) else indices for indices in kept]
        head_width = divide(width, total, f"{where}: encoder_total_num_heads")
        relative = {
            "buckets": option("encoder_num_buckets"),
            "max_distance": option("encoder_max_distance"),
            "total_heads": total,
            "kept_heads": kept,
        }
    else:
        heads, head_width = per_layer("encoder_num_heads", "encoder_use_attention"), option("encoder_head_dim")
    values = {
        "conv_layers": option("extractor_conv_layer_config"),
        "conv_bias": option("extractor_conv_bias"),
        "conv_norm": _conv_norm(option("extractor_mode"), where),
        "feature_scale": "feature_extractor.dummy_weight" in weights,
        "normalize_waveform": option("normalize_waveform"),
        "width": width,
        "position_kernel": option("encoder_pos_conv_kernel"),
        "position_groups": option("encoder_pos_conv_groups"),
        "layers": layers,
        "heads": heads,
        "head_width": head_width,
        "ffn": per_layer("encoder_ff_interm_features", "encoder_use_feed_forward"),
        "norm": "pre" if option("encoder_layer_norm_first") else "post",
        "relative_position": relative,
        "hidden_states": hidden_states,
        "dropout": option("encoder_dropout"),
        "attention_dropout": option("encoder_attention_dropout"),
        "activation_dropout": option("encoder_ff_interm_dropout"),
        "feature_dropout": option("encoder_projection_dropout"),
    }
    renamed = rename(weights, _TABLE, _IGNORED, where)
    if values["norm"] == "pre":  # a part that was pruned away leaves its norm behind, unused
        for i in range(layers):
            for name, size in (("attention_norm", values["heads"][i]), ("ffn_norm", values["ffn"][i])):
                if not size:
                    renamed = {
                        key: tensor for key, tensor in renamed.items() if not key.startswith(f"layers.{i}.{name}.")
                    }
    return build(values, renamed, where, reference_padding)


def from_model(model: nn.Module, normalize_waveform: bool, where: str, reference_padding: bool) -> Encoder:
    """A ``torchaudio.models.Wav2Vec2Model`` or ``HuBERTPretrainModel`` (wav2vec 2.0, HuBERT, WavLM) as our encoder."""
    vector = getattr(getattr(model, "mask_generator", None), "mask_embedding", None)
    known: Any = getattr(model, "wav2vec2", model)
    projection, transformer = known.encoder.feature_projection, known.encoder.transformer
    layers, position = transformer.layers, transformer.pos_conv_embed.conv
    attention = layers[0].attention
    heads, width = attention.num_heads, attention.embed_dim
    relative = None
    if hasattr(attention, "rel_attn_embed"):
        relative = {"buckets": attention.num_buckets, "max_distance": attention.max_distance, "total_heads": heads}
    convs = known.feature_extractor.conv_layers
    dropout = attention.dropout
    values = {
        "conv_layers": [(block.conv.out_channels, block.conv.kernel_size[0], block.conv.stride[0]) for block in convs],
        "conv_bias": convs[0].conv.bias is not None,
        "conv_norm": "group" if isinstance(convs[0].layer_norm, nn.GroupNorm) else "layer",
        "normalize_waveform": normalize_waveform,
        "width": width,
        "position_kernel": position.kernel_size[0],
        "position_groups": position.groups,
        "layers": len(layers),
        "heads": heads,
        "head_width": divide(width, heads, where),
        "ffn": layers[0].feed_forward.intermediate_dense.out_features,
        "norm": "pre" if layers[0].layer_norm_first else "post",
        "relative_position": relative,
        "dropout": layers[0].dropout.p,
        "attention_dropout": dropout if isinstance(dropout, float) else dropout.p,
        "activation_dropout": layers[0].feed_forward.intermediate_dropout.p,
        "feature_dropout": projection.dropout.p,
    }
    weights = rename(_apart(known.state_dict()), _TABLE, _IGNORED, where)
    weights |= {} if vector is None else {"mask_vector": vector}
    return build(values, weights, where, reference_padding)


def is_dphubert_training(weights: Mapping[str, Any]) -> bool:
    """Whether the names are those of a Lightning ``.ckpt`` of DPHuBERT's training."""
    return any(name.startswith("student_model.encoder.transformer.") for name in weights)


def load_bare(
    weights: Mapping[str, Tensor], options: Mapping[str, Any], where: str, reference_padding: bool
) -> Encoder:
    """A ``state_dict`` of ``torchaudio.models.wav2vec2_model``, ``wavlm_model`` or ``hubert_pretrain_model``, or of
    DPHuBERT.

    ``options`` has the names of those functions' arguments (``extractor_mode``, ``encoder_num_layers``, ...), and
    ``normalize_waveform`` (false where it is absent; torchaudio's bundles of large models normalise).
    """
    if any(".hard_concrete" in name for name in weights):
        raise StarError(
            f"{where}: a DPHuBERT model before pruning (it holds gates); cut it with the authors' prune.py, and give "
            "the file it writes"
        )
    weights = inside(
        {name: tensor for name, tensor in weights.items() if not name.startswith("teacher_model.")}, FIRST, where
    )
    layers = options.get("encoder_num_layers")
    if not isinstance(layers, int) or layers < 1:
        raise StarError(f"{where}: encoder_num_layers: expected a number of layers, got {layers!r}")
    if isinstance(options.get("encoder_use_attention"), list):  # DPHuBERT's
        return load_pruned({"config": options, "state_dict": weights}, where, reference_padding)
    heads: Any = options.get("encoder_num_heads")
    config = {"normalize_waveform": False, "extractor_conv_layer_config": None, **options}
    config |= {
        "extractor_conv_layer_config": config["extractor_conv_layer_config"] or [list(conv) for conv in HUBERT_CONVS],
        "encoder_use_attention": [True] * layers,
        "encoder_use_feed_forward": [True] * layers,
        "encoder_num_heads": [heads] * layers,
        "encoder_ff_interm_features": [options.get("encoder_ff_interm_features")] * layers,
        "encoder_head_dim": divide(options.get("encoder_embed_dim"), heads, f"{where}: encoder_num_heads"),
    }
    if "encoder_num_buckets" in options:
        config |= {
            "encoder_remaining_heads": [list(range(heads))] * layers,
            "encoder_total_num_heads": [heads] * layers,
        }
    return load_pruned({"config": config, "state_dict": _apart(weights)}, where, reference_padding, "all")


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's WavLM keeps query, key and value in one tensor."""
    return split_joint(weights, "attention.attention.in_proj_")


def _conv_norm(mode: str, where: str) -> str:
    expect(mode in ("group_norm", "layer_norm"), f"{where}: extractor_mode", repr(mode))
    return mode.removesuffix("_norm")
