"""Masked prediction of units (HuBERT, Hsu et al. 2021, section II-B): cross entropy over k-means units, masked frames
first. :class:`MaskedUnits` learns units made beforehand, in pretraining; :class:`UnitsLoss` those of a teacher that
hears the same batch, which is the objective of DiceHuBERT (Chi et al., Interspeech 2025, arXiv 2507.02911).

Shapes: B utterances, T frames, D width, K units, V valid frames of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import strict, units
from ..data.clips import Clip
from ..encoder import Encoder, EncoderConfig, EncoderOutput, Masked
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from .common import Masking, TrainedLayers, check_masks, check_rates, stacked, valid_frames


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
        strict.within(self, "[0, 1]", "start")
        strict.within(self, "[1, inf)", "span")
        strict.within(self, "[0, inf)", "unmasked_weight")


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
        self.classifier = _classifier(encoder.config.width, units)

    def forward(self, waveforms_BN: Tensor, units_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, for waveforms of one length whose every sample is valid.

        units_BT: the unit of each frame. mask_BT: True where the encoder is given the mask's vector instead of the
        frame."""
        features_BTD, frames_B = self.encoder.features(waveforms_BN)
        hidden = Masked(mask_BT, self.mask_embedding)
        output = self.encoder.contextualize(features_BTD, frames_B, padded=False, masked=hidden)
        logits_BTK = self.classifier(output.states[-1]).float()
        return _halves(logits_BTK.flatten(0, 1), units_BT.flatten(), mask_BT.flatten(), self.config)


@dataclass(frozen=True)
class UnitsConfig(MaskConfig):
    """Which units, and which frames are masked."""

    layer: int | None = None
    """The teacher's, whose states k-means clusters (0: the first layer's input). There is no default."""
    number: int = 500
    seconds: float = units.FITTED
    """Audio that k-means is fitted on before the first update, of clips drawn by the run's seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        strict.within(self, "[2, inf)", "number")
        strict.within(self, "(0, inf)", "seconds")


class UnitsLoss(nn.Module):
    """Cross entropy of a linear classifier on the student's last state, against the k-means unit that the teacher's
    frame is nearest to. The student hears masked spans, the teacher everything; in validation both do. Raises
    :class:`StarError` for a layer that the teacher does not have, and for models of different frame rates."""

    options = UnitsConfig
    needs_attention = False
    masks = True

    def __init__(self, config: UnitsConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        check_rates("units", teacher, student, inside=False)
        check_masks("units", teacher, student)
        if config.layer is None or not 0 <= config.layer <= teacher.layers:
            raise StarError(f"units.layer: name one of the teacher's, 0 to {teacher.layers}, got {config.layer}")
        self.layer = config.layer
        self.vector = nn.Parameter(torch.empty(student.width).uniform_())
        self.classifier = _classifier(student.width, config.number)
        self.centres_KD: Tensor
        self.register_buffer("centres_KD", torch.zeros(config.number, teacher.width))

    def fit(self, teacher: Encoder, clips: Sequence[Clip], seed: int) -> None:
        """Find the units by k-means on ``config.seconds`` of ``clips``; units that are there stay. Raises
        :class:`StarError` for fewer frames than units."""
        if not self.centres_KD.any():

            def features(drawn: Sequence[Clip]) -> Iterator[tuple[int, np.ndarray]]:
                return ((place, layer_TF) for place, (layer_TF,) in units.encoded(drawn, teacher, [self.layer]))

            found = units.fit(clips, features, self.config.number, seed, self.config.seconds)
            self.centres_KD.copy_(torch.from_numpy(found.cluster_centers_))

    def forward(
        self, teacher: EncoderOutput, student: EncoderOutput, masking: Masking | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar, fp32 or wider) and its terms: ``masked`` and ``unmasked`` frames and the ``accuracy`` at
        masked ones, or ``whole`` and its ``accuracy`` where nothing was masked."""
        last_BTD = student.states[-1]
        picked = valid_frames(teacher, student, last_BTD)
        units_V = self.nearest(picked(teacher.states[self.layer]))
        logits_VK = wide(self.classifier(picked(last_BTD)))
        if masking is None:
            whole, accuracy = F.cross_entropy(logits_VK, units_V), (logits_VK.argmax(-1) == units_V).float().mean()
            return whole, {"whole": whole, "accuracy": accuracy}
        return _halves(logits_VK, units_V, picked(masking.mask_BT[..., None])[:, 0], self.config)

    def nearest(self, states_VD: Tensor) -> Tensor:
        """V: the unit of each of the teacher's frames."""
        with torch.no_grad(), full_precision(states_VD.device):
            centres_KD = wide(self.centres_KD)
            products_VK = wide(states_VD) @ centres_KD.T
            return (products_VK - centres_KD.square().sum(-1) / 2).argmax(-1)

    def draw(self, frames_B: Tensor, size: int, places: Sequence[int]) -> Tensor:
        """B x ``size``, True where a frame is masked. Spans depend on torch's random state and on an utterance's place
        in the corpus, not on its place in the batch."""
        seed, masks = int(torch.randint(2**31, ())), []
        for frames, place in zip(frames_B.tolist(), places):
            masks.append(draw_mask(1, frames, self.config, np.random.default_rng((seed, place)))[0].numpy())
        return stacked(masks, size, frames_B)

    def teacher_masked(self, teacher: Encoder, output: EncoderOutput, mask_BT: Tensor) -> None:
        """There is no second teacher."""

    @staticmethod
    def trained_layers(config: UnitsConfig, student: EncoderConfig) -> TrainedLayers:
        return TrainedLayers((config.layer or 0,), (student.layers,))


def _classifier(width: int, number: int) -> nn.Linear:
    made = nn.Linear(width, number)
    nn.init.normal_(made.weight, std=0.02)
    nn.init.zeros_(made.bias)
    return made


def _halves(logits_VK: Tensor, units_V: Tensor, mask_V: Tensor, config: MaskConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Masked and unmasked frames' mean cross entropy, weighted; both, and how often masked ones are right."""
    losses_V = F.cross_entropy(logits_VK, units_V, reduction="none")
    masked = losses_V[mask_V].mean()
    # a short utterance may be masked whole
    unmasked = losses_V[~mask_V].mean() if not mask_V.all() else masked.detach()
    accuracy = (logits_VK.detach().argmax(-1) == units_V)[mask_V].float().mean()
    terms = {"masked": masked.detach(), "unmasked": unmasked.detach(), "accuracy": accuracy}
    return masked + config.unmasked_weight * unmasked, terms
