"""A task that an encoder is fine-tuned on: its data, its head, its loss. Part of a recipe of ``star finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import strict
from ..errors import StarError


@dataclass(frozen=True)
class TaskConfig:
    """One head, its data and its loss."""

    data: Literal["ks", "sid", "ic", "er", "asv"]
    """Which table of :mod:`star_upstream.data.corpora`: ks keywords, asv speakers (tested on trials), sid speakers, ic
    intents (action, object and location as one class), er emotions (fold 1 is the test)."""
    loss: Literal["cross_entropy", "angular", "additive_angular"] = "cross_entropy"
    margin: float | None = None
    """Of angular softmax: the factor on the angle, a whole number (None: 2); of additive angular softmax: the angle
    added (None: 0.2)."""
    scale: float | None = None
    """What cosines are multiplied by. None: in angular softmax the vector's own length, as in SphereFace; in the
    additive one 30."""
    relax: float = 0.0
    """Weight of plain softmax's logit against angular softmax's, SphereFace's lambda; 0 is the loss as its equation is
    written."""
    input: Literal["last", "states", "predictions", "all"] = "last"
    """What the head reads: the last state; a learnt weighted sum of the states that the model exposes; of what its
    prediction heads say; or of both."""
    pooling: Literal["mean", "attentive"] = "mean"
    embedding: int = 0
    """Width of a linear layer between the pooled vector and the classifier; 0 has none."""
    batch: int = 32
    """Utterances in a batch of one process."""
    crop_seconds: float | None = None
    """Training utterances are cut to so much, at a random place each time; None takes them whole."""
    balanced: bool = False
    """Draw every class equally often instead of every utterance."""
    valid_share: float = 0.05
    """Where a corpus has no dev split, so much of each speaker's or class's training utterances is held out to choose
    by."""

    def __post_init__(self):
        if self.loss == "cross_entropy" and (self.margin is not None or self.scale is not None):
            raise StarError("margin, scale: cross_entropy has none; leave them out or choose another loss")
        if self.relax and self.loss != "angular":
            raise StarError("relax: only for loss angular; set it to 0")
        if self.loss == "angular" and self.margin not in (None, 1, 2, 3, 4):
            raise StarError(f"margin: angular softmax multiplies the angle by 1, 2, 3 or 4, got {self.margin}")
        if self.loss == "additive_angular" and not 0.0 <= (self.margin or 0.0) < 1.5:
            raise StarError(
                f"margin: additive angular softmax adds an angle from 0 to 1.5 (radians), got {self.margin}"
            )
        strict.within(self, "(0, inf)", "scale")
        strict.within(self, "[0, inf)", "relax", "embedding")
        strict.within(self, "[1, inf)", "batch")
        strict.within(self, "[0.1, inf)", "crop_seconds")
        strict.within(self, "(0, 1)", "valid_share")
