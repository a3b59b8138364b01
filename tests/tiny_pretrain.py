"""Tiny pretrainings: audio whose pitch steps, and a recipe of two rounds that takes a second."""

from pathlib import Path

import numpy as np
import soundfile
import yaml

ENCODER = {
    "frontend": "mel", "mel_bins": 20, "conv_layers": [[16, 3, 1], [16, 3, 2]], "width": 16, "layers": 2, "heads": 2,
    "head_width": 8, "ffn": 32, "position_kernel": 8, "position_groups": 2, "dropout": 0.1, "attention_dropout": 0.0,
}  # fmt: skip
VALUES = {
    "encoder": ENCODER,
    "rounds": [{"features": "mfcc", "units": 6}, {"features": "layer1", "units": 8, "share": 0.75}],
    "training": {
        "updates": 8, "warmup": 0.25, "schedule": "linear", "clip": 5.0, "log_every": 1, "validate_every": 3,
        "save_every": 2, "accelerator": "cpu",
    },
    "data": {"min_seconds": 0.5, "batch_seconds": 3.0, "crop_seconds": 1.5, "valid_share": 0.25, "workers": 0},
}  # fmt: skip


def write_steps(folder: Path, count: int = 12) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        seconds = 1.0 + 0.2 * i
        pitch = np.repeat(random.uniform(100, 2000, int(seconds * 5) + 1), 3200)[: int(16000 * seconds)]
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * random.standard_normal(len(pitch))
        soundfile.write(folder / f"{i}.wav", wave, 16000)


def write_recipe(file: Path, **changes) -> Path:
    """``changes`` replace sections; those of ``training`` and ``data`` are merged."""
    merged = {key: {**VALUES[key], **value} if key in ("training", "data") else value for key, value in changes.items()}
    file.write_text(yaml.safe_dump({**VALUES, **merged}))
    return file
