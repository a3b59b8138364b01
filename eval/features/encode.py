"""Upstream to features, once: every utterance is encoded a single time and its features are kept on disk.

Heads that are linear up to mean pooling need no more than each layer's mean over time (:class:`Means`): pooling
commutes with the weighted sum over layers and with linear maps, so the result is exact. Others need the frames
(:class:`Frames`), kept in fp16.

Shapes: B utterances, L layers, N samples, T frames, D channels, W windows (an utterance, or a crop of one).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from star_upstream import audio, members
from star_upstream.effects import apply_effects_tensor
from star_upstream.errors import StarError
from star_upstream.say import say

from .store import Store
from .upstreams import Upstream, finite

VERSION = 2
"""Part of every cache key: raise it when features change."""

IN_MEMORY = 1 << 30
"""Bytes of time means that are kept in memory."""
SHARD = 128
"""Windows whose time means share a file of the cache."""
ROOM = 0.9
"""Share of the cache that a task's features may take."""

_CPU_MEMORY = "DefaultCPUAllocator"
"""What torch's RuntimeError says where the memory that runs out is the machine's."""

Effects = tuple[tuple[str, ...], ...]
Mine = Callable[[str], bool]
"""Whether a key of the cache is of this process's share."""


@dataclass(frozen=True)
class Window:
    """A stretch of an audio file, counted in samples at 16 kHz."""

    path: str
    start: int
    samples: int
    within: int = 0
    """Samples from the start of the file in which ``--exact`` places a training visit's stretch anew; 0: it stays where
    it is."""

    def identity(self) -> list:
        """What decides its samples; a file that was written again counts as another."""
        try:
            status = os.stat(members.container(self.path))
        except OSError:
            raise StarError(f"{self.path}: no such audio file") from None
        return [self.path, status.st_size, status.st_mtime_ns, self.start, self.samples]


