"""Models with fairseq's names: HuBERT and wav2vec 2.0 (``.pt``) and WavLM's own ``.pt``. The names and options also
serve :mod:`.students`, :mod:`.distiller` and :mod:`.lighthubert`.

A configuration is a mapping with fairseq's option names; an absent one has fairseq's default. Padding as fairseq does
it (``reference_padding``): the first group norm sees it, padded frames are set to zero before the positional
convolution, and attention leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...encoder import Encoder
from ...errors import StarError
from . import literals
from .names import build, divide, expect, fill, fold_batch_norm, inside, rename, truth
from .pickles import plain

_DEFAULTS = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "layer_norm_first": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
}
_REQUIRED = {
    "layer_type": "transformer",
    "activation_fn": "gelu",
    "crop_seq_to_multiple": 1,
    "deep_norm": False,
}
TABLE = (
    ("feature_extractor.conv_layers.#.0.@", "frontend.convs.#.@"),
    ("feature_extractor.conv_layers.#.2{|.1}.@", "frontend.norms.#.@"),
    ("layer_norm.@", "frontend.norm.@"),
    ("post_extract_proj.@", "frontend.projection.@"),
    ("encoder.pos_conv.0.bias", "position.bias"),
    ("encoder.pos_conv.0.{weight_g|parametrizations.weight.original0}", "position.magnitude"),
    ("encoder.pos_conv.0.{weight_v|parametrizations.weight.original1}", "position.direction"),
    ("encoder.pos_conv.0.scale", "position.scale"),
    ("encoder.pos_conv.0.shift", "position.shift"),
    ("encoder.pos_conv.1.@", "position.@"),
    ("encoder.pos_conv.#.0.weight", "position.weights.#"),
    ("encoder.pos_conv.#.0.bias", "position.biases.#"),
    ("encoder.layer_norm.@", "norm.@"),
    ("encoder.layers.#.self_attn.q_proj.@", "layers.#.attention.query.@"),
    ("encoder.layers.#.self_attn.k_proj.@", "layers.#.attention.key.@"),
    ("encoder.layers.#.self_attn.v_proj.@", "layers.#.attention.value.@"),
    ("encoder.layers.#.self_attn.out_proj.@", "layers.#.attention.output.@"),
    ("encoder.layers.0.self_attn.relative_attention_bias.weight", "relative_position.embedding.weight"),
    ("encoder.layers.#.self_attn.grep_linear.@", "layers.#.attention.gate.linear.@"),
    ("encoder.layers.#.self_attn.grep_a", "layers.#.attention.gate.scale"),
    ("encoder.layers.#.self_attn_layer_norm.@", "layers.#.attention_norm.@"),
    ("encoder.layers.#.fc1.@", "layers.#.ffn_in.@"),
    ("encoder.layers.#.fc2.@", "layers.#.ffn_out.@"),
    ("encoder.layers.#.final_layer_norm.@", "layers.#.ffn_norm.@"),
    ("mask_emb", "mask_vector"),
)
FIRST = "feature_extractor.conv_layers.0.0.weight"
"""A tensor that every encoder of the kind has."""
IGNORED = ("final_proj.", "label_embs_concat", "quantizer.", "project_q.", "target_glu.", "_ema")
"""Prediction heads of the training."""


def values(options: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """:class:`EncoderConfig` values from fairseq's ``options``; ``weights`` (its names) tell whether there is a
    projection."""
    option = fill(options, _DEFAULTS, _REQUIRED, where)
    layers, heads = option["encoder_layers"], option["encoder_attention_heads"]
    head_width = divide(option["encoder_embed_dim"], heads, f"{where}: encoder_attention_heads")
    result = {
        "conv_layers": literals.parse(option["conv_feature_layers"], f"{where}: conv_feature_layers"),
        "conv_bias": option["conv_bias"],
        "conv_norm": "layer" if option["extractor_mode"] == "layer_norm" else "group",
        "projection": "post_extract_proj.weight" in weights,
        "width": option["encoder_embed_dim"],
        "position_kernel": option["conv_pos"],
        "position_groups": option["conv_pos_groups"],
        "layers": layers,
        "heads": heads,
        "head_width": head_width,
        "ffn": option["encoder_ffn_embed_dim"],
        "norm": "pre" if option["layer_norm_first"] else "post",
        "dropout": option["dropout"],
        "attention_dropout": option["attention_dropout"],
        "activation_dropout": option["activation_dropout"],
        "feature_dropout": option["dropout_input"],
    }
    depth, kernel = option["pos_conv_depth"], option["conv_pos"]
    if isinstance(depth, int) and depth > 1:  # data2vec: the kernel is shared out over the convolutions
        kernel = max(3, kernel // depth) if isinstance(kernel, int) else kernel
        result |= {"position_norm": "layer", "position_layers": depth, "position_kernel": kernel}
    elif option["conv_pos_batch_norm"]:
        result["position_norm"] = "batch"
    if options.get("relative_position_embedding"):
        expect(bool(options.get("gru_rel_pos")), f"{where}: gru_rel_pos", "a relative position bias without its gate")
        result["relative_position"] = {
            "buckets": options.get("num_buckets", 320),
            "max_distance": options.get("max_distance", 1280),
            "total_heads": heads,
        }
    return result


def load_fairseq(content: Mapping[str, Any], where: str, reference_padding: bool) -> Encoder:
    """HuBERT, wav2vec 2.0 or data2vec audio as fairseq saves them, or WavLM as its authors do: ``{"cfg" or "args": ...,
    "model": weights}``.

    The waveform is normalised where the task's configuration says ``normalize`` (WavLM: its only configuration). A
    model fine-tuned for recognition (CTC, sequence to sequence) holds the encoder's own configuration under
    ``w2v_args``; its head is left out.
    """
    cfg = plain(content.get("cfg")) or plain(content.get("args"))
    if not isinstance(cfg, dict):
        raise StarError(f"{where}: no configuration under 'cfg' or 'args'")
    return load_weights(content["model"], cfg, where, reference_padding)


def _sections(cfg: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The model's and the task's options: two sections, or one Namespace (WavLM, and fairseq before 2021) for both."""
    model, task = cfg.get("model"), cfg.get("task")
    if not isinstance(model, dict):
        return cfg, cfg
    return model, task if isinstance(task, dict) and "normalize" in task else model


