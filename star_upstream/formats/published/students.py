"""Students of Jang, Lee and Kim: STaRHuBERT, ARMHuBERT, MaskHuBERT and FitHuBERT (Lightning ``.ckpt`` beside a
``.yaml``).

Which one a file is, its yaml says first (the options that only that model's code has), then the names of its tensors.
Read in sungnyun/ARMHuBERT at e687add (2024-08-29), glory20h/FitHuBERT at 36d999c (2023-11-15) and
Qingzheng-Wang/STaRHuBERT at ef09e5e (2025-01-08: a re-implementation in STaRHuBERT's format).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...encoder import Encoder
from ...errors import StarError
from . import fairseq, literals
from .names import build, expect, rename, split_heads

FORMATS = ("starhubert", "armhubert", "maskhubert", "fithubert")

_PREFIX = "student_model."
TABLE = (
    *fairseq.TABLE,
    ("time_reduction.@", "time_reduction.@"),
    ("proj_head.#.lin_proj.@", "output_projections.#.@"),
    ("proj_head.#.upsampler.@", "upsampling.#.@"),
    ("proj_head.0.@", "predictions.shared.@"),
    ("proj_head.2.#.@", "predictions.each.#.@"),
    ("upsampler.@", "upsampling.0.@"),
)
_REDUCTION = re.compile(r"encoder\.layers\.(\d+)\.(weight|bias)")
_LAYER = re.compile(r"(encoder\.layers\.)(\d+)(\..+)")


def is_student(weights: Mapping[str, Tensor]) -> bool:
    """Whether a Lightning file's ``state_dict`` holds such a student."""
    return any(name.startswith(_PREFIX) for name in weights)


def student_format(weights: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> str:
    """One of :data:`FORMATS`, by the section ``distiller`` of the yaml, if it is there, and the names in the
    ``state_dict``.

    Where the student's width is already the heads' width, the authors' code makes no heads: names alone cannot tell all
    of them.
    """
    options = options or {}
    names = [name.removeprefix(_PREFIX) for name in weights if name.startswith(_PREFIX)]
    computed, layers = (sum(n.endswith(f".self_attn.{part}_proj.weight") for n in names) for part in "kv")
    if computed < layers or "reuse_pattern" in options:
        return "armhubert"
    if "n_mels" in options or ("upsampler.weight" in names and "mask_emb" not in names):
        return "fithubert"
    headed = any(name.startswith("proj_head.") for name in names) or "mask_emb" in names
    return "maskhubert" if headed or "layerwise_proj" in options or "enable_tr_layer" in options else "starhubert"


def load_student(
    content: Mapping[str, Any], options: Mapping[str, Any], where: str, reference_padding: bool
) -> Encoder:
    """The student in its Lightning ``content``, by the ``distiller`` section of its yaml.

    ``reuse_pattern`` is True where a layer computes its own attention map and False where it takes that of the layer
    before. What SUPERB is given: STaRHuBERT its layer outputs, ARMHuBERT and MaskHuBERT the outputs of their heads,
    FitHuBERT the last head's; a student with DistilHuBERT's heads on the last state, the last state.
    """
    kind = student_format(content["state_dict"], options)
    weights = {n.removeprefix(_PREFIX): tensor for n, tensor in content["state_dict"].items() if n.startswith(_PREFIX)}
    weights, reduced = _name_reduction(weights)
    expect(not options.get("n_mels"), f"{where}: n_mels", repr(options.get("n_mels")))
    config = {**fairseq.values(options, weights, where), "hidden_states": "layers"}
    if kind != "starhubert":
        config |= _reduction(options, reduced, where) | _heads(options, weights, kind, where)
        if kind == "armhubert":
            config |= {"reuse_attention": _reused(options, where), "reuse_softmax": True}
    if config.get("upsampling") == "heads":  # the model's own upsampler is made beside the heads', and never used
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("upsampler.")}
    if "prediction_layers" in config:
        weights = split_heads(weights, "proj_head.2")
    return build(config, rename(weights, TABLE, fairseq.IGNORED, where), where, reference_padding)


def _name_reduction(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """The time-reduction layer, which stands among the layers, under a name of its own; and where it stood."""
    places = sorted({int(match[1]) for match in map(_REDUCTION.fullmatch, weights) if match})
    if not places:
        return dict(weights), places
    renamed = {}
    for name, tensor in weights.items():
        reduction, layer = _REDUCTION.fullmatch(name), _LAYER.fullmatch(name)
        if reduction:
            name = f"time_reduction.{reduction[2]}"
        elif layer and int(layer[2]) > places[0]:
            name = f"{layer[1]}{int(layer[2]) - 1}{layer[3]}"
        renamed[name] = tensor
    return renamed, places


def _reduction(options: Mapping[str, Any], places: list[int], where: str) -> dict[str, Any]:
    """``time_reduction`` and ``upsampling``. Only a convolution before the first layer keeps one frame rate over all
    layers, and the authors' other two kinds cannot run on a padded batch (``fc1``) or not at all (``fc2``)."""
    if not options.get("enable_tr_layer", bool(places)):
        return {}
    if not places:
        raise StarError(f"{where}: enable_tr_layer: True, but the file has no time-reduction layer")
    expect(options.get("tr_layer_type") == "conv1d", f"{where}: tr_layer_type", repr(options.get("tr_layer_type")))
    expect(
        options.get("tr_layer_index") == 0, f"{where}: tr_layer_index", f"{options.get('tr_layer_index')!r} (known: 0)"
    )
    factor, multiple = options.get("tr_reduce_factor", 2), options.get("required_seq_len_multiple", 2)
    # other paddings make the authors' code drop frames that are valid
    expect(
        multiple in (1, None) or factor == multiple == 2,
        f"{where}: required_seq_len_multiple",
        f"{multiple!r} with time reduction",
    )
    return {"time_reduction": factor, "upsampling": "heads" if options.get("layerwise_proj") else "last"}


def _heads(options: Mapping[str, Any], weights: Mapping[str, Tensor], kind: str, where: str) -> dict[str, Any]:
    """The heads, and what SUPERB is given."""
    width, target = options.get("encoder_embed_dim", 768), options.get("pred_head_final_dim", 768)
    if options.get("layerwise_proj"):
        shown = "last" if kind == "fithubert" else "projections"
        if target != width:
            return {"output_projection": target, "hidden_states": shown}
        # heads without a projection pass the states on; the last one is then the last state
        return {"hidden_states": "layers" if shown == "projections" and not options.get("enable_tr_layer") else shown}
    layers = literals.parse(options.get("pred_layer_id", "[3, 7, 11]"), f"{where}: pred_layer_id")
    if not isinstance(layers, list) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise StarError(
            f"{where}: pred_layer_id: expected a list of layers counted from 0, got {options.get('pred_layer_id')!r}"
        )
    if not any(name.startswith("proj_head.") for name in weights):
        return {"hidden_states": "last"}
    return {
        "prediction_layers": [layer + 1 for layer in layers],
        "prediction_inner": options.get("pred_head_inter_dim", 0),
        "prediction_width": target,
        "hidden_states": "last",
    }


def _reused(options: Mapping[str, Any], where: str) -> list[bool]:
    pattern = literals.parse(options.get("reuse_pattern"), f"{where}: reuse_pattern")
    if not isinstance(pattern, list) or not all(isinstance(own, bool) for own in pattern):
        raise StarError(
            f"{where}: reuse_pattern: expected a list of True and False, one a layer, got "
            f"{options.get('reuse_pattern')!r}"
        )
    return [not own for own in pattern]
