"""Masked prediction of units (HuBERT, Hsu et al. 2021, section II-B): cross entropy over k-means units, masked frames
first.

Shapes: B utterances, T frames, D width, K units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder, Masked
from ..errors import StarError


@dataclass(frozen=True)
class MaskConfig:
    """Which frames are masked, and what the others count."""

    start: float = 0.065
    """Probability that a masked span starts at a frame. HuBERT has 0.08."""
    span: int = 10
    unmasked_weight: float = 0.5
    """Weight of the mean over frames that are not masked. HuBERT sets 0; on a small budget the easy frames show what
    units are."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= 1.0 or self.span < 1 or self.unmasked_weight < 0.0:
            raise StarError("mask: start is a probability, span 1 frame or more, unmasked_weight 0 or more")


def draw_mask(utterances: int, frames: int, config: MaskConfig, random: np.random.Generator) -> Tensor:
    """B x T, True where masked: spans from random starts, at least one an utterance."""
    starts_BT = random.random((utterances, frames)) < config.start
    starts_BT[np.arange(utterances), random.integers(0, max(1, frames - config.span), utterances)] = True
    mask_BT = starts_BT.copy()
    for shift in range(1, min(config.span, frames)):
        mask_BT[:, shift:] |= starts_BT[:, :-shift]
    return torch.from_numpy(mask_BT)


class MaskedUnits(nn.Module):
    """An encoder with what it needs to learn units: a vector in place of masked frames, and a classifier on the last
    state."""

    def __init__(self, encoder: Encoder, units: int, config: MaskConfig):
        super().__init__()
        self.encoder, self.config = encoder, config
        self.mask_embedding = nn.Parameter(torch.empty(encoder.config.width).uniform_())
        self.classifier = nn.Linear(encoder.config.width, units)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, waveforms_BN: Tensor, units_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, for waveforms of one length whose every sample is valid.

        units_BT: the unit of each frame. mask_BT: True where the encoder is given the mask's vector instead of the
        frame."""
        features_BTD, frames_B = self.encoder.features(waveforms_BN)
        hidden = Masked(mask_BT, self.mask_embedding)
        output = self.encoder.contextualize(features_BTD, frames_B, padded=False, masked=hidden)
        logits_BTK = self.classifier(output.states[-1]).float()
        losses_BT = F.cross_entropy(logits_BTK.transpose(1, 2), units_BT, reduction="none")
        masked = losses_BT[mask_BT].mean()
        # a short utterance may be masked whole
        unmasked = losses_BT[~mask_BT].mean() if not mask_BT.all() else masked.detach()
        accuracy = (logits_BTK.detach().argmax(-1) == units_BT)[mask_BT].float().mean()
        terms = {"masked": masked.detach(), "unmasked": unmasked.detach(), "accuracy": accuracy}
        return masked + self.config.unmasked_weight * unmasked, terms
