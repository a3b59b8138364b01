"""Batches of equally long crops with their units, augmented; a batch is a function of its place in the run alone.

Shapes: B crops, N samples, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import audio, augment
from .augment import AugmentConfig
from .data.batches import Batches, BucketSampler
from .data.clip_table import Clip, samples
from .encoder import EncoderConfig

KEPT = 2 * 10**9
"""Bytes of decoded audio that are kept, as 16 bit samples (17 hours); what comes after is decoded each time it is
needed."""


class Place(NamedTuple):
    """One crop to make: for which batch of which epoch and where in it, from which clip, and how many samples."""

    epoch: int
    batch: int
    slot: int
    clip: int
    samples: int


class Crop(NamedTuple):
    """A crop, the units of its frames, the file that it is from, and its place."""

    wave_N: Tensor
    units_T: Tensor
    path: str
    place: Place


class CropSampler:
    """Batches of about ``batch_seconds``: pieces of similar length, each batch as long as its shortest.

    A clip longer than ``crop_seconds`` counts as so many pieces as it has, each a crop of its own, so that every second
    of audio is as likely. Has the form that :class:`.data.batches.BatchStream` reads; ``options`` are those of
    :class:`.data.batches.BucketSampler`.
    """

    def __init__(self, clips: Sequence[Clip], crop_seconds: float, batch_seconds: float, seed: int, **options):
        longest = int(crop_seconds * audio.RATE)
        counts = np.maximum(1, np.rint(samples(clips) / longest)).astype(np.int64)
        self.pieces = np.repeat(np.arange(len(clips), dtype=np.int32), counts)
        self.lengths = np.minimum(samples(clips), longest)[self.pieces]
        self.plans = BucketSampler(self.lengths, max(batch_seconds, crop_seconds), seed=seed, **options)
        self.rank, self.world = self.plans.rank, self.plans.world
        self.epoch = self.start = 0

    def plan(self, epoch: int) -> Batches:
        """All batches of an epoch, of every rank, in order."""
        plan = self.plans.plan(epoch)

        def make(number: int) -> list[Place]:
            pieces = plan[number]
            shortest = int(self.lengths[pieces].min())
            return [
                Place(epoch, number, slot, clip, shortest) for slot, clip in enumerate(self.pieces[pieces].tolist())
            ]

        return Batches(make, range(len(plan)))

    def __len__(self) -> int:
        """Batches of this rank in the epoch."""
        return len(self.plans.plan(self.epoch)) // self.world


class Crops(Dataset):
    """Crops and the units of their frames. ``units[i]`` are those of clip i as it is."""

    def __init__(
        self,
        clips: Sequence[Clip],
        units: Sequence[np.ndarray],
        encoder: EncoderConfig,
        config: AugmentConfig,
        seed: int,
    ):
        self.clips, self.units, self.encoder, self.config, self.seed = clips, units, encoder, config, seed
        self.decoded: dict[int, np.ndarray] = {}
        self.bytes = 0

    def __getitem__(self, place: Place) -> Crop:
        random = np.random.default_rng((self.seed, place.epoch, place.batch, place.slot))
        wave_N = self._wave(place.clip)
        speed = float(random.choice(self.config.speeds))
        # a clip too short to be played faster is played as it is
        speed = speed if int(np.ceil(place.samples * speed)) + 1 <= len(wave_N) else min(speed, 1.0)
        needed = min(len(wave_N), int(np.ceil(place.samples * speed)) + 1)
        start = int(random.integers(len(wave_N) - needed + 1))
        crop_N = augment.change_speed(wave_N[start : start + needed], speed)[: place.samples]
        crop_N = np.pad(crop_N, (0, place.samples - len(crop_N)))
        for chance, add in ((self.config.overlap, augment.add_overlap), (self.config.noise, augment.add_noise)):
            if random.random() < chance:
                crop_N = add(crop_N, self._wave(int(random.integers(len(self.clips)))), self.config, random)
        units_T = self.units[place.clip]
        frames = self.encoder.frames(place.samples)
        origin_T = augment.frames_of_origin(
            frames, self.encoder.stride, self.encoder.receptive_field, speed, start, len(units_T)
        )
        chosen_T = torch.from_numpy(units_T[origin_T].astype(np.int64))
        return Crop(torch.from_numpy(crop_N), chosen_T, self.clips[place.clip].path, place)

    def _wave(self, clip: int) -> np.ndarray:
        """A clip as 16 bit samples hold it, whether it was kept or not, so that a resumed run hears the same."""
        short_N = self.decoded.get(clip)
        if short_N is None:
            path, samples, first = self.clips[clip]
            wave_N = audio.read(path, first, samples)
            short_N = np.rint(wave_N * 32768.0).clip(-32768, 32767).astype(np.int16)
            if self.bytes + short_N.nbytes <= KEPT:
                self.decoded[clip], self.bytes = short_N, self.bytes + short_N.nbytes
        return short_N.astype(np.float32) / 32768.0
