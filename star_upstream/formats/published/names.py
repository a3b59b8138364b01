"""From another framework's tensor names to the encoder's, and the encoder built from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ... import strict
from ...encoder import Encoder, EncoderConfig
from ...errors import StarError
from .. import checkpoint

Table = Sequence[tuple[str, str]]
"""Foreign names and ours: ``#`` stands for a number, ``@`` for ``weight`` or ``bias``, ``{a|b}`` in a foreign name for
``a`` or ``b``. The first pair that fits counts."""
_SIGNS = {"#": r"(\d+)", "@": "(weight|bias)", "{": "(?:", "|": "|", "}": ")"}


def backwards(table: Table) -> Table:
    """From our names to the foreign ones; of several that one of ours stands for, to the first."""
    return [(ours, re.sub(r"\{(.*?)\|.*?\}", r"\1", theirs)) for theirs, ours in table]


def inside(weights: Mapping[str, Tensor], first: str, where: str) -> dict[str, Tensor]:
    """The encoder's tensors without the prefix that wrappers and heads gave their names (``module.``, ``hubert.``,
    ``w2v_encoder.w2v_model.``).

    ``first`` is the name, without it, of a tensor that every encoder of the kind has. Where there is a prefix, only
    names with it count: a head may have parts of the same name. Raises :class:`StarError` where several encoders are
    inside.
    """
    found = sorted(name[: -len(first)] for name in weights if name == first or name.endswith(f".{first}"))
    if len(found) > 1:
        shown = ", ".join(repr(prefix) for prefix in found)
        raise StarError(
            f"{where}: holds {len(found)} encoders, with names that begin {shown}; save the one you mean alone"
        )
    prefix = found[0] if found else ""
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def fold_batch_norm(weights: Mapping[str, Tensor], norm: str, scale: str, shift: str, where: str) -> dict[str, Tensor]:
    """``weights`` with the batch norm called ``norm`` as what it is outside of training: a ``scale`` and a ``shift`` a
    channel."""
    folded = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{norm}.")}
    parts = ("weight", "bias", "running_mean", "running_var")
    if any(f"{norm}.{part}" not in weights for part in parts):
        raise StarError(f"{where}: no batch norm {norm} ({', '.join(parts)}), which its configuration asks for")
    weight, bias, mean, variance = (weights[f"{norm}.{part}"].double() for part in parts)
    folded[scale] = (weight / (variance + 1e-5).sqrt()).float()
    folded[shift] = (bias - mean * weight / (variance + 1e-5).sqrt()).float()
    return folded


def split_joint(weights: Mapping[str, Tensor], joint: str) -> dict[str, Tensor]:
    """``weights`` with query, key and value apart, where one tensor (``...{joint}weight``, ``...{joint}bias``) holds
    all three."""
    split = {}
    for name, tensor in weights.items():
        stem, found, kind = name.partition(joint)
        if found:
            outer = stem + joint.removesuffix("in_proj_")
            split.update({f"{outer}{part}_proj.{kind}": rows for part, rows in zip("qkv", tensor.chunk(3))})
        else:
            split[name] = tensor
    return split


def rename(weights: Mapping[str, Tensor], table: Table, ignored: Iterable[str], where: str) -> dict[str, Tensor]:
    """``weights`` under the encoder's names; what starts with one of ``ignored`` (heads of the training) is left out.

    Raises :class:`StarError` for a tensor that neither names: the model then holds a part that the encoder does not
    have.
    """
    renamed, ignored = {}, tuple(ignored)
    patterns = [(_pattern(theirs), re.sub("[#@]", "{}", ours)) for theirs, ours in table]
    for name, tensor in weights.items():
        for pattern, ours in patterns:
            match = pattern.fullmatch(name)
            if match:
                renamed[ours.format(*match.groups())] = tensor.flatten() if ours.endswith("gate.scale") else tensor
                break
        else:
            if not name.startswith(ignored):
                raise StarError(f"{where}: tensor {name!r} belongs to no part of an encoder that star_upstream knows")
    return renamed


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("".join(_SIGNS.get(part) or re.escape(part) for part in re.split("([#@{|}])", name)))


def split_heads(weights: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """``weights`` with DistilHuBERT's joint last maps (``stem.weight``, heads x in x out, and ``stem.bias``;
    ``stem.layer.*`` where there is one head) as one linear map a head: ``stem.0.weight`` (out x in), ``stem.0.bias``,
    ..."""
    split = {}
    for name, tensor in weights.items():
        if name == f"{stem}.weight" and tensor.dim() == 3:
            split.update({f"{stem}.{i}.weight": head.T.contiguous() for i, head in enumerate(tensor)})
        elif name == f"{stem}.bias" and tensor.dim() == 4:
            split.update({f"{stem}.{i}.bias": head for i, head in enumerate(tensor[0, 0])})
        else:
            split[name.replace(f"{stem}.layer.", f"{stem}.0.")] = tensor
    return split


def build(values: dict[str, Any], weights: Mapping[str, Tensor], where: str, reference_padding: bool) -> Encoder:
    """The encoder of configuration ``values`` with ``weights`` under our names, in eval mode."""
    encoder = Encoder(strict.build(EncoderConfig, values, where), reference_padding)
    checkpoint.load_weights(encoder, dict(weights), where)
    return encoder.eval()


def expect(condition: bool, where: str, what: str) -> None:
    """Raise :class:`StarError` for a variant of a foreign model that the encoder does not have."""
    if not condition:
        raise StarError(f"{where}: {what} is not supported")


def fill(
    given: Mapping[str, Any], defaults: Mapping[str, Any], required: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """fairseq's options with what its code takes where a file says nothing. Raises :class:`StarError` where one of the
    ``required`` has another value, and for an unknown ``extractor_mode``."""
    for key, allowed in required.items():
        value = given.get(key, allowed)
        expect(value == allowed, f"{where}: {key}", repr(value))
    option = {**defaults, **{key: given[key] for key in defaults if given.get(key) is not None}}
    for key, default in defaults.items():
        if isinstance(default, bool):
            option[key] = truth(option, key, default, where)
    mode = option["extractor_mode"]
    expect(mode in ("default", "layer_norm"), f"{where}: extractor_mode", repr(mode))
    return option


def truth(values: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """The switch ``key``. Raises :class:`StarError` for a value that is none, such as the text ``"false"``."""
    value = values.get(key, default)
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        raise StarError(f"{where}: {key}: expected true or false, got {value!r}")
    return bool(value)


def divide(width: Any, heads: Any, where: str) -> int:
    """Channels of a head."""
    if not (isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0):
        raise StarError(f"{where}: {heads!r} attention heads do not divide width {width!r}")
    return width // heads
