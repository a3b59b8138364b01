"""DistilHuBERT as s3prl saves it (``.ckpt``): ``{"Distiller": weights, "Config": {"distiller": options, ...}, ...}``.

Read in s3prl at ec8064b (2025-06-13), upstream/distiller. No LayerNorm stands before the projection. The prediction
heads are one linear map and GELU, then one map each, kept in a single tensor. What SUPERB is given is the last layer's
output alone, as in the paper (``-s paper``); s3prl's ``hidden_states`` also hold the projected features and the
predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...encoder import Encoder
from ...errors import StarError
from . import fairseq, literals, pickles
from .names import build, expect, fill, rename, split_heads

# what DistillerConfig takes where a file has no such option; all others are fairseq's, with its defaults
_DEFAULTS = {
    "extractor_mode": "default",
    "extractor_conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "encoder_layers": 1,
    "activation_dropout": 0.1,
    "final_dim": 768,
    "out_layer_type": "expand-last",
    "out_layer_inter_dim": -1,
    "n_tasks": 12,
}
TABLE = (
    *fairseq.TABLE,
    ("output_layer.0.@", "predictions.shared.@"),
    ("output_layer.2.#.@", "predictions.each.#.@"),
)

_REQUIRED = {"activation_fn": "gelu", "attention_type": "original", "task_emb_type": "expand-last"}


def is_distiller(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is laid out so."""
    return isinstance(content.get("Distiller"), Mapping) and "Config" in content


def load_distiller(content: Mapping[str, Any], where: str, reference_padding: bool) -> Encoder:
    """The encoder, its prediction heads among it. Raises :class:`StarError` for the variants that embed the layer to
    predict."""
    given = pickles.plain(content["Config"])
    given = given.get("distiller") if isinstance(given, dict) else None
    if not isinstance(given, dict):
        raise StarError(f"{where}: no section 'distiller' under 'Config'")
    option = fill(given, _DEFAULTS, _REQUIRED, where)
    weights: Mapping[str, Tensor] = content["Distiller"]
    convs = literals.parse(option["extractor_conv_feature_layers"], f"{where}: extractor_conv_feature_layers")
    values = {
        **fairseq.values({**given, **option, "conv_feature_layers": convs}, weights, where),
        "projection_norm": False,
        "hidden_states": "last",
    }
    if option["out_layer_type"] != "none":
        expect(option["out_layer_type"] == "expand-last", f"{where}: out_layer_type", repr(option["out_layer_type"]))
        inner, count = option["out_layer_inter_dim"], option["n_tasks"]
        layers = given.get("pred_layer_id", list(range(1, count + 1)) if isinstance(count, int) else None)
        values |= {
            "prediction_layers": layers,
            "prediction_inner": max(inner, 0) if isinstance(inner, int) else inner,
            "prediction_width": option["final_dim"],
        }
        weights = split_heads(weights, "output_layer.2")
    return build(values, rename(weights, TABLE, (), where), where, reference_padding)
