"""Augmentation of waveforms from the recordings themselves: speed, overlapping speech, noise of their own spectrum.

Every draw comes from a generator that the caller seeds by the place in the run, so that a resumed run hears the same.
Shapes: N samples at 16 kHz, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import audio, strict
from .errors import StarError


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a crop, and how often. The units that a model learns stay those of the recording as it is."""

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Drawn with equal probability; 1.1 is a tenth faster and higher, as by sox's ``speed`` (Ko et al. 2015)."""
    overlap: float = 0.15
    """Probability that a part of another recording, at most half as long as the crop, is added (WavLM's utterance
    mixing, Chen et al. 2022)."""
    overlap_decibels: tuple[float, float] = (0.0, 15.0)
    """How much louder the crop is than what is added, uniform. From 0 up, what is to be learnt is always the louder
    voice."""
    noise: float = 0.15
    """Probability of stationary noise with the spectrum of another recording."""
    noise_decibels: tuple[float, float] = (5.0, 25.0)

    def __post_init__(self):
        if not self.speeds or not all(0.5 <= speed <= 2.0 for speed in self.speeds):
            raise StarError(f"speeds: expected numbers from 0.5 to 2 (1 changes nothing), got {list(self.speeds)}")
        strict.within(self, "[0, 1]", "overlap", "noise")
        for name in ("overlap_decibels", "noise_decibels"):
            low, high = getattr(self, name)
            if low > high:
                raise StarError(f"{name}: expected the lower number first, got {[low, high]}")


NONE = AugmentConfig(speeds=(1.0,), overlap=0.0, noise=0.0)


def change_speed(wave_N: np.ndarray, speed: float) -> np.ndarray:
    """The wave played ``speed`` times as fast: ``ceil(n / speed)`` samples, pitch and formants moved with it."""
    return wave_N if speed == 1.0 else audio.resample(wave_N, round(audio.RATE * speed))


def frames_of_origin(frames: int, stride: int, field: int, speed: float, start: int, total: int) -> np.ndarray:
    """For each of a crop's frames the frame of the whole recording whose middle is nearest.

    ``stride`` and ``field`` are the encoder's samples from frame to frame and of one frame; the crop begins at sample
    ``start`` of the recording, which has ``total`` frames, and was played ``speed`` times as fast.
    """
    middle_T = start + speed * (stride * np.arange(frames) + field / 2)
    return np.clip(np.rint((middle_T - field / 2) / stride), 0, total - 1).astype(np.int64)


def add_overlap(
    wave_N: np.ndarray, other_N: np.ndarray, config: AugmentConfig, random: np.random.Generator
) -> np.ndarray:
    """A part of ``other_N`` added somewhere: up to half of the wave's samples, quieter than the wave by what is
    drawn."""
    length = int(random.integers(1, max(2, min(len(wave_N) // 2, len(other_N)) + 1)))
    start, place = int(random.integers(len(other_N) - length + 1)), int(random.integers(len(wave_N) - length + 1))
    part_N, mixed_N = other_N[start : start + length], wave_N.copy()
    mixed_N[place : place + length] += part_N * _gain(wave_N, part_N, random.uniform(*config.overlap_decibels))
    return mixed_N


def add_noise(
    wave_N: np.ndarray, other_N: np.ndarray, config: AugmentConfig, random: np.random.Generator
) -> np.ndarray:
    """Noise over the whole wave with the long-term spectrum of ``other_N``: its Fourier coefficients with drawn
    phases."""
    spectrum = np.abs(np.fft.rfft(other_N, len(wave_N)))
    noise_N = np.fft.irfft(spectrum * np.exp(2j * np.pi * random.random(len(spectrum))), len(wave_N)).astype(np.float32)
    return wave_N + noise_N * _gain(wave_N, noise_N, random.uniform(*config.noise_decibels))


def _gain(wave_N: np.ndarray, other_N: np.ndarray, decibels: float) -> np.float32:
    """The factor that makes ``other_N`` quieter than the wave by so many decibels, in mean power."""
    power, other = float(np.mean(wave_N**2)), float(np.mean(other_N**2))
    return np.float32(np.sqrt(power / other * 10.0 ** (-decibels / 10.0)) if other > 0.0 else 0.0)
