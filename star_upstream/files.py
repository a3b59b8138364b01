"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping

if TYPE_CHECKING:  # the command line's help should not wait for torch
    from torch import Tensor

LEFT = 3600.0
"""Seconds after which a temporary file or folder that nothing was added to is not being written any more."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` (the folder is made); on success what was written there takes ``path``'s place.

    Works for a file and for a folder. After an error nothing has changed. What a killed process left here goes after an hour.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(part)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # another process was quicker
            if time.time() - old.stat().st_mtime > LEFT:
                _remove(old)
    try:
        yield part
        if part.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(old)
            os.replace(path, old)
            os.replace(part, path)
            _remove(old)
        else:
            os.replace(part, path)
    finally:
        _remove(part)


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as indented json, written whole or not at all. NaN and infinity are refused."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that whoever may read the folder can read: the library alone makes it private to its owner."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata)
    mask = os.umask(0o077)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
