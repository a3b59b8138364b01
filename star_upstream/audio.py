"""Audio files and members of shards to 16 kHz mono waveforms, read by soundfile (wav, flac, ogg, opus, mp3)."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from . import extras, members
from .errors import StarError
from .files import pointer

RATE = 16_000
EXTENSIONS = (".flac", ".wav", ".ogg", ".opus", ".mp3")
SLACK = RATE // 10
"""Samples by which a compressed file's decoded length may differ from what its header says."""
CANCELLED = 0.01
"""Share of the channels' mean power below which their average is no longer their sound (channels in opposite phase)."""
STREAMED = 0x7FFF_0000
"""A wav header's length from here on was written before the length was known: by a program that writes to a pipe."""
DANGLING = "a link to a file that is not there; in a git-annex folder: git annex get"
"""What is said of a :func:`dangling` path."""
_PROMISED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class Header(NamedTuple):
    """What a file says of itself: its frames (samples of each channel) and their rate."""

    frames: int
    rate: int
    lossy: bool = False

    @property
    def samples(self) -> int:
        """Its length at 16 kHz."""
        return math.ceil(self.frames * RATE / self.rate)

    @property
    def slack(self) -> int:
        """Samples at 16 kHz by which another program's count may differ: rounding, and what a decoder adds."""
        return SLACK if self.lossy else 1


def read(path: str | Path, start: int = 0, samples: int | None = None) -> np.ndarray:
    """The file's waveform, float32, 1-D, at 16 kHz; several channels are averaged, other rates resampled. Where
    channels in opposite phase cancel each other, the one with the most power is taken alone.

    ``start`` and ``samples`` cut a part out, counted at 16 kHz. Raises :class:`StarError` for a file that cannot be
    decoded.
    """
    with _opened(path) as file:
        rate = file.samplerate
        if (start or samples is not None) and rate == RATE and file.seekable():
            file.seek(min(start, file.frames))
            return _mono(file.read(-1 if samples is None else samples, dtype="float32", always_2d=True))
        wave = _mono(file.read(file.frames, dtype="float32", always_2d=True))
    wave = resample(wave, rate)
    return wave[start:] if samples is None else wave[start : start + samples]


def piece(path: str | Path, start: int, samples: int) -> np.ndarray:
    """``samples`` from ``start`` on, as :func:`read`. Raises :class:`StarError` also where the file holds fewer of
    them."""
    if not samples:
        raise StarError(f"{path}: holds no sound")
    wave = read(path, start, samples)
    if not len(wave) or len(wave) < samples - SLACK:
        raise StarError(
            f"{path}: {len(wave)} samples from sample {start} on when decoded, where {samples} were promised"
        )
    return wave


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """A 1-D waveform at ``rate`` Hz brought to 16 kHz (torchaudio's windowed sinc); length ``ceil(n * 16000 /
    rate)``."""
    if rate == RATE:
        return wave
    extras.need("train", "torchaudio")
    import torch
    import torchaudio

    return torchaudio.functional.resample(torch.from_numpy(wave), rate, RATE).numpy()


def header(path: str | Path, stream: Any = None) -> Header:
    """What the file says of itself. Raises :class:`StarError` when there is no readable header, and when it promises
    more than the file holds. ``stream``: read from there what is to be called ``path``."""
    with _opened(path, stream) as file:
        return Header(file.frames, file.samplerate, file.format in ("MP3", "OGG"))


def length(path: str | Path) -> int:
    """Samples of the file at 16 kHz, from its header. Raises :class:`StarError` as :func:`header` does."""
    return header(path).samples


def dangling(path: str | Path) -> bool:
    """Whether ``path`` is a link to what is not there, such as git-annex leaves for a file that was not fetched."""
    return os.path.islink(path) and not os.path.exists(path)


def _mono(wave_NC: np.ndarray) -> np.ndarray:
    mean = wave_NC.mean(1)
    if wave_NC.shape[1] > 1:
        power_C = np.square(wave_NC, dtype=np.float64).mean(0)
        if np.square(mean, dtype=np.float64).mean() < CANCELLED * power_C.mean():
            return np.ascontiguousarray(wave_NC[:, int(power_C.argmax())])
    return mean


@contextmanager
def _opened(path: str | Path, stream: Any = None) -> Iterator[soundfile.SoundFile]:
    try:
        if stream is None and (data := members.content(path)) is not None:
            stream = io.BytesIO(data)
        if stream is None and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise StarError(f"{path}: no file, but a folder, a pipe or a device")
        with soundfile.SoundFile(os.fsencode(path) if stream is None else stream) as file:  # a name need not be UTF-8
            _check_whole(path, file)
            yield file
    except StarError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise StarError(f"{path}: cannot be read as audio ({_reason(path, error)})") from None


def _check_whole(path: str | Path, file: soundfile.SoundFile) -> None:
    """libsndfile shortens a file to what is there, and tells of it in its log alone."""
    for promised, held in (map(int, found) for found in _PROMISED.findall(file.extra_info)):
        if promised < STREAMED and (not held or (promised / held - 1) * file.frames > 0.01 * file.samplerate):
            share, seconds = held / promised, file.frames / file.samplerate
            raise StarError(
                f"{path}: cut short: {share:.1%} ({seconds:.2f} s) of the sound that its header promises is there"
            )


def _reason(path: str | Path, error: Exception) -> str:
    if dangling(path):
        return DANGLING
    file = members.container(path)
    if not members.is_address(file) and not os.path.exists(file):
        return "no such file"
    if not members.is_address(file) and not os.access(file, os.R_OK):
        return "no permission to read it"
    if said := pointer(path):
        return said
    text = str(error).strip().rstrip(".")
    return text.split(": ")[-1] or type(error).__name__
