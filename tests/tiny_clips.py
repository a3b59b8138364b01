"""Six clips of noise, and an encoder with frames of 320 samples, for tests of units and phones."""

import numpy as np
import soundfile

from star_upstream.data.clips import scan
from star_upstream.encoder import EncoderConfig

CONFIG = EncoderConfig(
    conv_layers=((8, 10, 5), (8, 8, 8), (16, 8, 8)), projection=False, width=16, layers=2, heads=2, head_width=8,
    ffn=32, position_kernel=8, position_groups=2, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def make(folder):
    random = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * random.standard_normal(16000 + 1111 * i), 16000)
    return scan([folder]).clips
