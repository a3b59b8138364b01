"""LightHuBERT Small, Base and Stage 1 (``.pt``, laid out as fairseq saves HuBERT): a subnet, cut out of its supernet.

Read in mechanicalsea/lighthubert at d53e545 (2022-09-26) and s3prl at ec8064b (2025-06-13), upstream/lighthubert. A
file holds the weights of the whole supernet (12 layers, width 768). The subnet is that of s3prl: for Small width 384,
for Base 640, and for Stage 1 everything; or the one that a yaml names in its section ``subnet``, as the authors'
``config/supernet/*.yaml`` do. What is cut is contiguous (:func:`_cut`), but an FFN of r times the width takes as much
from each width-sized block of the supernet's FFN. The waveform is normalised, as s3prl does it. Shapes: D width, E the
supernet's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ... import strict
from ...encoder import Encoder, EncoderConfig
from ...errors import StarError
from . import fairseq
from .names import build, expect, rename

NAMES = ("hubert_pruner", "student_hubert")
"""``_name`` of the model's options: a supernet (Small, Base), and the student of the first stage (Stage 1)."""

HEAD_WIDTH = 64
"""Of every subnet: what varies is the number of heads."""
_SUPERNET_WIDTH = 768
SUBNETS = {"small": (384, 6, 1536, 12), "base": (640, 10, 2560, 12)}
"""The subnet that each supernet is published with: width, heads, FFN units, layers."""
# which of the supernet's 12 layers a subnet of so many has
_DROPPED = {
    6: (3, 4, 7, 8, 11, 12),
    7: (4, 7, 8, 11, 12),
    8: (4, 8, 11, 12),
    9: (4, 8, 12),
    10: (8, 12),
    11: (12,),
    12: (),
}
_IGNORED = (*fairseq.IGNORED, "layer_pred_heads.")


def is_lighthubert(options: Any) -> bool:
    """Whether the model's options in a fairseq file are LightHuBERT's."""
    return isinstance(options, Mapping) and options.get("_name") in NAMES


def load_lighthubert(
    options: Mapping[str, Any], weights: Mapping[str, Tensor], subnet: Any, where: str, reference_padding: bool
) -> Encoder:
    """The subnet as an encoder of its own. ``subnet``: the section of a yaml, or None for the published one.

    Raises :class:`StarError` for a subnet that its supernet cannot hold, and for sliding windows of attention.
    """
    options = {"extractor_mode": "layer_norm", **options}  # what LightHuBERTConfig takes where the file says nothing
    expect(not options.get("layer_norm_first"), f"{where}: layer_norm_first", "a pre-norm LightHuBERT")
    values = fairseq.values(options, weights, where)
    supernet = strict.build(EncoderConfig, values, where)
    full, layers = supernet.width, supernet.layers
    if subnet is None and options["_name"] == "student_hubert":
        kept, config = list(range(layers)), {}
    else:
        heads, units, width = _subnet(options, subnet, full, where)
        if layers != 12 or len(heads) not in _DROPPED:
            raise StarError(
                f"{where}: a subnet has {', '.join(map(str, _DROPPED))} layers of 12, got {len(heads)} of {layers}"
            )
        kept = [i for i in range(12) if i + 1 not in _DROPPED[len(heads)]]
        config = {"width": width, "layers": len(kept), "heads": heads, "head_width": HEAD_WIDTH, "ffn": units}
        most = supernet.ffn[0] // full * width
        if max(heads) * HEAD_WIDTH > full or max(units) > most:
            raise StarError(
                f"{where}: subnet: up to {full // HEAD_WIDTH} heads and {most} FFN units fit, got {heads} and {units}"
            )
        try:
            position = _cut_position(weights, supernet.position_groups, width, where)
            weights = {**_cut(weights, kept, heads, units, width, full), **position}
        except (IndexError, RuntimeError):
            raise StarError(f"{where}: its tensors do not fit its configuration") from None
    values |= {**config, "normalize_waveform": True, "hidden_states": "features", "reference_frames": "share"}
    weights = {name: tensor for name, tensor in weights.items() if name != "mask_emb"}  # of the supernet's width
    return build(values, rename(weights, fairseq.TABLE, _IGNORED, where), where, reference_padding)