def load_weights(weights: Mapping[str, Any], cfg: Mapping[str, Any], where: str, reference_padding: bool) -> Encoder:
    """The encoder of tensors with fairseq's names; ``cfg`` holds options, or sections ``model`` and ``task`` of
    them."""
    expect(not any("modality_encoders." in name for name in weights), where, "data2vec 2.0 (data2vec_multi)")
    expect(
        not any(name.startswith("feature_aggregator.") for name in weights),
        where,
        "wav2vec 1 or vq-wav2vec, which has no transformer",
    )
    expect(
        not any(name.startswith(("encoders.", "middle_encoder.")) for name in weights), where, "multi-resolution HuBERT"
    )
    options, task = _sections(cfg)
    if "w2v_args" in options or any(name.startswith("w2v_encoder.") or "w2v_model." in name for name in weights):
        inner = options.get("w2v_args")
        if not isinstance(inner, dict):
            raise StarError(
                f"{where}: a model fine-tuned for recognition without the configuration of its encoder (w2v_args); "
                "load the pre-trained model that it started from "
                f"({options.get('w2v_path') or 'its w2v_path is not said'})"
            )
        options, inner_task = _sections(inner)
        task = inner_task if "normalize" in inner_task else task
    weights = {name: tensor for name, tensor in inside(weights, FIRST, where).items() if isinstance(tensor, Tensor)}
    if options.get("conv_pos_batch_norm") and (options.get("pos_conv_depth") or 1) == 1:
        stem = "encoder.pos_conv.0"
        weights = fold_batch_norm(weights, stem, f"{stem}.scale", f"{stem}.shift", where)
    config = {**values(options, weights, where), "normalize_waveform": truth(task, "normalize", False, where)}
    return build(config, rename(weights, TABLE, IGNORED, where), where, reference_padding)
