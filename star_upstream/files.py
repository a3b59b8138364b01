"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Unwritten, unwritten

if TYPE_CHECKING:  # the command line's help should not wait for torch
    from torch import Tensor

LEFT = 3600.0
"""Seconds after which a temporary file or folder that nothing was added to is not being written any more."""


@contextlib.contextmanager
def replacing(path: str | Path, own: Collection[str] | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` (the folder is made); on success what was written there takes ``path``'s place.

    Works for a file and for a folder; a link stays, what it points to is replaced. ``own``: names in a folder that the
    new one replaces, whatever else the old one holds is moved into the new one; None replaces all. After an error
    nothing has changed. What a killed process left here goes after an hour. Whether ``path`` may be replaced is the
    caller's business (:mod:`.outputs`).
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        for old in leftovers(path, "part"):
            with contextlib.suppress(OSError):  # another process was quicker
                if time.time() - old.stat().st_mtime > LEFT:
                    _remove(old)
        yield part
        if part.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(old)
            os.replace(path, old)
            os.replace(part, path)
            if own is not None:
                put_back(old, path, own)
            _remove(old)
        else:
            os.replace(part, path)
    except Exception as error:
        if said := unwritten(error):
            raise Unwritten(f"{path}: cannot be written ({said}); what was there is as it was") from None
        raise
    finally:
        with contextlib.suppress(OSError):  # a folder or a name that cannot be
            _remove(part)


def home(path: str | Path) -> Path:
    """``path`` with ``~`` as the home folder; a name that begins so and is no user's stays as it is."""
    return Path(os.path.expanduser(path))


def pointer(path: str | Path) -> str | None:
    """What a file is that git-lfs or git-annex left in the place of another, as a phrase with what to do; None for any
    other."""
    try:
        with open(path, "rb") as file:
            start = file.read(200)
    except OSError:
        return None
    fetch = "in its repository, or download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return f"a git-lfs pointer, not the content: run 'git lfs pull' {fetch}"
    if start.startswith(b"/annex/objects/"):
        return f"a git-annex pointer, not the content: run 'git annex get' on it {fetch}"
    return None


def leftovers(path: Path, kind: str) -> list[Path]:
    """What killed processes left of :func:`replacing` ``path``: new ones (``kind`` "part") or old ones ("old")."""
    name = re.compile(rf"{re.escape(f'.{path.name}.')}\d+\.{kind}")
    return [entry for entry in path.parent.glob(f".{glob.escape(path.name)}.*.{kind}") if name.fullmatch(entry.name)]


def put_back(old: Path, new: Path, own: Collection[str]) -> None:
    """Move what is not among the names ``own`` from a replaced folder to the new one."""
    for entry in old.iterdir():
        if entry.name not in own and not os.path.lexists(new / entry.name):
            os.replace(entry, new / entry.name)


def sha256(path: str | Path) -> str:
    """Of the file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
