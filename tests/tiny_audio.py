"""Audio files of noise."""

from pathlib import Path

import numpy as np
import soundfile


def write(path: Path, seconds=1.0, rate=16_000, channels=1, level=0.1, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (int(seconds * rate), channels)
    soundfile.write(path, (level * np.random.default_rng(0).standard_normal(shape)).astype(np.float32), rate, **options)
    return path
