"""Size and cost of an encoder: parameters, and multiply-accumulates as the papers count them.

MACs are summed over 32 fixed utterances of LibriSpeech test-clean, one at a time (FACTS of the STaR and DPHuBERT papers): convolutions,
linear layers, and the query-key and attention-value products. Norms, activations and softmax are not counted.
"""

from __future__ import annotations

from typing import Any

from .encoder import Encoder, EncoderConfig

SECONDS_COUNTED = 224.86
# fmt: off
LENGTHS = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280, 268160, 326000,
)
# fmt: on


def macs(config: EncoderConfig, samples: int) -> int:
    """Multiply-accumulates for one utterance of ``samples`` samples."""
    total, frames, previous = 0, samples, 1
    for channels, kernel, stride in config.conv_layers:
        frames = (frames - kernel) // stride + 1
        total += frames * channels * previous * kernel
        previous = channels
    if config.projection:
        total += frames * previous * config.width
    # an even kernel padded by half of itself computes one frame more than is kept
    position_frames = frames + 1 - config.position_kernel % 2
    total += position_frames * config.width * (config.width // config.position_groups) * config.position_kernel
    for layer, (heads, units) in enumerate(zip(config.heads, config.ffn)):
        inner = heads * config.head_width
        reuse = bool(config.reuse_attention and config.reuse_attention[layer])
        total += frames * config.width * inner * (2 if reuse else 4)
        total += frames * frames * inner * (1 if reuse else 2)
        total += frames * config.width * units * 2
        if config.relative_position and heads and not reuse:
            total += frames * config.width * 8
    return total + config.layers * frames * config.width * config.output_projection


def parameters(config: EncoderConfig) -> int:
    """Number of parameters of an encoder with this configuration (built without memory for the weights)."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in Encoder(config).parameters())


def profile(config: EncoderConfig) -> dict[str, Any]:
    """``parameters``, ``macs_g`` (1e9 MACs over the 32 utterances), and the sizes that explain them."""
    return {
        "parameters": parameters(config),
        "macs_g": round(sum(macs(config, n) for n in LENGTHS) / 1e9, 2),
        "layers": config.layers,
        "width": config.width,
        "stride": config.stride,
        "receptive_field": config.receptive_field,
    }
