"""Clips to length-bucketed batches, the same ones after a restart.

Shapes: B utterances, N samples (16 kHz).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .. import audio
from ..errors import StarError
from ..members import Unreachable
from .clip_table import Clip, samples


class Batch(NamedTuple):
    """Zero-padded waveforms and where they came from."""

    waveforms_BN: Tensor
    lengths_B: Tensor
    paths: list[str]
    indices: list[int]
    """Places of the utterances in the corpus."""
    bad: list[tuple[str, str]]
    """Files that could not be used and the reason; a neighbour in length took the place of each."""


BLOCK = 100_000
"""Clips at a time that a plan makes Python's numbers of."""

Item = tuple[Tensor, str, int, list[tuple[str, str]], int]
"""Waveform, path, place in the corpus, files that could not be used, and the epoch that asked for it."""


class AudioDataset(Dataset):
    """The waveforms of a corpus, cut to the length that was measured, by place or by (place, epoch).

    A file that cannot be decoded, is silent from end to end, or decodes to less than was measured or than
    ``min_samples`` is replaced by the next longer one. ``longest``: longer waveforms are cut to so many samples, from
    their start or, with a ``seed``, from a random place: a function of (seed, epoch, place) alone, so that a resumed
    run sees the same and every epoch others. ``silence``: silent files stay.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        min_samples: int = 1,
        longest: int | None = None,
        seed: int | None = None,
        silence: bool = False,
    ):
        self.clips, self.min_samples, self.longest, self.seed = clips, min_samples, longest, seed
        self.silence = silence

    def __len__(self) -> int:  # of torch's default sampler
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        bad: list[tuple[str, str]] = []
        for step in range(min(len(self.clips), 20)):
            place = (index + step) % len(self.clips)
            path, samples, start = self.clips[place]
            try:
                wave = (audio.read(path, start, samples) if start else audio.read(path))[:samples]
            except Unreachable:  # another clip in its place would make a resumed run another run
                raise
            except StarError as error:
                bad.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            if len(wave) < max(self.min_samples, samples - audio.SLACK):
                reason = f"{len(wave)} samples when decoded, its header or manifest says {samples}"
                bad.append((path, reason if len(wave) else "empty"))
                continue
            if not (np.isfinite(wave).all() and (self.silence or np.abs(wave).max() > 0)):
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
    """Pad with zeros to the longest utterance, or ``crop`` all to the length of the shortest: from the start or, with a
    ``seed``, each from a random place.

    The places are a function of ``seed``, the epoch and the batch (its utterances and their order) alone: a resumed run
    sees the same crops, and every epoch others, also where its batches are those of the last one.
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


class Batches(Sequence[list]):
    """Batches, each made by its number when it is asked for."""

    def __init__(self, make: Callable[[int], list], numbers: range):
        self.make, self.numbers = make, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> list: ...

    @overload
    def __getitem__(self, place: slice) -> Batches: ...

    def __getitem__(self, place: int | slice) -> list | Batches:
        found = self.numbers[place]
        return Batches(self.make, found) if isinstance(found, range) else self.make(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batches) and list(self) == list(other)


class BucketSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, at most ``seconds`` of audio and ``items`` utterances each.

    ``batches``: ``mixed`` draws neighbours in length and the order anew each epoch; ``sorted`` has the same batches
    each epoch, from the longest utterances down, in another order; ``repeated`` has them from the shortest up, in the
    same order too. ``counted``: what ``seconds`` limits, the audio with its padding (``padded``), or the utterances'
    own ``lengths``. ``longest``: utterances will be cut to so many samples. Of ``clips`` only the lengths count, which
    may be given in their place.

    The batches of an epoch are a function of (clips, seed, epoch) alone, so that a run resumes where it was: set
    ``epoch`` and ``start`` (batches of this rank already done). Each of ``world`` ranks takes every world-th batch of a
    number that is a multiple of ``together``, or of ``world``; the few others are left out, other ones each epoch
    unless batches are repeated. With ``together`` (a multiple of ``world``) the batches are the same for any ``world``.
    """

    def __init__(
        self,
        clips: Sequence[Clip] | np.ndarray,
        seconds: float,
        items: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        batches: str = "mixed",
        counted: str = "padded",
        longest: int | None = None,
        together: int | None = None,
    ):
        self.together = together or world
        self.lengths = samples(clips) if longest is None else np.minimum(samples(clips), longest)
        self.batches, self.counted = batches if shuffle else "mixed", counted
        if len(clips) and self.lengths.max() > seconds * audio.RATE:
            longest = self.lengths.max() / audio.RATE
            fix = "raise it, or lower max_seconds or crop_seconds"
            raise StarError(f"batch_seconds: {seconds} is less than the longest utterance ({longest:.1f} s); {fix}")
        self.budget, self.items = int(seconds * audio.RATE), items or len(clips)
        self.seed, self.shuffle, self.rank, self.world = seed, shuffle, rank, world
        self.epoch = self.start = 0
        self._planned: dict[int, Batches] = {}

    def plan(self, epoch: int) -> Batches:
        """All batches of an epoch, of every rank, in order."""
        key = epoch if self.shuffle else 0
        if key not in self._planned:
            # two are kept: workers fetch from the next epoch while the last batches of this one are learned from
            self._planned = {k: v for k, v in self._planned.items() if k == key - 1} | {key: self._plan(epoch)}
        return self._planned[key]

    def _plan(self, epoch: int) -> Batches:
        random = np.random.default_rng((self.seed, epoch if self.batches != "repeated" else 0))
        # a random factor of up to 10 % mixes neighbours anew each epoch and costs little padding
        noise = random.uniform(0.95, 1.05, len(self.lengths)) if self.shuffle and self.batches == "mixed" else 1.0
        order = np.argsort(self.lengths * noise, kind="stable").astype(np.int32)
        order = order[::-1] if self.batches == "sorted" else order
        begins, longest, total, size = array("i", [0] * bool(len(order))), 0, 0, 0
        for first in range(0, len(order), BLOCK):
            for place, length in enumerate(self.lengths[order[first : first + BLOCK]].tolist(), first):
                longest, total, size = max(longest, length), total + length, size + 1
                audio_in_batch = total if self.counted == "lengths" else longest * size
                if size > 1 and (audio_in_batch > self.budget or size > self.items):
                    begins.append(place)
                    longest, total, size = length, length, 1
        bounds = np.append(np.array(begins, np.int32), len(order))
        batches = random.permutation(len(begins)) if self.shuffle else np.arange(len(begins))

        def make(number: int) -> list[int]:
            batch = batches[number]
            return order[bounds[batch] : bounds[batch + 1]].tolist()

        return Batches(make, range(len(begins) // self.together * self.together))

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self.epoch)[self.rank :: self.world][self.start :])

    def __len__(self) -> int:
        """Batches of this rank in the epoch, those already done among them."""
        return len(self.plan(self.epoch)) // self.world


class BatchStream(Sampler[list]):
    """The batches of one epoch after another, without end, from where ``sampler`` stands; a :class:`BucketSampler`'s
    places come with their epoch.

    Workers fetch ahead, so the stream does not move ``sampler`` on by itself: call :meth:`advance` for each batch
    learned from.
    """

    def __init__(self, sampler: BucketSampler):
        self.sampler = sampler
        if not len(sampler):
            raise StarError(
                f"data: fewer batches than an update of {sampler.world} processes takes; lower batch_seconds or "
                "batch_items, or training.batches_per_update"
            )

    def __iter__(self) -> Iterator[list[Any]]:
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
