"""What every exported model says of where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..encoder import Encoder
from ..formats import checkpoint, sources
from ..mini import SHIPPED


def load(source: str | Path, config: str | Path | None = None) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of ``source``, and its name and provenance."""
    encoder, name = sources.load(source, config=config), str(source)
    where = SHIPPED.get(name, Path(source))
    of: dict[str, Any] = {"source": Path(source).resolve().name if Path(source).exists() else name}
    if checkpoint.is_checkpoint(where):
        of["provenance"] = checkpoint.describe(where).get("provenance", {})
    return encoder, of


def licence(source: str | Path) -> str:
    """The weights' licence, as far as the package knows it."""
    if str(source) in SHIPPED:
        return "Apache-2.0, with the attributions of star_upstream/mini/CARD.md"
    return "not stated: that of the model it was exported from"
