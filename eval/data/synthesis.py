"""Synthetic recordings: voices of espeak-ng through random channels, deterministic by the random generator that is
passed in."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from star_upstream import outputs
from star_upstream.audio import RATE
from star_upstream.errors import StarError
from star_upstream.files import replacing

from . import espeak

LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
MEN = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Denis", "Gene", "Hugo", "Lee", "Mike", "adam", "boris", "david",
    "ian", "quincy",
)  # fmt: skip
WOMEN = (
    "f1", "f2", "f3", "f4", "f5", "Alicia", "Annie", "Andrea", "belinda", "linda", "steph", "shelby", "aunty", "anika",
)  # fmt: skip
EQUALISER_DB = 6.0
"""Standard deviation of a channel's gains: without it a voice is told by its mean spectrum alone."""
SNR_DB = (10.0, 30.0)
BANDS = (100.0, 250.0, 500.0, 1000.0, 2000.0, 3500.0, 5500.0, 8000.0)
"""Hz; between them a channel's gain in dB is linear over the logarithm of the frequency."""


class Speaker(NamedTuple):
    """A synthetic voice; see :class:`eval.data.espeak.Job`."""

    language: str
    variant: str
    rate: int
    pitch: int
    range: int

    def says(self, text: str, rng: np.random.Generator) -> espeak.Job:
        """The text, a little faster or slower, higher or lower than this speaker's average."""
        rate, pitch = self.rate * rng.uniform(0.93, 1.07), self.pitch + rng.integers(-3, 4)
        return espeak.Job(text, self.language, self.variant, round(rate), int(np.clip(pitch, 0, 99)), self.range)


@dataclass(frozen=True)
class Channel:
    """How a recording sounds: ``gains`` in dB at ``BANDS``, noise ``colour`` (power falls as 1 / f ** colour), ``snr``
    in dB."""

    gains: tuple[float, ...]
    colour: float
    snr: float


class Clip(NamedTuple):
    """A file to be made: what is said through which channel, and its length in seconds (least, most)."""

    path: str
    job: espeak.Job
    channel: Channel
    seconds: tuple[float, float]


def voices(rng: np.random.Generator, number: int) -> Iterator[Speaker]:
    """``number`` voices, no variant twice before all were used, men and women about as often."""
    men, women = (itertools.cycle(rng.permutation(names).tolist()) for names in (MEN, WOMEN))
    for index in range(number):
        variant = next(women if index % 2 else men)
        language = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
        yield Speaker(
            language, variant, int(rng.integers(135, 200)), int(rng.integers(20, 80)), int(rng.integers(30, 80))
        )


def random_channel(rng: np.random.Generator) -> Channel:
    """A microphone, a room and a noise that no other recording has."""
    return Channel(tuple(rng.normal(0.0, EQUALISER_DB, len(BANDS))), rng.uniform(0.0, 2.0), rng.uniform(*SNR_DB))


def recordings(clips: list[Clip], rng: np.random.Generator) -> list[np.ndarray]:
    """What each clip's file holds: float64, 1-D, 16 kHz."""
    said = espeak.speak([clip.job for clip in clips])
    return [recording(wave, clip.channel, clip.seconds, rng) for clip, wave in zip(clips, said)]


def recording(wave: np.ndarray, channel: Channel, seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """espeak-ng's waveform without its outer silence, at 16 kHz, placed at random in (at least, at most) ``seconds`` of
    noise."""
    least, most = (round(s * RATE) for s in seconds)
    wave = level(spoken(wave, channel, most), rng.uniform(-30.0, -20.0))
    # At most a tenth of a second of noise around the speech, where the length is free.
    total = max(least, min(most, len(wave) + int(rng.integers(RATE // 10))))
    start = int(rng.integers(total - len(wave) + 1))
    power = np.mean(wave**2)
    background = noise(rng, total, channel.colour) * np.sqrt(power / 10 ** (channel.snr / 10))
    background[start : start + len(wave)] += wave
    return background * min(1.0, 0.95 / np.abs(background).max())


def spoken(wave: np.ndarray, channel: Channel, most: int) -> np.ndarray:
    """espeak-ng's waveform at 16 kHz without its outer silence, at most ``most`` samples, filtered by the channel, no
    noise."""
    from scipy.signal import resample_poly

    wave = resample_poly(
        wave.astype(np.float64), 320, 441
    )  # in one thread, so the same bytes everywhere; 22,050 Hz to 16 kHz
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=0))
    if not len(loud):
        raise StarError("espeak-ng returned silence; install another version of espeakng-loader")
    wave = wave[loud[0] : loud[-1] + 1][:most]
    spectrum, frequencies = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / RATE)
    gains = np.interp(np.log(np.maximum(frequencies, BANDS[0])), np.log(BANDS), channel.gains)
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(wave))


def noise(rng: np.random.Generator, samples: int, colour: float) -> np.ndarray:
    """Gaussian noise of unit power whose power spectrum falls as 1 / f ** colour above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 50.0) ** (-colour / 2)
    wave = np.fft.irfft(spectrum, samples)
    return wave / np.sqrt(np.mean(wave**2))


def level(wave: np.ndarray, decibels: float) -> np.ndarray:
    """``wave`` with that root mean square, relative to full scale."""
    return wave * (10 ** (decibels / 20) / np.sqrt(np.mean(wave**2)))


@contextlib.contextmanager
def whole_folder(path: Path, clips: Iterable[Clip] = (), waves: Iterable[np.ndarray] = ()) -> Iterator[Path]:
    """:func:`~star_upstream.files.replacing` for a corpus, in which ``clips`` are files of their ``waves``: beside its
    files goes their list, so that others are seen later."""
    with replacing(path) as part:
        for clip, wave in zip(clips, waves):
            write(part / clip.path, wave)
        yield part
        outputs.list_files(part)


def write(path: Path, wave: np.ndarray) -> None:
    """A 16 kHz waveform in [-1, 1] as 16-bit wav or flac, by the name's ending; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.round(wave * 32767).astype(np.int16), RATE, subtype="PCM_16")
