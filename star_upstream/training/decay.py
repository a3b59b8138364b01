"""Which parameters the optimizer's weight decay touches.

``matrices``: kernels and matrices; biases, norms and other vectors have none.

``s3prl``: all but those whose name in the authors' modules holds ``bias`` or ``LayerNorm.weight`` (s3prl v0.4.18,
optimizers.py, ``get_grouped_parameters``, whatever the configuration file says about weight decay). fairseq's names are
``layer_norm.weight``, ``self_attn_layer_norm.weight`` and so on, which do not hold the latter: the weights of all norms
are decayed, and so is the magnitude of the positional convolution (``weight_g``); the embedding of relative positions
(``relative_attention_bias.weight``) is not. So trained were DistilHuBERT, FitHuBERT, ARMHuBERT, MaskHuBERT and, as far
as is known, STaRHuBERT."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

NOT_DECAYED = ("bias", "LayerNorm.weight")
"""What s3prl looks for in a name (its third word, ``LayerNorm.bias``, holds the first)."""

_AUTHORS = tuple(
    (re.compile(rf"(?:^|.*\.){ours}$"), theirs)
    for ours, theirs in (
        (r"frontend\.convs\.(\d+)\.(weight|bias)", r"feature_extractor.conv_layers.\1.0.\2"),
        (r"frontend\.norms\.(\d+)\.(weight|bias)", r"feature_extractor.conv_layers.\1.2.\2"),
        (r"frontend\.norm\.(weight|bias)", r"layer_norm.\1"),
        (r"frontend\.projection\.(weight|bias)", r"post_extract_proj.\1"),
        (r"position\.direction", r"encoder.pos_conv.0.weight_v"),
        (r"position\.magnitude", r"encoder.pos_conv.0.weight_g"),
        (r"position\.bias", r"encoder.pos_conv.0.bias"),
        (r"position\.scale", r"encoder.pos_conv.0.weight"),
        (r"position\.shift", r"encoder.pos_conv.0.bias"),
        (r"relative_position\.embedding\.weight", r"encoder.layers.0.self_attn.relative_attention_bias.weight"),
        (r"layers\.(\d+)\.attention\.query\.(weight|bias)", r"encoder.layers.\1.self_attn.q_proj.\2"),
        (r"layers\.(\d+)\.attention\.key\.(weight|bias)", r"encoder.layers.\1.self_attn.k_proj.\2"),
        (r"layers\.(\d+)\.attention\.value\.(weight|bias)", r"encoder.layers.\1.self_attn.v_proj.\2"),
        (r"layers\.(\d+)\.attention\.output\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
        (r"layers\.(\d+)\.attention\.gate\.linear\.(weight|bias)", r"encoder.layers.\1.self_attn.grep_linear.\2"),
        (r"layers\.(\d+)\.attention\.gate\.scale", r"encoder.layers.\1.self_attn.grep_a"),
        (r"layers\.(\d+)\.attention_norm\.(weight|bias)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
        (r"layers\.(\d+)\.ffn_in\.(weight|bias)", r"encoder.layers.\1.fc1.\2"),
        (r"layers\.(\d+)\.ffn_out\.(weight|bias)", r"encoder.layers.\1.fc2.\2"),
        (r"layers\.(\d+)\.ffn_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
        (r"output_projections\.(\d+)\.(weight|bias)", r"proj_head.\1.lin_proj.\2"),
        (r"predictions\.shared\.(weight|bias)", r"output_layer.0.\1"),
        (r"predictions\.each\.\d+\.(weight|bias)", r"output_layer.2.\1"),
        (r"norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    )
)


def authors_name(name: str) -> str:
    """What fairseq and the students built on it call the encoder's parameter ``name`` (any prefix may stand before it);
    a name that is not the encoder's, of a loss or a head, as it is."""
    for ours, theirs in _AUTHORS:
        match = ours.match(name)
        if match:
            return match.expand(theirs)
    return name


def split(modules: Iterable[nn.Module], rule: str) -> tuple[list[Tensor], list[Tensor]]:
    """The modules' trained parameters with weight decay and without, by ``rule``."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                if rule == "s3prl":
                    has = not any(word in authors_name(name) for word in NOT_DECAYED)
                else:
                    has = parameter.dim() > 1
                (decayed if has else others).append(parameter)
    return decayed, others
