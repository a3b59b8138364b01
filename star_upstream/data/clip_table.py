"""Clips by the ten million: columns in place of objects, about 60 bytes a clip, which forked workers share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np

from .. import audio


class Clip(NamedTuple):
    """One utterance: its file (or member of a shard), its length and its first sample in the file, at 16 kHz."""

    path: str
    samples: int
    start: int = 0


class Clips(Sequence[Clip]):
    """A sequence of clips that makes each as it is asked for. Those taken from others share their names with them."""

    def __init__(self, folders: Sequence[str], names: bytes, columns: Sequence[np.ndarray]):
        """``columns``: of each clip its folder, where its name begins among ``names`` (UTF-8) and its bytes, samples
        and start. A path is a folder and a name, with nothing between."""
        self.folders, self.names = folders, names
        self.columns = self.folder, self.begin, self.size, self.samples, self.start = tuple(columns)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, place: int) -> Clip: ...

    @overload
    def __getitem__(self, place: slice | np.ndarray) -> Clips: ...

    def __getitem__(self, place: Any) -> Clip | Clips:
        """A clip; or, of a slice, of places or of a truth value for each clip, those clips."""
        if isinstance(place, (slice, np.ndarray)):
            return Clips(self.folders, self.names, [column[place] for column in self.columns])
        return Clip(self.path(place), int(self.samples[place]), int(self.start[place]))

    def path(self, place: int) -> str:
        begin = int(self.begin[place])
        name = self.names[begin : begin + int(self.size[place])]
        return self.folders[self.folder[place]] + name.decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[Clip]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other))

    def __repr__(self) -> str:
        return f"{len(self)} clips, {self.seconds:.1f} s"

    @property
    def seconds(self) -> float:
        return int(self.samples.sum()) / audio.RATE

    def ordered(self) -> Clips:
        """Shortest first, ties by path and start, each once."""
        order = np.argsort(self.samples, kind="stable")
        firsts = np.flatnonzero(np.diff(self.samples[order], prepend=-1))
        ends = np.append(firsts[1:], len(order))
        several = ends - firsts > 1
        kept = np.ones(len(order), bool)
        for first, end in zip(firsts[several].tolist(), ends[several].tolist()):
            ties = sorted((self.path(i), int(self.start[i]), i) for i in order[first:end].tolist())
            order[first:end] = [tie[2] for tie in ties]
            kept[first + 1 : end] = [one[:2] != two[:2] for one, two in pairwise(ties)]
        return self[order[kept]]


class Table:
    """Grows by a clip at a time, and becomes :class:`Clips`."""

    def __init__(self, clips: Iterable[Clip] = ()):
        self.places: dict[str, int] = {}
        self.names = bytearray()
        self.columns = [array(kind) for kind in "iqiqq"]
        self.last = ""
        for clip in clips:
            self.add(*clip)

    def add(self, path: str, samples: int, start: int = 0) -> None:
        folder, begin, size, *_ = self.columns
        if path == self.last:  # parts of one file, one after another
            folder.append(folder[-1])
            begin.append(begin[-1])
            size.append(size[-1])
        else:
            cut = path.rfind("/") + 1
            name = path[cut:].encode("utf-8", "surrogatepass")
            folder.append(self.places.setdefault(path[:cut], len(self.places)))
            begin.append(len(self.names))
            size.append(len(name))
            self.names += name
            self.last = path
        self.columns[3].append(samples)
        self.columns[4].append(start)

    def clips(self) -> Clips:
        """What was added, in that order; nothing can be added afterwards."""
        columns = [np.frombuffer(column, column.typecode) for column in self.columns]
        return Clips(list(self.places), bytes(self.names), columns)


def samples(clips: Sequence[Clip] | np.ndarray) -> np.ndarray:
    """The clips' lengths; lengths as they are."""
    if isinstance(clips, np.ndarray):
        return clips
    if isinstance(clips, Clips):
        return clips.samples
    return np.fromiter((clip.samples for clip in clips), np.int64, len(clips))


def join(parts: Iterable[Sequence[Clip]]) -> Sequence[Clip]:
    """The clips of all parts, one part after another."""
    return Table(clip for part in parts for clip in part).clips()
