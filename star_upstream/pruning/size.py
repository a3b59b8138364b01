"""The size of a pruned encoder in closed form, for whole counts and for expected ones.

Parameters and multiply-accumulates are sums of products of counts of different gate groups, each group at most once in
a product. Gates are independent, so with each count replaced by its expectation the same formula gives the expected
size exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import audio
from ..encoder import EncoderConfig
from ..encoder.size import count_macs, macs, parameters

Count = Any
"""A number, or where it is an expectation a tensor."""


@dataclass
class Kept:
    """What is left of an encoder: numbers, or expectations of them."""

    convs: Sequence[Count]
    """Channels of each convolution."""
    heads: Sequence[Count]
    """Heads of each layer, 0 where its attention is gone."""
    attends: Sequence[Count]
    """1 where a layer has attention: one head or more, and its layer gate open."""
    units: Sequence[Count]
    feeds: Sequence[Count]

    @classmethod
    def whole(cls, config: EncoderConfig) -> Kept:
        """Everything that ``config`` has."""
        convs = [channels for channels, _, _ in config.conv_layers]
        return cls(
            convs, config.heads, [int(h > 0) for h in config.heads], config.ffn, [int(u > 0) for u in config.ffn]
        )


class Size:
    """Size of a pruned encoder by ``measure``: ``parameters``, or ``macs`` of an utterance of ``seconds``.

    ``scaled``: the cut encoder has a factor for each channel of the last convolution that the whole one may not have.
    """

    def __init__(self, config: EncoderConfig, measure: str = "parameters", seconds: float = 10.0, scaled: bool = False):
        self.config, self.measure = config, measure
        self.samples = max(round(seconds * audio.RATE), config.receptive_field)
        self.scaled = scaled or config.feature_scale
        whole = Kept.whole(config)
        # what has no gate at all is counted on the encoder itself
        self.fixed = parameters(config) - self._prunable(whole, config.feature_scale)
        self.original = parameters(config) if measure == "parameters" else macs(config, self.samples)

    def __call__(self, kept: Kept) -> Count:
        if self.measure == "parameters":
            return self.parameters(kept)
        return count_macs(self.config, self.samples, kept.convs, kept.heads, kept.units)

    def sparsity(self, kept: Kept) -> Count:
        """Share of the whole encoder that is gone."""
        return 1.0 - self(kept) / self.original

    def parameters(self, kept: Kept) -> Count:
        return self.fixed + self._prunable(kept, self.scaled)

    def _prunable(self, kept: Kept, scaled: bool) -> Count:
        """Parameters of every part that a gate may shrink."""
        config, total, previous = self.config, 0, self.config.conv_input_channels
        for i, (channels, (_, kernel, _)) in enumerate(zip(kept.convs, config.conv_layers)):
            normed = i == 0 or config.conv_norm == "layer"
            total = total + channels * previous * kernel + channels * (int(config.conv_bias) + 2 * int(normed))
            previous = channels
        total = total + previous * (int(scaled) + 2 * int(config.projection_norm))
        if config.projection:
            total = total + previous * config.width
        post, width = config.norm == "post", config.width
        for i, (heads, attends, units, feeds) in enumerate(zip(kept.heads, kept.attends, kept.units, kept.feeds)):
            inner = heads * config.head_width
            reuse = bool(config.reuse_attention and config.reuse_attention[i])
            # value and output, and unless the map is reused query and key; biases of all but the output go with the
            # heads
            total = total + inner * ((2 * width + 1) if reuse else (4 * width + 3))
            # pre-norm models lose the norm of a part that is gone
            total = total + attends * (width + (0 if post else 2 * width))
            if config.relative_position is not None and not reuse:
                # WavLM's gate is shared by the heads; its one factor a head is kept for all, as published checkpoints
                # have it
                total = total + attends * (8 * config.head_width + 8 + config.relative_position.total_heads)
            total = total + units * (2 * width + 1) + feeds * (width + (0 if post else 2 * width))
        return total