def _subnet(options: Mapping[str, Any], given: Any, full: int, where: str) -> tuple[list[int], list[int], int]:
    """Heads and FFN units of each layer, and the width."""
    if given is None:
        name = str(options.get("pruner_supernet", "")).lower()
        kind = next((kind for kind in SUBNETS if name.endswith(f"{kind}.yaml")), None)
        if kind is None or full != _SUPERNET_WIDTH:
            raise StarError(
                f"{where}: a supernet of width {full} ({name or 'without pruner_supernet'}): which subnet is meant is "
                "not in the "
                "file; give as config a yaml with a section 'subnet' (embed_dim, heads_num, ffn_embed, layer_num)"
            )
        width, head_count, unit_count, layers = SUBNETS[kind]
        return [head_count] * layers, [unit_count] * layers, width
    width, count = given.get("embed_dim"), given.get("layer_num")
    heads, units = given.get("heads_num"), given.get("ffn_embed")
    windows = given.get("slide_wsz") or ["global"]
    windows = windows if isinstance(windows, list) else [windows]
    if units is None and isinstance(given.get("ffn_ratio"), list) and isinstance(width, int):
        units = [int(ratio * width) for ratio in given["ffn_ratio"] if isinstance(ratio, (int, float))]
    if not isinstance(width, int) or not 0 < width <= full:
        raise StarError(f"{where}: subnet.embed_dim: expected a number up to {full}, got {width!r}")
    for key, numbers in (("heads_num", heads), ("ffn_embed", units)):
        if not isinstance(numbers, list) or len(numbers) != count or not all(type(n) is int and n > 0 for n in numbers):
            raise StarError(
                f"{where}: subnet.{key}: expected {count!r} numbers (layer_num), one a layer, got {numbers!r}"
            )
    expect(all(window == "global" for window in windows), f"{where}: subnet.slide_wsz", f"{windows} (known: 'global')")
    return heads, units, width


def _cut(
    weights: Mapping[str, Tensor], kept: list[int], heads: list[int], units: list[int], width: int, full: int
) -> dict[str, Tensor]:
    """The subnet's tensors under the names that a model of its size has."""
    cut = {}
    for name, tensor in weights.items():
        if name.startswith("encoder.layers."):
            number, _, part = name.removeprefix("encoder.layers.").partition(".")
            if not number.isdigit() or int(number) not in kept:
                continue
            layer = kept.index(int(number))
            name = f"encoder.layers.{layer}.{part}"
            cut[name] = _cut_layer(tensor, part, heads[layer] * HEAD_WIDTH, units[layer], width, full)
        elif name.startswith(("encoder.layer_norm.", "post_extract_proj.")) or name == "encoder.pos_conv.0.bias":
            cut[name] = tensor[:width].clone()
        elif not name.startswith("encoder.pos_conv.0."):
            cut[name] = tensor
    return cut


def _cut_layer(tensor: Tensor, part: str, inner: int, units: int, width: int, full: int) -> Tensor:
    """One tensor of a layer; ``inner`` channels of all its heads."""
    rows: slice | list[int]
    columns: slice | list[int]
    if part.startswith("self_attn.") and not part.startswith("self_attn.out_proj."):
        rows, columns = slice(inner), slice(width)
    elif part.startswith("fc1."):
        rows, columns = _blocks(tensor.shape[0], units, width, full), slice(width)
    else:
        rows = slice(width)
        columns = _blocks(tensor.shape[1], units, width, full) if part == "fc2.weight" else slice(inner)
    return (tensor[rows] if tensor.dim() == 1 else tensor[rows][:, columns]).clone()


def _blocks(available: int, units: int, width: int, full: int) -> list[int]:
    """Which FFN units a layer keeps: the first ``width`` of every block of ``full`` (the supernet's width), as far as
    they are needed."""
    if units == available or available // full == 1:
        return list(range(units))
    size = int(units / (units / width))  # as the authors write it: a quotient just below the width drops a unit
    return [
        full * block + i for block in range(math.ceil(units / width)) for i in range(min(size, units - block * size))
    ]


def _cut_position(weights: Mapping[str, Tensor], groups: int, width: int, where: str) -> dict[str, Tensor]:
    """The positional convolution. Its weights are normalised over the supernet's channels and then cut, so that the
    subnet's magnitude is another."""
    stem, (magnitude, direction) = "encoder.pos_conv.0.", ("weight_g", "weight_v")
    if stem + direction not in weights:
        magnitude, direction = "parametrizations.weight.original0", "parametrizations.weight.original1"
    if not {stem + magnitude, stem + direction} <= weights.keys() or width % groups:
        raise StarError(
            f"{where}: subnet.embed_dim: the positional convolution cannot be cut to width {width} in {groups} groups"
        )
    whole = torch._weight_norm(weights[stem + direction].float(), weights[stem + magnitude].float(), 2)
    part = whole[:width, : width // groups].clone()
    return {stem + direction: part, stem + magnitude: part.norm(dim=(0, 1), keepdim=True)}
