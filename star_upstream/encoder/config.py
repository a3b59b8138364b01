"""EncoderConfig: everything that tells one speech encoder from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from .. import strict
from ..errors import StarError
from .mel import HOP, RATE, WINDOW

if TYPE_CHECKING:
    PerLayer = tuple[int, ...]
    Convs = tuple[tuple[int, int, int], ...]
else:
    PerLayer = int | tuple[int, ...]  # a number may be given for all layers; stored is always a tuple
    Convs = tuple[tuple[int, int, int], ...] | None  # None is never stored

Count = TypeVar("Count", int, torch.Tensor)
"""Samples or frames: of one utterance, or an integer tensor of many."""

HUBERT_CONVS = ((512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 2, 2), (512, 2, 2))
CONVS = {
    "waveform": HUBERT_CONVS,
    "light": ((64, 40, 20), (128, 7, 4), (512, 4, 4)),
    "mel": ((512, 3, 1), (512, 3, 2)),
}
"""What ``conv_layers`` stands for where it is left out, by front end. All have HuBERT's frames: one every 320 samples,
centred on the same ones."""

HiddenStates = Literal["all", "features", "layers", "projections", "last"]


@dataclass(frozen=True)
class RelativePosition:
    """WavLM's gated relative position bias (Chen et al. 2022, section III-B)."""

    buckets: int = 320
    max_distance: int = 800
    total_heads: int = 12
    """Heads of the embedding table and of the gates, before any head was pruned."""
    kept_heads: tuple[tuple[int, ...], ...] | None = None
    """Per layer, which of the ``total_heads`` survive; None keeps all of them."""


