"""Size and cost of an encoder: parameters, and multiply-accumulates as the papers count them.

MACs are summed over 32 fixed utterances of LibriSpeech test-clean, one at a time (FACTS of the STaR and DPHuBERT
papers): convolutions, linear layers, and the query-key and attention-value products. Norms, activations, softmax and
log-mel energies are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import Encoder, EncoderConfig

# fmt: off
LENGTHS = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640,
    154000, 166720, 180880, 197920, 217920, 239280, 268160, 326000,
)
# fmt: on


def macs(config: EncoderConfig, samples: int) -> int:
    """Multiply-accumulates for one utterance of ``samples`` samples."""
    channels = [channels for channels, _, _ in config.conv_layers]
    return int(count_macs(config, samples, channels, config.heads, config.ffn))


def count_macs(
    config: EncoderConfig, samples: int, convs: Sequence[Any], heads: Sequence[Any], units: Sequence[Any]
) -> Any:
    """The same with other numbers of channels a convolution and of heads and FFN units a layer; pruning gives expected
    ones (tensors)."""
    total, frames, previous = 0, config.conv_inputs(samples), config.conv_input_channels
    for i, (channels, (_, kernel, _)) in enumerate(zip(convs, config.conv_layers)):
        frames = config.conv_outputs(i, frames)
        total = total + frames * kernel * channels * previous
        previous = channels
    if config.projection:
        total = total + frames * config.width * previous
    # an even kernel padded by half of itself computes one frame more than is kept
    chunked = config.attention == "chunked"
    position_frames = frames if chunked else frames + 1 - config.position_kernel % 2
    kernels = config.position_layers * config.position_kernel
    total = total + position_frames * config.width * (config.width // config.position_groups) * kernels
    features, width = frames, config.width
    if config.time_reduction > 1:
        frames = frames // config.time_reduction
        total = total + frames * config.time_reduction * width * width
    queries, keys = frames, frames
    if chunked:
        each_chunk = config.chunk + config.look_ahead
        queries, keys = -(-frames // config.chunk) * each_chunk, config.left_context + each_chunk
    for layer in range(config.layers):
        inner = heads[layer] * config.head_width
        reuse = bool(config.reuse_attention and config.reuse_attention[layer])
        each = config.width * (2 if reuse else 4) + keys * (1 if reuse else 2)
        if config.relative_position and not reuse:
            each += 8  # the gate on the position bias
        total = total + queries * (inner * each + (units[layer] + config.adapter) * width * 2)
    # of heads on every layer those alone whose output the model gives
    shown = 1 if config.hidden_states == "last" else config.layers
    upsamplings = {"none": 0, "heads": shown, "last": 1}[config.upsampling]
    total = total + upsamplings * frames * config.time_reduction * width * width
    inner = config.prediction_inner or width
    predicted = len(config.prediction_layers) * inner * (width + (config.prediction_width or width))
    return total + config.output_frames(features) * (shown * config.output_projection * width + predicted)


def parameters(config: EncoderConfig) -> int:
    """Number of parameters of an encoder with this configuration (built without memory for the weights)."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in Encoder(config).parameters())


def without_training(config: EncoderConfig) -> int:
    """Number of parameters without heads that only the distillation needs: prediction heads (DistilHuBERT), and those
    of every layer but the last where the last one's output alone is given (FitHuBERT)."""
    count, width, channels = parameters(replace(config, prediction_layers=())), config.width, config.output_projection
    if config.has_heads and config.hidden_states == "last":
        upsampling = width * (width * config.time_reduction + 1) if config.upsampling == "heads" else 0
        count -= (config.layers - 1) * (upsampling + (width + 1) * channels)
    return count


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
