"""Encoders as s3prl upstreams: one class, the names of torch.hub, and registration with s3prl without copying a file.

Shapes: B utterances, N samples (16 kHz), T frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderOutput
from ..encoder.frontend import valid_mask
from ..errors import StarError
from ..heads import export
from ..heads.model import MultitaskModel
from ..mini import SHIPPED
from . import checkpoint, sources


class UpstreamStream:
    """A stream (:class:`star_upstream.encoder.stream.Stream`) whose frames come as :class:`UpstreamExpert` gives them:
    ``hidden_states``, ``last_hidden_state``, and ``lengths``, how many are new."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.inner = encoder, encoder.stream()

    def push(self, samples: Tensor | np.ndarray) -> dict[str, Any]:
        """The frames that can be known since these samples (1-D floats at 16 kHz, any number) came, none or more."""
        return self._states(self.inner.push(samples))

    def flush(self) -> dict[str, Any]:
        """The rest: the waveform has ended."""
        return self._states(self.inner.flush())

    def _states(self, output: EncoderOutput) -> dict[str, Any]:
        states = self.encoder.exposed(output)
        return {"hidden_states": states, "last_hidden_state": states[-1], "lengths": output.lengths_B}


class UpstreamExpert(nn.Module):
    """An :class:`Encoder` behind s3prl's contract: a list of waveforms in, a dictionary of states out.

    ``hidden_states`` follows the model's own convention (``encoder.config.hidden_states``): HuBERT-like models give the
    first layer's input and every layer's output, STaRHuBERT the layers' outputs alone, ARMHuBERT and MaskHuBERT their
    projections.

    The file of a fine-tuned model (``star finetune``) also answers its tasks: :meth:`keyword`,
    :meth:`speaker_embedding`.
    """

    def __init__(self, encoder: Encoder, source: str = "", heads: MultitaskModel | None = None, **_):
        super().__init__()
        self.encoder, self.source = encoder, source
        self._answers = (heads,)  # in a tuple: its encoder is this one, and s3prl is to see one

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples from one frame to the next."""
        return self.encoder.config.stride

    @property
    def digest(self) -> str:
        """sha256 of configuration and weights: the identity of the model in caches and records."""
        return checkpoint.digest(self.encoder)

    def frames(self, samples):
        """Frames of a waveform of ``samples`` samples (a number or an integer tensor)."""
        return self.encoder.config.frames(samples)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Encode waveforms of any lengths: 1-D, floats at 16 kHz, not normalised, on any device.

        Returns ``hidden_states`` (list of B x T x D), ``last_hidden_state`` (the last of them, B x T x D) and
        ``lengths`` (valid frames, B). Frames past an utterance's length repeat its last valid one, as s3prl fills up
        the frame that it counts beyond them, so that an utterance gives the same alone and in a batch (not with
        ``reference_padding``: there they are as the reference leaves them). A waveform shorter than one frame
        (``config.receptive_field``, 400 samples) is padded with zeros to it.

        Raises :class:`StarError` for an empty list, an empty waveform, or one that is not 1-D floating point.
        """
        waveforms_BN, lengths_B = self._batch(wavs)
        output = self.encoder(waveforms_BN, lengths_B)
        states = self.encoder.exposed(output)
        if not self.encoder.reference_padding:
            states = [filled(x_BTD, output.lengths_B) for x_BTD in states]
        return {"hidden_states": states, "last_hidden_state": states[-1], "lengths": output.lengths_B}

    def stream(self) -> UpstreamStream:
        """A waveform that comes in pieces, of a model that was distilled to stream. Raises :class:`StarError` for any
        other."""
        return UpstreamStream(self.encoder)

    def classify(self, task: str, wav: Tensor) -> dict[str, float]:
        """Every label of a fine-tuned model's head ``task`` with its share of one, the most likely first.

        wav: one 1-D waveform at 16 kHz. Raises :class:`StarError` where the model has no such head.
        """
        model, x_E = self._vector(task, wav)
        if not model.labels[task]:
            raise StarError(f"{task}: that head answers with a vector; ask speaker_embedding(wav, {task!r})")
        with torch.no_grad():
            shares = cast(Any, model.head(task).loss).logits(x_E[None])[0].softmax(0)
        order = shares.argsort(descending=True).tolist()
        return {model.labels[task][i]: float(shares[i]) for i in order}

    def keyword(self, wav: Tensor) -> str:
        """What is said in a waveform (1-D, 16 kHz), one of the keyword head's labels; :meth:`classify` gives every
        label's share."""
        return next(iter(self.classify("keyword", wav)))

    def speaker_embedding(self, wav: Tensor, task: str = "speaker") -> Tensor:
        """The speaker of a waveform (1-D, 16 kHz) as a vector of length 1: the cosine of two vectors is high for one
        speaker."""
        return nn.functional.normalize(self._vector(task, wav)[1], dim=0)

    def _vector(self, task: str, wav: Tensor) -> tuple[MultitaskModel, Tensor]:
        (model,) = self._answers
        if model is None or task not in model.heads:
            there = "no heads" if model is None else f"the heads {', '.join(model.heads)}"
            raise StarError(
                f"{self.source or 'this model'}: has {there}, not {task!r}; star finetune makes a model with them"
            )
        waveforms_BN, _ = self._batch([wav])
        with torch.no_grad():
            model.heads.to(waveforms_BN.device)
            return model, model(task, waveforms_BN, None)[0]

    def _batch(self, wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if isinstance(wavs, Tensor) or not len(wavs):
            raise StarError(
                f"expected a list with at least one 1-D waveform, got {type(wavs).__name__}"
                + (" of none" if not len(wavs) else "")
            )
        for i, wav in enumerate(wavs):
            if not isinstance(wav, Tensor) or wav.dim() != 1 or not wav.is_floating_point():
                shown = f"{wav.dtype} of shape {list(wav.shape)}" if isinstance(wav, Tensor) else type(wav).__name__
                raise StarError(f"waveform {i}: expected a 1-D floating-point tensor at 16 kHz, got {shown}")
            if not len(wav):
                raise StarError(f"waveform {i}: empty")
        weight = self.encoder.norm.weight
        # a half model normalises the waveform in fp32, and rounds afterwards
        kind = torch.promote_types(weight.dtype, torch.float32)
        waveforms_BN = nn.utils.rnn.pad_sequence([w.to(weight.device, kind) for w in wavs], batch_first=True)
        return waveforms_BN, torch.tensor([len(w) for w in wavs], device=weight.device)


def load(source: str | Path, config: str | Path | None = None, reference_padding: bool = False) -> UpstreamExpert:
    """The upstream of any name or file: a torch.hub name of ours, a known published checkpoint, a file or folder in any
    known format.

    ``config`` is the yaml of the formats that have one. ``reference_padding`` brings back the padded statistics of
    fairseq and transformers (see :class:`Encoder`). In eval mode; its parameters may be trained.
    """
    if checkpoint.is_single(source) and config is None:
        model = export.load(source, reference_padding)
        return UpstreamExpert(model.encoder, str(source), model).eval()
    encoder = sources.load(source, config=config, reference_padding=reference_padding)
    return UpstreamExpert(encoder.requires_grad_(True), str(source)).eval()


def filled(x_BTD: Tensor, frames_B: Tensor) -> Tensor:
    """The last valid frame in the place of what follows it."""
    last_B1D = x_BTD.gather(1, (frames_B - 1)[:, None, None].expand(-1, 1, x_BTD.shape[2]))
    return torch.where(valid_mask(frames_B, x_BTD.shape[1])[..., None], x_BTD, last_B1D)


_ABOUT = {
    "star_mini": "The small STaR student that ships with the package (offline; for trying things out).",
    "star_mini_mel": "The small STaR student with a log-mel front end that ships with the package (offline).",
    "star_mini_stream": "The small STaR student that streams and ships with the package (offline).",
    "star_small": "The larger STaR student that ships with the package, 3.9 M parameters (offline).",
    "star_mini_teacher": "The small HuBERT-like teacher that ships with the package (offline).",
    "star_hubert": "STaRHuBERT, 22.31 M parameters (Jang et al., ICASSP 2024).",
    "star_hubert_l": "STaRHuBERT-L, 26.63 M parameters (Jang et al., ICASSP 2024).",
    "star_hubert_s": "STaRHuBERT-S, 14.1 M parameters; layer sizes are our choice.",
    "star_hubert_xs": "STaRHuBERT-XS, 9.39 M parameters; layer sizes are our choice.",
    "star_wavlm": "STaRWavLM, STaRHuBERT with WavLM Base as its teacher, 22.3 M parameters (its authors' page).",
}


def _entry(name: str) -> Callable[..., UpstreamExpert]:
    """The entry of a name in :data:`_ABOUT`; one that does not ship with the package has a recipe of the same name."""

    def entry(
        ckpt: str | None = None,
        model_config: str | None = None,
        pretrained: bool = True,
        reference_padding: bool = False,
        **_,
    ):
        if ckpt is not None:
            return load(ckpt, model_config, reference_padding)
        if pretrained:
            return load(name, reference_padding=reference_padding)
        if name in SHIPPED:
            raise StarError(f"{name}: ships with its weights; leave out pretrained=False")
        from ..training import recipe as recipes

        return UpstreamExpert(
            Encoder(recipes.load(name).student_config(), reference_padding), f"{name} (random weights)"
        ).eval()

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"{_ABOUT[name]}\n\n"
        "ckpt: a file or folder that takes the place of the known weights (model_config: its yaml, where the format "
        "has one).\n"
        + ("" if name in SHIPPED else "pretrained: False builds the architecture with random weights.\n")
        + "reference_padding: group-norm statistics over the padding too, as fairseq and transformers compute them."
    )
    return entry


def star_local(
    ckpt: str, model_config: str | None = None, config: str | None = None, reference_padding: bool = False, **_
):
    """An upstream from a file or folder in any known format; ``config`` (or s3prl's ``model_config``) is its yaml,
    where it has one."""
    return load(ckpt, config or model_config, reference_padding)


ENTRIES: dict[str, Callable[..., UpstreamExpert]] = {name: _entry(name) for name in _ABOUT} | {"star_local": star_local}
"""The names of torch.hub (hubconf.py) and s3prl (:func:`register`)."""


def register() -> list[str]:
    """Make the names of :data:`ENTRIES` known to s3prl in this process, and return them.

    Then ``s3prl.nn.S3PRLUpstream("star_mini")`` and ``S3PRLUpstream("star_local", path_or_url=FILE)`` work, and so do
    the names in s3prl's problems and in its ``run_downstream``. Call it again in every process that builds or reloads
    an upstream by name.
    """
    from .. import compat

    compat.apply()
    from s3prl import hub

    for name, entry in ENTRIES.items():
        setattr(hub, name, entry)
    return list(ENTRIES)
