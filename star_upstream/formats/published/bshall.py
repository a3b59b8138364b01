"""HuBERT-Soft and HuBERT-Discrete of van Niekerk et al. (github.com/bshall/hubert, hubert/model.py at c01819f; releases
v0.1 and v0.2).

The file is ``{"hubert": weights, ...}``, with names that begin ``module.``; the architecture, HuBERT Base, is in the
authors' code alone. Layers are torch's ``nn.TransformerEncoderLayer`` with query, key and value in one tensor. The
heads (``proj``, ``label_embedding``: soft and discrete units) are left out. The authors pad a waveform by 40 samples on
either side before encoding it; the encoder takes waveforms as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...encoder import HUBERT_CONVS, Encoder
from ...errors import StarError
from .names import build, divide, inside, rename, split_joint

_HEADS = 12
_FIRST = "feature_extractor.conv0.weight"
_TABLE = (
    ("feature_extractor.conv#.weight", "frontend.convs.#.weight"),
    ("feature_extractor.norm0.@", "frontend.norms.0.@"),
    ("feature_projection.norm.@", "frontend.norm.@"),
    ("feature_projection.projection.@", "frontend.projection.@"),
    ("positional_embedding.conv.bias", "position.bias"),
    ("positional_embedding.conv.{weight_g|parametrizations.weight.original0}", "position.magnitude"),
    ("positional_embedding.conv.{weight_v|parametrizations.weight.original1}", "position.direction"),
    ("norm.@", "norm.@"),
    ("encoder.layers.#.self_attn.q_proj.@", "layers.#.attention.query.@"),
    ("encoder.layers.#.self_attn.k_proj.@", "layers.#.attention.key.@"),
    ("encoder.layers.#.self_attn.v_proj.@", "layers.#.attention.value.@"),
    ("encoder.layers.#.self_attn.out_proj.@", "layers.#.attention.output.@"),
    ("encoder.layers.#.norm1.@", "layers.#.attention_norm.@"),
    ("encoder.layers.#.linear1.@", "layers.#.ffn_in.@"),
    ("encoder.layers.#.linear2.@", "layers.#.ffn_out.@"),
    ("encoder.layers.#.norm2.@", "layers.#.ffn_norm.@"),
)
_IGNORED = ("masked_spec_embed", "proj.", "label_embedding.")


def is_bshall(weights: Mapping[str, Any]) -> bool:
    """Whether the tensors have the names of this family."""
    return any(name == _FIRST or name.endswith(f".{_FIRST}") for name in weights)


def load_bshall(weights: Mapping[str, Tensor], where: str, reference_padding: bool) -> Encoder:
    """The encoder. Widths and layers are those of the tensors, heads and strides those of the authors' code."""
    weights = inside(weights, _FIRST, where)
    norm, first = weights.get("norm.weight"), weights.get("encoder.layers.0.linear1.weight")
    position = next(
        (weights[n] for n in weights if n.endswith(("conv.weight_v", "parametrizations.weight.original1"))), None
    )
    convs = [weights.get(f"feature_extractor.conv{i}.weight") for i in range(len(HUBERT_CONVS))]
    found = [conv for conv in convs if conv is not None and conv.dim() == 3]
    if norm is None or first is None or position is None or len(found) < len(convs):
        raise StarError(f"{where}: a file of bshall/hubert without some of the encoder's tensors")
    width = len(norm)
    values = {
        "conv_layers": [(conv.shape[0], conv.shape[2], stride) for conv, (_, _, stride) in zip(found, HUBERT_CONVS)],
        "width": width,
        "position_kernel": position.shape[-1],
        "position_groups": width // position.shape[1],
        "layers": sum(name.endswith(".linear1.weight") for name in weights),
        "heads": _HEADS,
        "head_width": divide(width, _HEADS, where),
        "ffn": len(first),
    }
    return build(
        values, rename(split_joint(weights, "self_attn.in_proj_"), _TABLE, _IGNORED, where), where, reference_padding
    )
