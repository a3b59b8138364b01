"""Audio files to length-bucketed batches, the same ones after a restart.

Shapes: B utterances, N samples (16 kHz).
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from . import audio
from .environment import cache_home
from .errors import StarError
from .files import replacing


class Clip(NamedTuple):
    """One utterance: its file and its length at 16 kHz."""

    path: str
    samples: int


@dataclass
class Corpus:
    """Usable clips, shortest first (ties by path), and what was left out with the reason."""

    clips: list[Clip]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(c.samples for c in self.clips) / audio.RATE

    def write(self, path: Path) -> None:
        """The clips as a tsv manifest (path, samples) that :func:`scan` reads back."""
        with replacing(path) as part:
            pd.DataFrame(self.clips, columns=["path", "samples"]).to_csv(part, sep="\t", index=False)


def scan(
    sources: Sequence[str | Path],
    min_seconds: float = 0.5,
    max_seconds: float = 40.0,
    max_bad_share: float = 0.05,
    threads: int = 8,
    progress: bool = True,
) -> Corpus:
    """Find audio in folders (searched whole) and tsv manifests, and measure it.

    A manifest has a header line with ``path`` and ``samples`` (length at 16 kHz); its paths are relative to its own folder or the
    one above. Lengths found in folders are read from file headers in parallel, once: they are cached by size and time of change.
    Unreadable and empty files, and those outside ``min_seconds`` to ``max_seconds``, go to ``skipped`` with the reason.

    Raises :class:`StarError` when a source is absent, nothing is usable, or more than ``max_bad_share`` of the files are
    unreadable.
    """
    if not sources:
        raise StarError("data: no folder or manifest given")
    found: dict[str, int | str] = {}
    for source in map(Path, sources):
        if source.is_dir():
            found.update(_measure(source, threads, progress))
        elif source.is_file():
            found.update(_read_manifest(source))
        else:
            raise StarError(f"{source}: no such folder or manifest")
    if not found:
        raise StarError(f"{', '.join(map(str, sources))}: no audio found (looked for {', '.join(audio.EXTENSIONS)})")
    clips, skipped, bad = [], [], 0
    for path, length in found.items():
        if isinstance(length, str):
            skipped.append((path, length))
            bad += 1
        elif length < min_seconds * audio.RATE:
            skipped.append((path, f"{length / audio.RATE:.2f} s, shorter than {min_seconds} s" if length else "empty"))
        elif length > max_seconds * audio.RATE:
            skipped.append((path, f"{length / audio.RATE:.2f} s, longer than {max_seconds} s"))
        else:
            clips.append(Clip(path, length))
    if bad > max_bad_share * len(found):
        path, reason = next((p, r) for p, r in skipped if isinstance(found[p], str))
        count = f"{bad} of {len(found)} files"
        raise StarError(f"{count} cannot be read, above the limit of {max_bad_share:.1%} (data.max_bad_share); the first: {path}: {reason}")
    if not clips:
        raise StarError(f"none of {len(found)} files is usable; the first: {skipped[0][0]}: {skipped[0][1]}")
    return Corpus(sorted(clips, key=lambda c: (c.samples, c.path)), sorted(skipped))


def _read_manifest(path: Path) -> dict[str, int | str]:
    try:
        table = pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: not a tab-separated manifest ({str(error).strip()})") from None
    missing = {"path", "samples"} - set(table.columns)
    if missing:
        raise StarError(f"{path}: the header line must name the columns path and samples (missing: {', '.join(sorted(missing))})")
    bases = (path.resolve().parent, path.resolve().parent.parent)
    found: dict[str, int | str] = {}
    for row, (name, samples) in enumerate(zip(table["path"], table["samples"]), 2):
        if not samples.isdigit():
            raise StarError(f"{path}, line {row}: samples must be a whole number, got {samples!r}")
        file = next((base / name for base in bases if (base / name).is_file()), None)
        found[str(file or name)] = int(samples) if file else "no such file"
    return found


def _measure(folder: Path, threads: int, progress: bool) -> dict[str, int | str]:
    """Length, or the reason why there is none, of every audio file below ``folder``."""
    folder = folder.resolve()
    files = sorted(
        os.path.join(base, name)
        for base, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(audio.EXTENSIONS) and not name.startswith(".")
    )
    cache = _cache_file(folder)
    known = _read_cache(cache)
    stamps = {f: (s.st_size, s.st_mtime_ns) for f in files for s in [os.stat(f)]}
    new = [f for f in files if known.get(f, (None, None))[0] != stamps[f]]

    def measure(file: str) -> int | str:
        try:
            return audio.length(file)
        except StarError as error:
            return str(error).removeprefix(f"{file}: ")

    with ThreadPoolExecutor(threads) as pool:
        for i, (file, length) in enumerate(zip(new, pool.map(measure, new)), 1):
            known[file] = (stamps[file], length)
            if progress and (i % 1000 == 0 or i == len(new)):
                print(f"\rlengths read: {i} of {len(new)}", end="\n" if i == len(new) else "", file=sys.stderr, flush=True)
    if new:
        rows = [(f, *known[f][0], known[f][1]) for f in files]
        with replacing(cache) as part:
            pd.DataFrame(rows, columns=["path", "bytes", "mtime", "length"]).to_csv(part, sep="\t", index=False)
    return {f: known[f][1] for f in files}


def _cache_file(folder: Path) -> Path:
    return cache_home() / "lengths" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:20]}.tsv"


def _read_cache(cache: Path) -> dict[str, tuple[tuple[int, int], int | str]]:
    try:
        table = pd.read_csv(cache, sep="\t", dtype={"length": str, "path": str}, keep_default_na=False)
        return {
            r.path: ((int(r.bytes), int(r.mtime)), int(r.length) if r.length.isdigit() else r.length)
            for r in table.itertuples(index=False)
        }
    except (OSError, ValueError, AttributeError):
        return {}


class Batch(NamedTuple):
    """Zero-padded waveforms and where they came from."""

    waveforms_BN: Tensor
    lengths_B: Tensor
    paths: list[str]
    indices: list[int]
    """Places of the utterances in the corpus."""
    bad: list[tuple[str, str]]
    """Files that could not be used and the reason; a neighbour in length took the place of each."""


Item = tuple[Tensor, str, int, list[tuple[str, str]], int]
"""Waveform, path, place in the corpus, files that could not be used, and the epoch that asked for it."""


class AudioDataset(Dataset):
    """The waveforms of a corpus, cut to the length that was measured, by place or by (place, epoch).

    A file that cannot be decoded, is silent from end to end or decodes to less than ``min_samples`` is replaced by the next
    longer one. ``longest``: longer waveforms are cut to so many samples, from their start or, with a ``seed``, from a random place:
    a function of (seed, epoch, place) alone, so that a resumed run sees the same and every epoch others.
    """

    def __init__(self, clips: Sequence[Clip], min_samples: int = 1, longest: int | None = None, seed: int | None = None):
        self.clips, self.min_samples, self.longest, self.seed = clips, min_samples, longest, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        bad: list[tuple[str, str]] = []
        for step in range(min(len(self.clips), 20)):
            place = (index + step) % len(self.clips)
            path, samples = self.clips[place]
            try:
                wave = audio.read(path)[:samples]
            except StarError as error:
                bad.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            if len(wave) < self.min_samples:
                reason = f"{len(wave)} samples when decoded, its header or manifest says {samples}"
                bad.append((path, reason if len(wave) else "empty"))
                continue
            if not (np.isfinite(wave).all() and np.abs(wave).max() > 0):
                bad.append((path, "silent from end to end, or not finite"))
                continue
            return torch.from_numpy(self._cut(wave, place, epoch)), path, place, bad, epoch
        raise StarError(f"{len(bad)} files in a row cannot be used; the first: {bad[0][0]}: {bad[0][1]}")

    def _cut(self, wave: np.ndarray, place: int, epoch: int) -> np.ndarray:
        if self.longest is None or len(wave) <= self.longest:
            return wave
        start = 0
        if self.seed is not None:
            start = int(np.random.default_rng((self.seed, epoch, place)).integers(len(wave) - self.longest + 1))
        return wave[start : start + self.longest]


def collate(items: Sequence[Item], crop: bool = False, seed: int | None = None) -> Batch:
    """Pad with zeros to the longest utterance, or ``crop`` all to the length of the shortest: from the start or, with a ``seed``,
    each from a random place.

    The places are a function of ``seed``, the epoch and the batch (its utterances and their order) alone: a resumed run sees the
    same crops, and every epoch others, also where its batches are those of the last one.
    """
    waves = [item[0] for item in items]
    if crop:
        shortest = min(len(w) for w in waves)
        starts = [0] * len(waves)
        if seed is not None:
            random = np.random.default_rng((seed, items[0][4], *(item[2] for item in items)))
            starts = [int(random.integers(len(w) - shortest + 1)) for w in waves]
        waves = [w[start : start + shortest] for w, start in zip(waves, starts)]
    return Batch(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([len(w) for w in waves]),
        [item[1] for item in items],
        [item[2] for item in items],
        [fault for item in items for fault in item[3]],
    )


class BucketSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, at most ``seconds`` of audio and ``items`` utterances each.

    ``batches``: ``mixed`` draws neighbours in length and the order anew each epoch; ``sorted`` has the same batches each epoch, from
    the longest utterances down, in another order; ``repeated`` has them from the shortest up, in the same order too.
    ``counted``: what ``seconds`` limits, the audio with its padding or the ``true`` lengths. ``longest``: utterances will be cut to so
    many samples.

    The batches of an epoch are a function of (clips, seed, epoch) alone, so that a run resumes where it was: set ``epoch`` and
    ``start`` (batches of this rank already done). Each of ``world`` ranks takes every world-th batch; at most world - 1 are
    left out, other ones each epoch unless batches are repeated.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        seconds: float,
        items: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        batches: str = "mixed",
        counted: str = "padded",
        longest: int | None = None,
    ):
        self.lengths = np.array([c.samples if longest is None else min(c.samples, longest) for c in clips])
        self.batches, self.counted = batches if shuffle else "mixed", counted
        if len(clips) and self.lengths.max() > seconds * audio.RATE:
            longest = self.lengths.max() / audio.RATE
            fix = "raise it, or lower max_seconds or crop_seconds"
            raise StarError(f"batch_seconds: {seconds} is less than the longest utterance ({longest:.1f} s); {fix}")
        self.budget, self.items = int(seconds * audio.RATE), items or len(clips)
        self.seed, self.shuffle, self.rank, self.world = seed, shuffle, rank, world
        self.epoch = self.start = 0
        self._planned: dict[int, list[list[int]]] = {}

    def plan(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, of every rank, in order."""
        key = epoch if self.shuffle else 0
        if key not in self._planned:
            # two are kept: workers fetch from the next epoch while the last batches of this one are learned from
            self._planned = {k: v for k, v in self._planned.items() if k == key - 1} | {key: self._plan(epoch)}
        return self._planned[key]

    def _plan(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch if self.batches != "repeated" else 0))
        # a random factor of up to 10 % mixes neighbours anew each epoch and costs little padding
        noise = random.uniform(0.95, 1.05, len(self.lengths)) if self.shuffle and self.batches == "mixed" else 1.0
        order = np.argsort(self.lengths * noise, kind="stable")
        batches, current, longest, total = [], [], 0, 0
        for index in order[::-1] if self.batches == "sorted" else order:
            length = self.lengths[index]
            longest, total = max(longest, length), total + length
            audio_in_batch = total if self.counted == "true" else longest * (len(current) + 1)
            if current and (audio_in_batch > self.budget or len(current) == self.items):
                batches.append(current)
                current, longest, total = [], length, length
            current.append(int(index))
        if current:
            batches.append(current)
        if self.shuffle:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches[: len(batches) // self.world * self.world] if self.world > 1 else batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self.epoch)[self.rank :: self.world][self.start :])

    def __len__(self) -> int:
        """Batches of this rank in the epoch, those already done among them."""
        return len(self.plan(self.epoch)) // self.world


class BatchStream(Sampler[list]):
    """The batches of one epoch after another, without end, from where ``sampler`` stands; a :class:`BucketSampler`'s places come with
    their epoch.

    Workers fetch ahead, so the stream does not move ``sampler`` on by itself: call :meth:`advance` for each batch learned from.
    """

    def __init__(self, sampler: BucketSampler):
        self.sampler = sampler
        if not len(sampler):
            raise StarError(f"data: fewer batches than processes ({sampler.world}); lower batch_seconds or batch_items")

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self.sampler
        epoch, start = sampler.epoch, sampler.start
        while True:
            for batch in sampler.plan(epoch)[sampler.rank :: sampler.world][start:]:
                yield [(place, epoch) for place in batch] if isinstance(sampler, BucketSampler) else batch
            epoch, start = epoch + 1, 0

    def advance(self) -> None:
        """Move on by one batch."""
        self.sampler.start += 1
        if self.sampler.start >= len(self.sampler):
            self.sampler.epoch, self.sampler.start = self.sampler.epoch + 1, 0
