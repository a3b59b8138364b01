"""DistilHuBERT's loss: heads on the student's last state predict layers of the teacher (Chang, Yang, Lee, ICASSP 2022,
equation 1).

For every target layer, teacher state f and prediction f' of D channels, over valid frames:

    sum over frames of  (1 / D) || f - f' ||_1  -  w log sigmoid(cos(f, f'))

summed over layers; the same in Kerpicci et al. (arXiv 2210.16611, section 2.1), with w = 1. The code that trained
DistilHuBERT (s3prl v0.4.18, pretrain/distiller, compute_loss) takes means over utterances, layers and frames instead,
padded frames among them. Those hold no speech, and how many there are depends on who else is in the batch: here they
never count. The heads belong to the encoder (``student.prediction_layers``) and are kept in its checkpoint. Shapes: B
utterances, T frames, D width, N valid frames of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import EncoderConfig, EncoderOutput
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from .common import TrainedLayers, check_rates, check_weights, valid_in_both


@dataclass(frozen=True)
class PredictionConfig:
    """Weights of the two terms (1 and 1 in both papers), and how frames and layers are summed."""

    l1: float = 1.0
    cosine: float = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    """``mean``: over the batch's valid frames (DistilHuBERT's code); ``sum``: over frames, as the equation is written,
    then mean over utterances."""
    layers: Literal["sum", "mean"] = "sum"
    """Over the layers that are predicted: their sum (the equation), or their mean (DistilHuBERT's code)."""

    def __post_init__(self) -> None:
        check_weights(self, "l1", "cosine")


class PredictionLoss(nn.Module):
    """The weighted sum of the two terms over the student's ``prediction_layers``. Raises :class:`StarError` where they
    do not fit the teacher."""

    options = PredictionConfig
    needs_attention = False

    def __init__(self, config: PredictionConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config, self.layers = config, student.prediction_layers
        if not self.layers:
            fix = "name the teacher's layers in student.prediction_layers, e.g. [4, 8, 12]"
            raise StarError(f"prediction: the student has no heads; {fix}")
        if max(self.layers) > teacher.layers:
            named = max(self.layers)
            raise StarError(
                f"prediction: student.prediction_layers names layer {named}, the teacher has {teacher.layers}"
            )
        width = student.prediction_width or student.width
        if teacher.width != width:
            fix = "set student.prediction_width"
            raise StarError(
                f"prediction: predictions must have the teacher's width, {teacher.width}, got {width}; {fix}"
            )
        check_rates("prediction", teacher, student, inside=False)

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss (a scalar, fp32 or wider) and its unweighted terms, each over all layers."""
        guesses = student.predictions or []
        frames_B, mask_BT = valid_in_both(teacher, student, guesses[0])
        size = mask_BT.shape[1]
        divisor = len(frames_B) if self.config.reduction == "sum" else mask_BT.sum()
        divisor = divisor * (len(self.layers) if self.config.layers == "mean" else 1)
        l1 = cosine = wide(guesses[0]).new_zeros(())
        with full_precision(mask_BT.device):
            for layer, guess_BTD in zip(self.layers, guesses):
                target_ND, guess_ND = (
                    wide(teacher.states[layer][:, :size])[mask_BT].detach(),
                    wide(guess_BTD[:, :size])[mask_BT],
                )
                l1 = l1 + (target_ND - guess_ND).abs().mean(-1).sum() / divisor
                cosine = cosine - F.logsigmoid(F.cosine_similarity(target_ND, guess_ND, dim=-1)).sum() / divisor
        return self.config.l1 * l1 + self.config.cosine * cosine, {"l1": l1, "cosine": cosine}

    @staticmethod
    def trained_layers(config: PredictionConfig, student: EncoderConfig) -> TrainedLayers:
        return TrainedLayers(student.prediction_layers, (student.layers,))
