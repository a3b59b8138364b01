"""Audio files to 16 kHz mono waveforms, read by soundfile (wav, flac, ogg, opus, mp3)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile

from .errors import StarError

RATE = 16_000
EXTENSIONS = (".flac", ".wav", ".ogg", ".opus", ".mp3")


def read(path: str | Path, start: int = 0, samples: int | None = None) -> np.ndarray:
    """The file's waveform, float32, 1-D, at 16 kHz; several channels are averaged, other rates resampled.

    ``start`` and ``samples`` cut a part out, counted at 16 kHz. Raises :class:`StarError` for a file that cannot be decoded.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            if (start or samples is not None) and rate == RATE:
                file.seek(min(start, file.frames))
                wave = file.read(-1 if samples is None else samples, dtype="float32", always_2d=True)
                return wave.mean(1)
            wave = file.read(dtype="float32", always_2d=True).mean(1)
    except (RuntimeError, OSError) as error:
        raise StarError(f"{path}: cannot be read as audio ({_reason(error)})") from None
    wave = resample(wave, rate)
    return wave[start:] if samples is None else wave[start : start + samples]


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """A 1-D waveform at ``rate`` Hz brought to 16 kHz (torchaudio's windowed sinc); length ``ceil(n * 16000 / rate)``."""
    if rate == RATE:
        return wave
    import torch
    import torchaudio

    return torchaudio.functional.resample(torch.from_numpy(wave), rate, RATE).numpy()


def length(path: str | Path) -> int:
    """Samples of the file at 16 kHz, from its header. Raises :class:`StarError` when there is no readable header."""
    try:
        info = soundfile.info(str(path))
    except (RuntimeError, OSError) as error:
        raise StarError(f"{path}: cannot be read as audio ({_reason(error)})") from None
    return math.ceil(info.frames * RATE / info.samplerate)


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.split(": ")[-1] or type(error).__name__
