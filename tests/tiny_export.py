"""Small encoders with HuBERT's stride, quick to export, of every architecture."""

import torch
from test_encoder import VARIANTS, config, randomised

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig

CONVS = ((8, 10, 5), (12, 3, 4), (16, 2, 4), (16, 2, 4))
"""Stride 320, as HuBERT's; 120 samples a frame."""
SHAPES = {
    **VARIANTS,
    "no projection": {"conv_layers": (*CONVS[:-1], (32, 2, 4)), "projection": False, "feature_scale": True},
    "mel": {"frontend": "mel", "conv_layers": ((24, 3, 2), (24, 3, 1)), "normalize_waveform": True},
}


def encoder(name="group, post-norm", **changes) -> Encoder:
    torch.manual_seed(0)
    values = strict.plain(config()) | {"conv_layers": CONVS, "heads": 4, "ffn": 48} | SHAPES[name] | changes
    return randomised(Encoder(strict.build(EncoderConfig, values))).requires_grad_(False)
