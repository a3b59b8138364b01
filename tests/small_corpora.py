"""Small mini corpora, made once for all the test modules that read them."""

from pathlib import Path

import pytest

from eval.data import mini

SCALE = 0.1
_made: list[Path] = []


def small(tmp_path_factory) -> Path:
    """A folder for reading only; skips the test where espeak-ng is not installed."""
    pytest.importorskip("espeakng_loader")
    if not _made:
        _made.append(mini.make(tmp_path_factory.mktemp("mini"), scale=SCALE))
    return _made[0]