def windows(table: pd.DataFrame, crop_seconds: float | None = None, crops: int = 1) -> list[list[Window]]:
    """The windows of each row of ``table``: the utterance; a training one longer than ``crop_seconds`` gives ``crops``
    of that length, evenly spaced from its start to its end (one crop: its middle)."""
    out = []
    longest = None if crop_seconds is None else round(crop_seconds * audio.RATE)
    places = table["within"] if "within" in table else [0] * len(table)
    for path, start, samples, split, within in zip(
        table["path"], table["start"], table["samples"], table["split"], places
    ):
        if longest is None or split != "train" or samples <= longest:
            out.append([Window(str(path), int(start), int(samples), int(within))])
            continue
        spare = int(samples) - longest
        offsets = [spare // 2] if crops == 1 else [round(i * spare / (crops - 1)) for i in range(crops)]
        out.append([Window(str(path), int(start) + o, longest) for o in offsets])
    return out


def waveform(window: Window, effects: Effects = ()) -> np.ndarray:
    """The window's samples, through s3prl's sox effects where the task has them. Raises :class:`StarError` for bad
    audio."""
    wave = audio.piece(window.path, window.start, window.samples)
    if effects:
        wave = apply_effects_tensor(torch.from_numpy(wave)[None], audio.RATE, effects)[0][0].numpy()
    if not len(wave):
        raise StarError(f"{window.path}: no sound from sample {window.start} on")
    if not np.isfinite(wave).all():
        raise StarError(f"{window.path}: holds NaN or infinite samples")
    return wave


def settle(per_row: list[list[Window]], upstream: Upstream, effects: Effects = ()) -> None:
    """Before features are made in reduced precision, :meth:`Upstream.settle` on a few utterances of up to 15 s (or the
    shortest)."""
    if upstream.autocast is None:
        return
    flat = [w for row in per_row for w in row]
    chosen = [w for w in flat if w.samples <= 15 * audio.RATE] or [min(flat, key=lambda w: w.samples)]
    upstream.settle([waveform(w, effects) for w in chosen[: 4 if upstream.padded else 1]])


class Means:
    """Each layer's mean over time for every window, in fp32: what a head that is linear up to mean pooling needs. In
    memory up to ``IN_MEMORY`` bytes; more are written to an unnamed file beside the cache, which ends with the process,
    and read row by row.

    mine: with it, only what the cache lacks of those keys is encoded, to be kept there, and nothing can be asked for.
    """

    def __init__(
        self,
        per_row: list[list[Window]],
        upstream: Upstream,
        store: Store,
        effects: Effects = (),
        mine: Mine | None = None,
    ):
        flat = [w for row in per_row for w in row]
        self.first = np.cumsum([0] + [len(row) for row in per_row])
        self.upstream, self.store, self.effects, self.seconds = upstream, store, effects, 0.0
        self.shape = (upstream.layers, upstream.width)
        self._bytes = 4 * upstream.layers * upstream.width
        what = f"time means of {len(flat)} windows"
        _warn_if_short(what, len(flat) * self._bytes, store, "the next run encodes the others again")
        spilled = mine is None and len(flat) * self._bytes > IN_MEMORY
        self._file: Any = tempfile.TemporaryFile(dir=store.folder, buffering=0) if spilled else None  # noqa: SIM115
        self._held_WLD = torch.empty(0 if spilled or mine else len(flat), *self.shape)
        for begin in range(0, len(flat), SHARD):
            means_WLD = self._means(flat[begin : begin + SHARD], mine)
            if means_WLD is None or mine:
                continue
            if spilled:
                self._spill(means_WLD)
            else:
                self._held_WLD[begin : begin + SHARD] = means_WLD

    def _means(self, shard: list[Window], mine: Mine | None) -> Tensor | None:
        """W x L x D, from the cache where it has them; None with ``mine`` for what is there or is another's."""
        key = _key("means", self.upstream, self.effects, shard)
        if mine and (key in self.store or not mine(key)):
            return None
        if (found := self.store.get(key)) is not None:
            return found["means"]
        begun = time.perf_counter()
        means_WLD = torch.zeros(len(shard), *self.shape)
        for i, states_LTD, _ in _encode(shard, self.upstream, self.effects):
            means_WLD[i] = states_LTD.mean(1)
        self.store.put(key, {"means": means_WLD})
        self.seconds += time.perf_counter() - begun
        return means_WLD

    def _spill(self, means_WLD: Tensor) -> None:
        content = means_WLD.float().contiguous().numpy().data.cast("B")
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            gigabytes = self.first[-1] * self._bytes / 1e9
            raise StarError(
                f"{self.store.folder}: cannot hold {gigabytes:.1f} GB of time means besides the cache "
                f"({error.strerror}); --cache takes a folder on another disk"
            ) from None

    def of(self, picked: Sequence[int]) -> Tensor:
        """W x L x D: the means of the windows at these positions."""
        if self._file is None:
            return self._held_WLD[list(picked)]
        rows = b"".join(os.pread(self._file.fileno(), self._bytes, w * self._bytes) for w in picked)
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).view(-1, *self.shape)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x 1 x D features and B lengths (all 1). Of several crops one is drawn by ``generator``; without it, the
        first."""
        counts = [int(self.first[r + 1] - self.first[r]) for r in rows]
        draws = [
            int(torch.randint(c, (1,), generator=generator)) if generator is not None and c > 1 else 0 for c in counts
        ]
        picked = [int(self.first[r]) + d for r, d in zip(rows, draws)]
        return self.of(picked)[:, :, None], torch.ones(len(rows), dtype=torch.long)


class Frames:
    """The frames of every utterance, on disk in fp16 (fp32 where a value would overflow), read when asked for.

    Where the cache is smaller than all of them, the first utterances are kept and the others are encoded with every
    batch that they are in: an endless exchange of the one for the other would keep nothing that is asked for again.

    crop: frames of which a training batch has at most so many an utterance, from a random first one. mine: only those
    of these keys are encoded now.
    """

    def __init__(
        self,
        per_row: list[list[Window]],
        upstream: Upstream,
        store: Store,
        effects: Effects = (),
        crop: int | None = None,
        mine: Mine | None = None,
    ):
        self.crop = crop
        self.windows = [row[0] for row in per_row]
        self.upstream, self.store, self.effects, self.seconds = upstream, store, effects, 0.0
        self.keys = [_key("frames", upstream, effects, [w]) for w in self.windows]
        sizes = [2 * upstream.layers * upstream.width * upstream.counted(w.samples) for w in self.windows]
        what = f"features of {len(sizes)} utterances"
        room = _warn_if_short(
            what, sum(sizes), store, "the others are encoded again in every epoch: same numbers, slower"
        )
        self.kept = [total <= room for total in itertools.accumulate(sizes)]
        begun = time.perf_counter()
        missing = []
        for i, key in enumerate(self.keys):
            if key in store:
                store.touch(key)
            elif self.kept[i] and (mine is None or mine(key)):
                missing.append(i)
        for i, states_LTD, samples in _encode([self.windows[i] for i in missing], upstream, effects):
            self._put(missing[i], states_LTD, samples)
        self.seconds = time.perf_counter() - begun

    def _put(self, row: int, states_LTD: Tensor, samples: int) -> Tensor:
        half = states_LTD.half()
        states = half if finite(half) else states_LTD
        if self.kept[row]:
            self.store.put(self.keys[row], {"states": states, "samples": torch.tensor([samples])})
        return states

    def states(self, rows: Sequence[int]) -> list[Tensor]:
        """L x T x D of each row; those that the cache does not hold, has lost or has damaged are encoded together."""
        found: dict[int, Tensor] = {}
        for row in dict.fromkeys(rows):
            if (entry := self.store.get(self.keys[row])) is not None:
                found[row] = entry["states"]
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for i, states_LTD, samples in _encode([self.windows[row] for row in missing], self.upstream, self.effects):
            found[missing[i]] = self._put(missing[i], states_LTD, samples)
        return [found[row] for row in rows]

    def length(self, row: int) -> int:
        """T of the whole utterance."""
        shape = self.store.shape(self.keys[row], "states")
        return shape[1] if shape else self.upstream.frames(self.samples(row))

    def samples(self, row: int) -> int:
        """N of the whole utterance, after the effects."""
        found = self.store.one(self.keys[row], "samples") if self.effects else None
        return int(found) if found is not None else samples_of(self.windows[row], self.effects)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D features in fp32, zero-padded, and B lengths; cropped where ``generator`` draws the first
        frames."""
        states = self.states(rows)
        if self.crop is not None and generator is not None:
            for i, s in enumerate(states):
                spare = max(0, s.shape[1] - self.crop)
                first = int(torch.randint(spare + 1, (1,), generator=generator))
                states[i] = s[:, first : first + self.crop]
        lengths_B = torch.tensor([s.shape[1] for s in states])
        layers, _, width = states[0].shape
        x_BLTD = torch.zeros(len(rows), layers, int(lengths_B.max()), width)
        for i, s in enumerate(states):
            x_BLTD[i, :, : s.shape[1]] = s
        return x_BLTD, lengths_B


