"""From another framework's tensor names to the encoder's, and the encoder built from them."""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping

from torch import Tensor

from .. import checkpoint, strict
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError

Rules = list[tuple[re.Pattern, str]]


def rules(*pairs: tuple[str, str]) -> Rules:
    """Compiled (pattern of the whole foreign name, our name) pairs; the first that matches counts."""
    return [(re.compile(pattern), ours) for pattern, ours in pairs]


def rename(weights: Mapping[str, Tensor], table: Rules, ignored: Iterable[str], where: str) -> dict[str, Tensor]:
    """``weights`` under the encoder's names; what starts with one of ``ignored`` (heads of the training) is left out.

    Raises :class:`StarError` for a tensor that neither names: the model then holds a part that the encoder does not have.
    """
    renamed, ignored = {}, tuple(ignored)
    for name, tensor in weights.items():
        for pattern, ours in table:
            match = pattern.fullmatch(name)
            if match:
                renamed[match.expand(ours)] = tensor.flatten() if ours.endswith("gate.scale") else tensor
                break
        else:
            if not name.startswith(ignored):
                raise StarError(f"{where}: tensor {name!r} belongs to no part of an encoder that star_upstream knows")
    return renamed


def build(values: dict[str, Any], weights: Mapping[str, Tensor], where: str, reference_padding: bool) -> Encoder:
    """The encoder of configuration ``values`` with ``weights`` under our names, in eval mode."""
    encoder = Encoder(strict.build(EncoderConfig, values, where), reference_padding)
    checkpoint.load_weights(encoder, dict(weights), where)
    return encoder.eval()


def expect(condition: bool, where: str, what: str) -> None:
    """Raise :class:`StarError` for a variant of a foreign model that the encoder does not have."""
    if not condition:
        raise StarError(f"{where}: {what} is not supported")


def divide(width: int, heads: int, where: str) -> int:
    """Channels of a head."""
    if not (isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0):
        raise StarError(f"{where}: {heads!r} attention heads do not divide width {width!r}")
    return width // heads
