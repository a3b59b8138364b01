"""What audio files say of themselves, read side by side, once: kept in the cache by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from .. import audio, members
from ..environment import cache_home
from ..errors import StarError, first_line
from ..files import replacing
from ..say import progress, say

ROW = np.dtype([("key", "<u8"), ("frames", "<i8"), ("rate", "<i4"), ("lossy", "<i4")])
"""Of the cache's files (``lengths/SOURCE/*.rows``): a digest of path, size and time of change, and the header."""
THREADS = 8
"""Files that are read at a time."""
SLICE = 256
"""Files that a thread takes at a time."""
STEP = 20_000
"""Headers after which those that were read are written."""
EVERY = 30.0
"""Seconds after which they are, too."""
T = TypeVar("T")


class Fault(NamedTuple):
    """Why a file cannot be used. ``bad``: it is damaged, and counts against ``max_bad_share``."""

    reason: str
    bad: bool = True


Header = audio.Header | Fault
"""A header, or why there is none."""


Found = tuple[T, str | None, Header | None]
"""An item with its file, and the header of that; without a file, neither."""


class Headers:
    """The headers of the files of a ``source`` (a folder or list; for None nothing is kept)."""

    def __init__(self, source: Path | None, progress: bool):
        digest = hashlib.sha256(os.fsencode(source or "")).hexdigest()[:20]
        self.folder = None if source is None else cache_home() / "lengths" / digest
        self.progress, self.count = progress, 0
        self.files = sorted(self.folder.glob("*.rows")) if self.folder else []
        self.known = _rows(self.files)
        self.keys = np.ascontiguousarray(self.known["key"])
        self.seen = np.zeros(len(self.known), bool)
        self.steps: list[np.ndarray] = []
        self.new: dict[str, tuple[int, Header]] = {}
        self.before: dict[str, tuple[int, Header]] = {}
        self.written = self.said = time.monotonic()

    def read(self, items: Iterable[T], place: Callable[[T], str | None]) -> Iterator[Found[T]]:
        """Each item with the file that ``place`` (called in threads) names for it, and its header, in order. Few are
        taken ahead of what is asked for; what was read is written now and then, and when this ends, however it does."""
        left, running = iter(items), deque[Future]()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                while True:
                    while len(running) < 4 * THREADS and (some := list(islice(left, SLICE))):
                        running.append(pool.submit(self._slice, some, place))
                    if not running:
                        break
                    found, new = running.popleft().result()
                    self._add(new)
                    yield from found
                self._write()
                self._settle()
            finally:
                pool.shutdown(cancel_futures=True)
                for ahead in running:  # read, and no longer asked for
                    if not ahead.cancelled() and not ahead.exception():
                        self.new.update(ahead.result()[1])
                self._write()
                if self.progress and self.count:
                    progress(f"lengths read: {self.count}", last=True)

    def _slice(self, items: list[T], place: Callable[[T], str | None]) -> tuple[list[Found[T]], dict]:
        files = [place(item) for item in items]
        found: dict[str | None, Header | None] = {None: None}
        keys: dict[str, int] = {}
        stamps: dict[str, tuple[int, int]] = {}  # members of one shard have one
        for file in files:
            if file is None or file in found or file in keys:
                continue
            if known := self.new.get(file) or self.before.get(file):
                found[file] = known[1]
                continue
            try:
                if (container := members.container(file)) not in stamps:
                    status = os.stat(container)
                    stamps[container] = status.st_size, status.st_mtime_ns
                keys[file] = _key(file, *stamps[container])
            except OSError as error:
                gone = audio.dangling(file)
                found[file] = Fault(audio.DANGLING if gone else f"cannot be read ({error.strerror})", not gone)
        wanted = np.fromiter(keys.values(), np.uint64, len(keys))
        at = np.searchsorted(self.keys, wanted)
        at[at == len(self.keys)] = 0
        hits = self.keys[at] == wanted if len(self.keys) else np.zeros(len(at), bool)
        self.seen[at[hits]] = True
        new = {}
        rows = iter(self.known[at[hits]].tolist())
        for (file, key), hit in zip(keys.items(), hits.tolist()):
            if hit:
                _, frames, rate, lossy = next(rows)
                found[file] = audio.Header(frames, rate, bool(lossy))
            else:
                new[file] = key, _header(file)
                found[file] = new[file][1]
        return [(item, file, found[file]) for item, file in zip(items, files)], new

    def _add(self, new: dict[str, tuple[int, Header]]) -> None:
        self.new.update(new)
        self.count += len(new)
        now = time.monotonic()
        if len(self.new) >= STEP or now - self.written > EVERY:
            self._write()
        if self.progress and new and now - self.said > 1.0:
            self.said = now
            progress(f"lengths read: {self.count}")

    def _write(self) -> None:
        """Keep what was read since the last time. Faults are not kept: another day a file may be whole."""
        if not self.new:
            return
        self.before, self.new, self.written = self.new, {}, time.monotonic()
        rows = [(key, *header) for key, header in self.before.values() if not isinstance(header, Fault)]
        if self.folder and rows:
            self.steps.append(np.array(rows, ROW))
            self._keep(self.steps[-1])

    def _keep(self, rows: np.ndarray) -> None:
        assert self.folder is not None
        file = self.folder / f"{time.time_ns()}-{os.getpid()}.rows"
        try:
            with replacing(file) as part:
                rows.tofile(part)
        except (OSError, StarError) as error:  # a home folder that is full, or not there
            say(f"star: the lengths of files are measured anew the next time ({first_line(error)})")
            self.folder = None
        else:
            self.files.append(file)

    def _settle(self) -> None:
        """Write one file of what was met, in place of all."""
        if self.folder and (len(self.files) > 1 or not self.seen.all()):
            old, self.files = self.files, []
            self._keep(_sorted(np.concatenate([self.known[self.seen], *self.steps])))
            for file in old if self.folder else ():
                file.unlink(missing_ok=True)


def _header(file: str) -> Header:
    try:
        return audio.header(file)
    except StarError as error:
        return Fault(str(error).removeprefix(f"{file}: "))


def _key(file: str, size: int, changed: int) -> int:
    text = os.fsencode(f"{file}\0{size}\0{changed}")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _rows(files: Iterable[Path]) -> np.ndarray:
    """What the files hold, by key; one that is damaged, or that another process has just replaced, holds nothing."""
    found = [np.zeros(0, ROW)]
    for file in files:
        with contextlib.suppress(OSError):
            if file.stat().st_size % ROW.itemsize == 0:
                found.append(np.fromfile(file, ROW))
    rows = np.concatenate(found)
    return _sorted(rows[rows["rate"] > 0])


def _sorted(rows: np.ndarray) -> np.ndarray:
    keys = rows["key"]
    return rows if (keys[1:] > keys[:-1]).all() else rows[np.unique(keys, return_index=True)[1]]
