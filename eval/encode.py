"""Upstream to features, once: every utterance is encoded a single time and its features are kept on disk.

Heads that are linear up to mean pooling need no more than each layer's mean over time (:class:`Means`): pooling commutes with the
weighted sum over layers and with linear maps, so the result is exact. Others need the frames (:class:`Frames`), kept in fp16.

Shapes: B utterances, L layers, N samples, T frames, D channels, W windows (an utterance, or a crop of one).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from star_upstream import audio, compat
from star_upstream.errors import StarError
from star_upstream.files import replacing

from .upstreams import Upstream

VERSION = 1
"""Part of every cache key: raise it when features change."""

_CPU_MEMORY = "DefaultCPUAllocator"
"""What torch's RuntimeError says where the memory that runs out is the machine's."""

Effects = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Window:
    """A stretch of an audio file, counted in samples at 16 kHz."""

    path: str
    start: int
    samples: int

    def identity(self) -> list:
        """What decides its samples; a file that was written again counts as another."""
        try:
            status = os.stat(self.path)
        except OSError:
            raise StarError(f"{self.path}: no such audio file") from None
        return [self.path, status.st_size, status.st_mtime_ns, self.start, self.samples]


def windows(table: pd.DataFrame, crop_seconds: float | None = None, crops: int = 1) -> list[list[Window]]:
    """The windows of each row of ``table``: the utterance; a training one longer than ``crop_seconds`` gives ``crops`` of that
    length, evenly spaced from its start to its end (one crop: its middle)."""
    out = []
    longest = None if crop_seconds is None else round(crop_seconds * audio.RATE)
    for path, start, samples, split in zip(table["path"], table["start"], table["samples"], table["split"]):
        spare = 0 if longest is None or split != "train" else max(0, int(samples) - longest)
        if not spare:
            out.append([Window(str(path), int(start), int(samples))])
            continue
        offsets = [spare // 2] if crops == 1 else [round(i * spare / (crops - 1)) for i in range(crops)]
        out.append([Window(str(path), int(start) + o, longest) for o in offsets])
    return out


def waveform(window: Window, effects: Effects = ()) -> np.ndarray:
    """The window's samples, through s3prl's sox effects where the task has them. Raises :class:`StarError` for bad audio."""
    wave = audio.read(window.path, window.start, window.samples)
    if effects:
        wave = compat.apply_effects_tensor(torch.from_numpy(wave)[None], audio.RATE, effects)[0][0].numpy()
    if not len(wave):
        raise StarError(f"{window.path}: no sound from sample {window.start} on")
    if not np.isfinite(wave).all():
        raise StarError(f"{window.path}: holds NaN or infinite samples")
    return wave


class Store:
    """A folder of safetensors files, each whole or absent, each with a checksum; at most ``budget_gb``, oldest use leaves first."""

    def __init__(self, folder: str | Path, budget_gb: float = 20.0):
        self.folder, self.budget = Path(folder).expanduser(), int(budget_gb * 1e9)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written, self._checked = 0, set()

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
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                stated = (file.metadata() or {}).get("crc32")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            stated, tensors = None, {}
        if key not in self._checked:
            if stated is None or stated != _crc32(tensors):
                print(f"cache: {path} is damaged; encoding it again", file=sys.stderr)
                return None
            self._checked.add(key)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        return tensors

    def shape(self, key: str, name: str) -> list[int] | None:
        """A tensor's shape from the file's header; None where it cannot be read."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return list(file.get_slice(name).get_shape())
        except (SafetensorError, OSError):
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        path = self.path(key)
        with replacing(path) as part:
            save_file(tensors, part, metadata={"crc32": _crc32(tensors)})
        self._checked.add(key)
        if self._written == 0 or self._written > self.budget // 20:
            self._trim(keep=path)
            self._written = 0
        self._written += path.stat().st_size

    def _trim(self, keep: Path) -> None:
        entries = []
        for left_behind in self.folder.glob("*/.*.part"):  # by a killed run; a living one writes each within seconds
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left_behind.stat().st_mtime > 3600:
                    left_behind.unlink()
        for path in self.folder.glob("*/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.budget:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                self._checked.discard(path.stem)
                total -= size


class Means:
    """Each layer's mean over time for every window, in memory: what a head that is linear up to mean pooling needs."""

    def __init__(self, per_row: list[list[Window]], upstream: Upstream, store: Store, effects: Effects = ()):
        flat = [w for row in per_row for w in row]
        self.first = np.cumsum([0] + [len(row) for row in per_row])
        self.seconds = 0.0
        parts = [_mean_shard(flat[i : i + 128], upstream, store, effects, self) for i in range(0, len(flat), 128)]
        self.means_WLD = torch.cat(parts)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x 1 x D features and B lengths (all 1). Of several crops one is drawn by ``generator``; without it, the first."""
        counts = [int(self.first[r + 1] - self.first[r]) for r in rows]
        draws = [int(torch.randint(c, (1,), generator=generator)) if generator is not None and c > 1 else 0 for c in counts]
        picked = torch.tensor([int(self.first[r]) + d for r, d in zip(rows, draws)])
        return self.means_WLD[picked][:, :, None], torch.ones(len(rows), dtype=torch.long)


def _mean_shard(shard: list[Window], upstream: Upstream, store: Store, effects: Effects, clock) -> Tensor:
    key = _key("means", upstream, effects, shard)
    found = store.get(key)
    if found is None:
        begun = time.perf_counter()
        out = torch.zeros(len(shard), upstream.layers, upstream.width)
        for i, states_LTD in _encode(shard, upstream, effects):
            out[i] = states_LTD.mean(1)
        found = {"means": out}
        store.put(key, found)
        clock.seconds += time.perf_counter() - begun
    return found["means"]


class Frames:
    """The frames of every utterance, on disk in fp16 (fp32 where a value would overflow), read when asked for.

    crop: frames of which a training batch has at most so many an utterance, from a random first one.
    """

    def __init__(
        self, per_row: list[list[Window]], upstream: Upstream, store: Store, effects: Effects = (), crop: int | None = None
    ):
        self.crop = crop
        self.windows = [row[0] for row in per_row]
        self.upstream, self.store, self.effects, self.seconds = upstream, store, effects, 0.0
        self.keys = [_key("frames", upstream, effects, [w]) for w in self.windows]
        begun = time.perf_counter()
        missing = [i for i, key in enumerate(self.keys) if key not in store]
        for i, states_LTD in _encode([self.windows[i] for i in missing], upstream, effects):
            self._put(missing[i], states_LTD)
        self.seconds = time.perf_counter() - begun

    def _put(self, row: int, states_LTD: Tensor) -> Tensor:
        half = states_LTD.half()
        kept = half if bool(torch.isfinite(half).all()) else states_LTD
        self.store.put(self.keys[row], {"states": kept})
        return kept

    def states(self, row: int) -> Tensor:
        """L x T x D; encoded again when the cache has lost or damaged it."""
        found = self.store.get(self.keys[row])
        if found is not None:
            return found["states"]
        ((_, states_LTD),) = _encode([self.windows[row]], self.upstream, self.effects)
        return self._put(row, states_LTD)

    def length(self, row: int) -> int:
        """T of the whole utterance."""
        shape = self.store.shape(self.keys[row], "states")
        return shape[1] if shape else self.states(row).shape[1]

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D features in fp32, zero-padded, and B lengths; cropped where ``generator`` draws the first frames."""
        states = [self.states(r) for r in rows]
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


def _encode(items: list[Window], upstream: Upstream, effects: Effects) -> Iterator[tuple[int, Tensor]]:
    """The items' indices and hidden states (L x T x D), longest first, in batches of up to ``upstream.batch_seconds``."""
    batch: list[tuple[int, np.ndarray]] = []

    def flush():
        for (i, _), states in zip(batch, _states(batch, items, upstream)):
            if not bool(torch.isfinite(states).all()):
                raise StarError(f"{items[i].path}: upstream {upstream.name} gives NaN or infinite features for it")
            yield i, states
        batch.clear()

    for i in sorted(range(len(items)), key=lambda i: -items[i].samples):
        wave = waveform(items[i], effects)
        if batch:
            longest = max(len(batch[0][1]), len(wave))
            full = (len(batch) + 1) * longest > upstream.batch_seconds * audio.RATE
            if full or (not upstream.padded and len(wave) != len(batch[0][1])):
                yield from flush()
        batch.append((i, wave))
    if batch:
        yield from flush()


def _states(batch: list[tuple[int, np.ndarray]], items: list[Window], upstream: Upstream) -> list[Tensor]:
    """Hidden states of ``batch`` (index and samples), in halves where memory runs out: all batches after it are smaller too.

    Raises :class:`StarError` for an utterance that does not fit alone.
    """
    try:
        return upstream.encode([wave for _, wave in batch])
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and _CPU_MEMORY not in str(error):
            raise
    if upstream.device.type == "cuda":  # here, where the exception no longer holds what it was computing
        torch.cuda.empty_cache()
    seconds = max(len(wave) for _, wave in batch) / audio.RATE
    if len(batch) == 1:
        raise StarError(
            f"{items[batch[0][0]].path}: out of memory on {upstream.device}: its {seconds:.1f} s do not fit even alone; "
            "leave it out of the corpus, or use a device with more memory (--device cpu)"
        )
    half = len(batch) // 2
    upstream.batch_seconds = min(upstream.batch_seconds, seconds * len(batch)) / 2
    print(
        f"{upstream.name}: out of memory on {upstream.device} with {len(batch)} utterances of up to {seconds:.1f} s; "
        f"encoding them in halves, and at most {upstream.batch_seconds:.1f} s at once from here on",
        file=sys.stderr,
    )
    return _states(batch[:half], items, upstream) + _states(batch[half:], items, upstream)


def _key(kind: str, upstream: Upstream, effects: Effects, items: list[Window]) -> str:
    content = [VERSION, kind, upstream.digest, upstream.padded, effects, [w.identity() for w in items]]
    if upstream.autocast is not None:
        content.append(upstream.precision)
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=20).hexdigest()


def _crc32(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"
