"""Features on disk: safetensors files, each whole or absent, under keys that say all that decides their content."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from star_upstream.errors import StarError, Unwritten
from star_upstream.files import LEFT, home, replacing, write_tensors
from star_upstream.say import say

_OWN = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]*\.safetensors|\.\1[0-9a-f]*\.safetensors\.\d+\.part)")
"""Names of what is kept: only that is ever removed, whatever else the folder holds."""


class Store:
    """A folder of safetensors files, each whole or absent, each with a checksum; at most ``budget_gb``, oldest use
    leaves first.

    Raises :class:`StarError` for a folder that cannot be made.
    """

    def __init__(self, folder: str | Path, budget_gb: float = 20.0):
        self.folder, self.budget = home(folder), int(budget_gb * 1e9)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StarError(
                f"{self.folder}: cannot hold the cache ({error.strerror}); --cache takes another folder"
            ) from None
        self._written, self._full = 0, False
        self._checked: set[str] = set()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether there is a file; only :meth:`get` finds out that it is damaged."""
        return self.path(key).is_file()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under ``key``; None where there are none or where they are damaged, which is said on stderr."""
        path = self.path(key)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
                stated = (file.metadata() or {}).get("crc32")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            stated, tensors = None, {}
        if key not in self._checked or not tensors:
            if stated != _crc32(tensors):
                self._checked.discard(key)
                say(f"cache: {path} is damaged; encoding it again")
                return None
            self._checked.add(key)
            self.touch(key)
        return tensors

    def shape(self, key: str, name: str) -> list[int] | None:
        """A tensor's shape from the file's header; None where it cannot be read."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return list(file.get_slice(name).get_shape())
        except (SafetensorError, OSError):
            return None

    def one(self, key: str, name: str) -> Tensor | None:
        """One small tensor of an entry, unchecked; None where it cannot be read."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError):
            return None

    def touch(self, key: str) -> None:
        """Make an entry the last that leaves."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path(key))

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep ``tensors``; on a full disk nothing is kept, which is said once."""
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        path = self.path(key)
        try:
            with replacing(path) as part:
                write_tensors(part, tensors, {"crc32": _crc32(tensors)})
        except Unwritten as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            if not self._full:
                say(f"cache: the disk of {self.folder} is full; nothing more is kept (--cache takes another folder)")
            self._full = True
            return
        self._checked.add(key)
        if self._written == 0 or self._written > self.budget // 20:
            self._trim(keep=path)
            self._written = 0
        self._written += path.stat().st_size

    def _trim(self, keep: Path) -> None:
        entries = []
        for path in self.folder.glob("*/*"):
            if not _OWN.fullmatch(path.relative_to(self.folder).as_posix()):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix != ".part":
                    entries.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > LEFT:  # by a killed run; a living one writes each within seconds
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.budget:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                self._checked.discard(path.stem)
                total -= size


def _crc32(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