@dataclass(frozen=True)
class EncoderConfig:
    """One configuration for teachers, students, pruned students and published checkpoints.

    Per-layer values (``heads``, ``ffn``) may be given as one number for all layers; they are stored as a tuple.
    Zero heads leave a layer's attention out, zero FFN units its FFN. Defaults are HuBERT Base's.
    """

    frontend: Literal["waveform", "light", "mel"] = "waveform"
    """What the convolutions of the front end read: the waveform; the waveform in two or three large strides
    (``light``); or its log-mel frames (25 ms windows, one every 160 samples)."""
    mel_bins: int = 80
    conv_layers: Convs = None  # type: ignore[assignment]
    """(channels, kernel, stride) of each convolution of the front end; None: :data:`CONVS`. Over log-mel frames
    kernels are odd, and zeros at both ends keep frame t centred on log-mel frame t x stride: with strides that multiply
    to 2, on HuBERT's frame t, at any length."""
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    """``group``: one group a channel, on the first convolution only; ``layer``: LayerNorm over channels on each."""
    feature_scale: bool = False
    """One factor a channel on the last convolution (DPHuBERT keeps the soft part of its channel gates there)."""
    normalize_waveform: bool = False
    """Zero mean and unit variance of each utterance, over its valid samples."""
    statistics: Literal["utterance", "running"] = "utterance"
    """Over what the waveform, log-mel frames and (``conv_norm: group``) the first convolution's channels are
    normalised: the whole utterance, or what of it has come so far, as a stream can."""
    reference_frames: Literal["convolutions", "share"] = "convolutions"
    """How the authors' code counts the valid frames of a padded utterance, of effect with ``reference_padding`` alone:
    by the convolutions, or as its share of the batch's frames, rounded up (LightHuBERT, as fairseq's HuBERT)."""
    normalize_epsilon: float = 1e-5
    """Added to the variance: 1e-5 in fairseq, 1e-7 in transformers."""
    projection: bool = True
    """A linear map from the last convolution's channels to ``width``; without it the two must be equal."""
    projection_norm: bool = True
    width: int = 768
    attention: Literal["full", "chunked"] = "full"
    """Which frames a frame attends to: all; or those of its chunk, ``left_context`` before the chunk and ``look_ahead``
    after it (:mod:`.chunked`). A chunked model streams: its positional convolution sees no frame to come."""
    chunk: int = 16
    """Frames; so are the next two, all three of effect with ``attention: chunked`` alone."""
    left_context: int = 64
    look_ahead: int = 4
    position_kernel: int = 128
    position_groups: int = 16
    position_norm: Literal["weight", "batch", "layer"] = "weight"
    """What the positional convolution is normalised by: its weights (wav2vec 2.0), a batch norm before it
    (mHuBERT-147), or a LayerNorm after each of ``position_layers`` convolutions (data2vec)."""
    position_layers: int = 1
    time_reduction: int = 1
    """Frames that a convolution merges into one before the first layer (FitHuBERT, Lee et al. 2022, section 2.3)."""
    upsampling: Literal["none", "heads", "last"] = "none"
    """Where a transposed convolution undoes ``time_reduction``: in a head on every layer's output (FitHuBERT), or once,
    after the last layer."""
    layers: int = 12
    heads: PerLayer = 12  # type: ignore[assignment]
    head_width: int = 64
    ffn: PerLayer = 3072  # type: ignore[assignment]
    norm: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-5
    relative_position: RelativePosition | None = None
    reuse_attention: tuple[bool, ...] | None = None
    """Per layer: take the attention map of the layer before instead of computing one (ARMHuBERT)."""
    reuse_softmax: bool = False
    """A reused map goes through softmax once more, as in the published ARMHuBERT models, which were trained so."""
    adapter: int = 0
    """Inner width of a bottleneck after every layer of a pre-norm model (MMS); 0 has none."""
    output_projection: int = 0
    """Width of a linear head on every layer's output (ARMHuBERT, MaskHuBERT); 0 has none."""
    prediction_layers: tuple[int, ...] = ()
    """Teacher layers (from 1) that heads on the last state predict: linear to one ``width`` each, GELU, one linear map
    each (DistilHuBERT, Chang et al. 2022, section 3; Kerpicci et al. 2022 keep the heads after distillation)."""
    prediction_inner: int = 0
    """Channels of a prediction head between its two linear maps; 0: ``width``."""
    prediction_width: int = 0
    """Channels of a prediction, the teacher's width; 0: ``width``."""
    hidden_states: HiddenStates = "all"
    """What the model gives SUPERB: first-layer input and every layer's output; the projected CNN output and every
    layer's output (DPHuBERT); layer outputs alone; the heads' outputs; or one state, the last layer's output
    (DistilHuBERT as its authors evaluate it), through its head where there are heads (FitHuBERT)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feature_dropout: float = 0.0
    """On the projected CNN output."""
    feature_gradient: float = 1.0
    """Times so much, the gradient reaches the convolutions in training (fairseq's ``feature_grad_mult``); 0 leaves them
    as they are."""

    scale_layer_gradients: bool = False
    """In training the gradient of layer l's output (l from 1 to L) counts m = (L - l + 1) / (L - l + 2) times in the
    layer, and what a loss reads there 1 - m times that (ARMHuBERT's ``layer_grad_scale``)."""

    def __post_init__(self) -> None:
        if self.conv_layers is None:
            object.__setattr__(self, "conv_layers", CONVS[self.frontend])
        if not self.conv_layers:
            raise StarError("conv_layers: at least one convolution is needed")
        if self.frontend == "light" and len(self.conv_layers) not in (2, 3):
            raise StarError(
                f"conv_layers: frontend 'light' has two or three convolutions, got {len(self.conv_layers)}; more of "
                "them are frontend 'waveform'"
            )
        for i, layer in enumerate(self.conv_layers):
            if min(layer) < 1:
                raise StarError(f"conv_layers[{i}]: channels, kernel and stride must be 1 or more, got {list(layer)}")
            if self.frontend == "mel" and layer[1] % 2 == 0:
                raise StarError(
                    f"conv_layers[{i}]: kernels over log-mel frames must be odd (frontend: mel), got {list(layer)}"
                )
        strict.within(
            self, "[1, inf)", "mel_bins", "width", "position_kernel", "position_groups", "position_layers",
            "head_width", "chunk", "time_reduction",
        )  # fmt: skip
        strict.within(
            self, "[0, inf)", "left_context", "look_ahead", "adapter", "output_projection", "prediction_inner",
            "prediction_width",
        )  # fmt: skip
        strict.within(self, "[0, 1000]", "layers")  # a damaged number would be counted to
        strict.within(self, "[0, inf)", "norm_epsilon", "normalize_epsilon")
        if self.adapter and self.norm == "post":
            raise StarError("adapter: only models with norm 'pre' have one")
        if self.position_layers > 1 and self.position_norm != "layer":
            raise StarError(
                f"position_layers: {self.position_layers} convolutions need position_norm 'layer', got "
                f"{self.position_norm!r}"
            )
        strict.within(self, "[0, 1)", "dropout", "attention_dropout", "activation_dropout", "feature_dropout")
        strict.within(self, "[0, 1]", "feature_gradient")
        if self.width % self.position_groups:
            raise StarError(f"position_groups: {self.position_groups} does not divide width {self.width}")
        if not self.projection and self.conv_layers[-1][0] != self.width:
            raise StarError(
                f"projection: needed, since the last convolution has {self.conv_layers[-1][0]} channels and width is "
                f"{self.width}"
            )
        for name in ("heads", "ffn"):
            value = getattr(self, name)
            per_layer = (value,) * self.layers if isinstance(value, int) else tuple(value)
            if len(per_layer) != self.layers or any(v < 0 for v in per_layer):
                raise StarError(
                    f"{name}: expected {self.layers} numbers of 0 or more (one a layer), got {list(per_layer)}"
                )
            object.__setattr__(self, name, per_layer)
        if any(n < 1 for n in self.prediction_layers) or len(set(self.prediction_layers)) != len(
            self.prediction_layers
        ):
            raise StarError(
                "prediction_layers: expected different layers of the teacher, counted from 1, got "
                f"{list(self.prediction_layers)}"
            )
        self._check_reuse()
        self._check_relative_position()
        self._check_time_reduction()
        self._check_streaming()
        if self.hidden_states == "projections" and not self.has_heads:
            raise StarError("hidden_states: 'projections' needs output_projection")
        if self.hidden_states in ("layers", "projections", "last") and not self.layers:
            raise StarError(f"hidden_states: {self.hidden_states!r} needs one layer or more; take 'all'")

    def _check_time_reduction(self) -> None:
        if self.upsampling != "none" and (self.time_reduction == 1 or not self.layers):
            raise StarError(f"upsampling: {self.upsampling!r} needs a time_reduction of 2 or more, and a layer")
        if self.upsampling == "last" and self.output_projection:
            raise StarError("upsampling: 'last' goes without output_projection; heads on every layer take 'heads'")
        if self.time_reduction > 1 and self.hidden_states not in self.reduced_states:
            raise StarError(
                f"hidden_states: {self.hidden_states!r} would mix frame rates under time_reduction "
                f"{self.time_reduction} and upsampling {self.upsampling!r}; "
                f"take {' or '.join(map(repr, self.reduced_states))}"
            )

    def _check_streaming(self) -> None:
        if self.attention != "chunked":
            return
        if self.time_reduction > 1:
            raise StarError("time_reduction: attention 'chunked' goes with 1 alone")
        if self.statistics == "running":
            return
        over = {
            "log-mel frames are": self.frontend == "mel",
            "the waveform is (normalize_waveform)": self.normalize_waveform,
            "the first convolution's channels are (conv_norm)": self.conv_norm == "group",
        }
        if whole := [part for part, normalised in over.items() if normalised]:
            raise StarError(
                f"statistics: attention 'chunked' does not know the whole utterance, over which {' and '.join(whole)} "
                "normalised; take statistics 'running'" + (", or conv_norm 'layer'" if whole == list(over)[2:] else "")
            )

    def _check_reuse(self) -> None:
        if self.reuse_attention is None:
            return
        if len(self.reuse_attention) != self.layers:
            raise StarError(
                f"reuse_attention: expected {self.layers} values (one a layer), got {len(self.reuse_attention)}"
            )
        for i, reuse in enumerate(self.reuse_attention):
            if reuse and (i == 0 or self.heads[i] != self.heads[i - 1] or not self.heads[i]):
                raise StarError(
                    f"reuse_attention[{i}]: needs a layer before it with the same number of heads (1 or more)"
                )

    def _check_relative_position(self) -> None:
        position = self.relative_position
        if position is None:
            return
        if position.buckets < 4 or position.max_distance <= position.buckets // 4:
            raise StarError(
                f"relative_position: needs 4 buckets or more and a max_distance above a quarter of them, "
                f"got {position.buckets} and {position.max_distance}"
            )
        if position.total_heads * self.head_width != self.width:
            raise StarError(
                f"relative_position.total_heads: {position.total_heads} heads of {self.head_width} channels do not "
                f"make width {self.width}"
            )
        if position.kept_heads is None:
            if any(h not in (0, position.total_heads) for h in self.heads):
                raise StarError(
                    "relative_position.kept_heads: needed, since some layers have fewer heads than total_heads"
                )
            return
        if len(position.kept_heads) != self.layers:
            raise StarError(f"relative_position.kept_heads: expected {self.layers} lists (one a layer)")
        for i, kept in enumerate(position.kept_heads):
            if (
                len(kept) != self.heads[i]
                or len(set(kept)) != len(kept)
                or any(not 0 <= h < position.total_heads for h in kept)
            ):
                raise StarError(
                    f"relative_position.kept_heads[{i}]: expected {self.heads[i]} different heads below "
                    f"{position.total_heads}, got {list(kept)}"
                )

    @property
    def has_heads(self) -> bool:
        """Whether there is a head on every layer's output."""
        return self.output_projection > 0 or self.upsampling == "heads"

    @property
    def reduced_states(self) -> tuple[str, ...]:
        """The conventions of ``hidden_states`` that give one frame rate where ``time_reduction`` is above 1."""
        if self.upsampling == "none":
            return ("all", "layers", "projections", "last")
        return ("projections", "last") if self.has_heads else ("last",)

    @property
    def exposed(self) -> tuple[int, int]:
        """How many states ``hidden_states`` gives, and the channels of each."""
        if self.hidden_states == "last":
            return 1, self.output_projection or self.width
        if self.hidden_states == "projections":
            return self.layers, self.output_projection or self.width
        return self.layers + (self.hidden_states in ("all", "features")), self.width

    @property
    def stride(self) -> int:
        """Samples from one frame that the model gives to the next; its layers have ``time_reduction`` times that where
        it upsamples."""
        return self._front_end[1] * (self.time_reduction if self.upsampling == "none" else 1)

    @property
    def latency_ms(self) -> float | None:
        """Of a chunked model: how much later than a sample the frame that it lies in is known at most, chunk and
        look-ahead; ``window_ms`` comes on top. None where the whole utterance is needed."""
        return (self.chunk + self.look_ahead) * self.stride * 1e3 / RATE if self.attention == "chunked" else None

    @property
    def window_ms(self) -> float:
        """How far the front end's windows reach beyond the samples of their own frame."""
        return (self.samples_for(1) - self._front_end[1]) * 1e3 / RATE

    def samples_for(self, frames: int) -> int:
        """Samples of an unfinished waveform from which its first ``frames`` frames of the front end are known."""
        for _, kernel, stride in reversed(self.conv_layers):
            frames = (frames - 1) * stride + kernel - (kernel // 2 if self.frontend == "mel" else 0)
        return (frames - 1) * HOP + WINDOW if self.frontend == "mel" else frames

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees; a shorter waveform is padded with zeros to it. Over log-mel frames: those of the
        window that a frame is centred on, since at both ends zeros stand for its neighbours."""
        field, jump = self._front_end
        return field + (self.time_reduction - 1) * jump

    @property
    def _front_end(self) -> tuple[int, int]:
        """Samples that one frame of the front end sees, and from one to the next."""
        mel = self.frontend == "mel"
        field, jump = (WINDOW, HOP) if mel else (1, 1)
        for _, kernel, stride in self.conv_layers:
            field += 0 if mel else (kernel - 1) * jump
            jump *= stride
        return field, jump

    def conv_inputs(self, samples: Count) -> Count:
        """Steps in time of what the first convolution reads, from ``samples`` samples (a number or an integer
        tensor)."""
        shortest = self.receptive_field
        samples = samples.clamp(min=shortest) if isinstance(samples, torch.Tensor) else max(samples, shortest)
        return (samples - WINDOW) // HOP + 1 if self.frontend == "mel" else samples

    def conv_outputs(self, index: int, steps: Count) -> Count:
        """Steps that convolution ``index`` gives for ``steps``: ``(n - kernel) // stride + 1`` where nothing is
        padded."""
        _, kernel, stride = self.conv_layers[index]
        return (steps - (1 if self.frontend == "mel" else kernel)) // stride + 1

    @property
    def conv_input_channels(self) -> int:
        return self.mel_bins if self.frontend == "mel" else 1

    def feature_frames(self, samples: Count) -> Count:
        """Frames of the front end for ``samples`` samples (a number or an integer tensor). A waveform below
        ``receptive_field`` counts as padded to it, an empty one has none."""
        steps = self.conv_inputs(samples)
        for index in range(len(self.conv_layers)):
            steps = self.conv_outputs(index, steps)
        return steps * (samples > 0)

    def output_frames(self, features: Count) -> Count:
        """Frames that the model gives for ``features`` frames of the front end; ``time_reduction`` drops those left
        over."""
        merged = features // self.time_reduction
        return merged if self.upsampling == "none" else merged * self.time_reduction

    def frames(self, samples: Count) -> Count:
        """Frames that the model gives for ``samples`` samples (a number or an integer tensor): one or more for every
        waveform."""
        return self.output_frames(self.feature_frames(samples))

    def check_one_rate(self, where: str) -> None:
        """Raises :class:`StarError` for a model whose layers have not the front end's frame rate, which ``where``
        needs."""
        if self.time_reduction > 1:
            raise StarError(
                f"{where}: compares layers at the front end's frame rate; this model merges {self.time_reduction} "
                "frames before its first layer (time_reduction)"
            )