def samples_of(window: Window, effects: Effects) -> int:
    """Samples of a window after the effects; those that cut silence must be heard for that."""
    return len(waveform(window, effects)) if effects else window.samples


def _warn_if_short(what: str, needed: int, store: Store, follows: str) -> float:
    """Bytes of features that fit into the cache. Says on stderr what follows where those are fewer than ``needed``."""
    room = ROOM * store.budget
    if needed > room:
        say(
            f"cache: {what} need about {needed / 1e9:.2g} GB, of which --cache-gb {store.budget / 1e9:g} holds "
            f"{room / needed:.0%};"
            f" {follows}. --cache-gb {math.ceil(needed / ROOM / 1e9 * 100) / 100:g} holds all"
        )
    return room


def _encode(items: list[Window], upstream: Upstream, effects: Effects) -> Iterator[tuple[int, Tensor, int]]:
    """The items' indices, hidden states (L x T x D) and samples after the effects, longest first."""
    for batch in _batches(items, upstream, effects):
        for (i, wave), states in zip(batch, _states(batch, items, upstream)):
            if not finite(states):
                raise StarError(f"{items[i].path}: upstream {upstream.name} gives NaN or infinite features for it")
            yield i, states, len(wave)


def _batches(items: list[Window], upstream: Upstream, effects: Effects) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Indices and waveforms of up to ``upstream.batch_seconds``, which may become fewer on the way."""
    batch: list[tuple[int, np.ndarray]] = []
    for i in sorted(range(len(items)), key=lambda i: -items[i].samples):
        wave = waveform(items[i], effects)
        if batch:
            longest = max(len(batch[0][1]), len(wave))
            full = (len(batch) + 1) * longest > upstream.batch_seconds * audio.RATE
            if full or (not upstream.padded and len(wave) != len(batch[0][1])):
                yield batch
                batch = []
        batch.append((i, wave))
    if batch:
        yield batch


def _states(batch: list[tuple[int, np.ndarray]], items: list[Window], upstream: Upstream) -> list[Tensor]:
    """Hidden states of ``batch`` (index and samples), in halves where memory runs out: all batches after it are smaller
    too.

    Raises :class:`StarError` for an utterance that does not fit alone.
    """
    try:
        return upstream.encode([wave for _, wave in batch])
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if upstream.device.type == "cuda":  # here, where the exception no longer holds what it was computing
        torch.cuda.empty_cache()
    seconds = max(len(wave) for _, wave in batch) / audio.RATE
    if len(batch) == 1:
        raise StarError(
            f"{items[batch[0][0]].path}: out of memory on {upstream.device}: its {seconds:.1f} s do not fit even "
            "alone; "
            "leave it out of the corpus, or use a device with more memory (--device cpu)"
        )
    half = len(batch) // 2
    upstream.batch_seconds = min(upstream.batch_seconds, seconds * len(batch)) / 2
    say(
        f"{upstream.name}: out of memory on {upstream.device} with {len(batch)} utterances of up to {seconds:.1f} s; "
        f"encoding them in halves, and at most {upstream.batch_seconds:.1f} s at once from here on"
    )
    return _states(batch[:half], items, upstream) + _states(batch[half:], items, upstream)


def out_of_memory(error: Exception) -> bool:
    """Whether torch or Python says with this error that memory ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _CPU_MEMORY in str(error)


def _key(kind: str, upstream: Upstream, effects: Effects, items: list[Window]) -> str:
    content = [VERSION, kind, upstream.digest, upstream.padded, effects, [w.identity() for w in items]]
    if upstream.autocast is not None:
        content.append(upstream.precision)
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=20).hexdigest()
