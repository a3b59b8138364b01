"""What an encoder gives, and which frames of it are masked.

Shapes: B utterances, T frames, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EncoderOutput(NamedTuple):
    """What :class:`~.encoder.Encoder` returns. Frames at and past ``lengths_B`` hold no meaning: mask them."""

    states: list[Tensor]
    """The first layer's input, then every layer's output (B x T x D each); pre-norm models: the last one after the
    final norm. Under ``time_reduction`` these have fewer frames than the front end."""
    lengths_B: Tensor
    """Valid frames of each utterance in what the model gives: predictions, projections and
    :meth:`~.encoder.Encoder.exposed` states."""
    features_BTD: Tensor
    """The projected output of the front end, before the positional convolution and any ``time_reduction``."""
    attentions: list[Tensor | None] | None
    """Where asked for: each layer's map (B x H x T x T, ``[query, key]``), None where attention is left out."""
    projections: list[Tensor] | None
    """Where the configuration has output heads: one B x T x ``output_projection`` a layer."""
    predictions: list[Tensor] | None = None
    """Where the configuration has ``prediction_layers``: what the heads make of each of them, B x T x D."""
    dropped_BTD: Tensor | None = None
    """``features_BTD`` after its dropout, padding set to 0: what the positional convolution takes."""
    last_BTD: Tensor | None = None
    """The last state, upsampled where the configuration says so."""


class Masked(NamedTuple):
    """Which frames of the front end are replaced before the positional convolution, and by what (wav2vec 2.0, section
    3.1)."""

    mask_BT: Tensor
    """True where a frame is replaced."""
    vector_D: Tensor
    """In its place; or one for each utterance, B x 1 x D."""
