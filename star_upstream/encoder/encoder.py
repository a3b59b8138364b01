"""The transformer and the whole encoder.

Shapes: B utterances, N samples, T frames, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, RelativePositionTable
from .chunked import Chunks, whole_chunks
from .config import EncoderConfig
from .frontend import FrontEnd, before_waveform, normalize, normalize_running, scale_gradient, valid_mask
from .output import EncoderOutput, Masked
from .position import positional, reach
from .stream import Stream


class Adapter(nn.Module):
    """A bottleneck after a layer: LayerNorm, linear, ReLU, linear (MMS, Pratap et al. 2023: one set a language)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        output_BTD: Tensor = self.up(F.relu(self.down(self.norm(x_BTD))))
        return output_BTD


class TimeReduction(nn.Conv1d):
    """Merges ``time_reduction`` frames into one (FitHuBERT, section 2.3); frames left over at the end are dropped."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config.width, config.width, config.time_reduction, config.time_reduction)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD.transpose(1, 2)).transpose(1, 2)


class Upsampling(nn.ConvTranspose1d):
    """Undoes :class:`TimeReduction`: one frame becomes ``time_reduction`` frames."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config.width, config.width, config.time_reduction, config.time_reduction)

    def forward(self, x_BTD: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BTD.transpose(1, 2)).transpose(1, 2)


class Layer(nn.Module):
    """One transformer layer. A part that is left out keeps its norm in post-norm models, as pruned checkpoints have
    it."""

    def __init__(self, config: EncoderConfig, index: int):
        super().__init__()
        self.pre_norm = config.norm == "pre"
        width, units = config.width, config.ffn[index]
        attends = config.heads[index] > 0
        self.attention = Attention(config, index) if attends else None
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_epsilon) if attends or not self.pre_norm else None
        self.ffn_in = nn.Linear(width, units) if units else None
        self.ffn_out = nn.Linear(units, width) if units else None
        self.ffn_norm = nn.LayerNorm(width, eps=config.norm_epsilon) if units or not self.pre_norm else None
        self.adapter = Adapter(width, config.adapter) if config.adapter else None
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def _ffn(self, x_BTD: Tensor) -> Tensor:
        assert self.ffn_in is not None and self.ffn_out is not None
        inner_BTU = self.activation_dropout(F.gelu(self.ffn_in(x_BTD)))
        output_BTD: Tensor = self.dropout(self.ffn_out(inner_BTU))
        return output_BTD

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        position_HTT: Tensor | None,
        reused_BHTT: Tensor | None,
        need_map: bool,
        chunks: Chunks | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        # absent where a pre-norm model lacks the part itself
        attention_norm, ffn_norm = cast(nn.LayerNorm, self.attention_norm), cast(nn.LayerNorm, self.ffn_norm)
        map_BHTT = None
        if self.attention is not None:
            inner_BTD = attention_norm(x_BTD) if self.pre_norm else x_BTD
            inner_BTD, map_BHTT = self.attention(inner_BTD, mask_BT, position_HTT, reused_BHTT, need_map, chunks)
            x_BTD = x_BTD + self.dropout(inner_BTD)
        if self.pre_norm:
            x_BTD = x_BTD if self.ffn_in is None else x_BTD + self._ffn(ffn_norm(x_BTD))
            return (x_BTD if self.adapter is None else x_BTD + self.adapter(x_BTD)), map_BHTT
        x_BTD = attention_norm(x_BTD)
        return ffn_norm(x_BTD if self.ffn_in is None else x_BTD + self._ffn(x_BTD)), map_BHTT


class PredictionHeads(nn.Module):
    """What the last state says of several layers of the teacher (DistilHuBERT, section 3.1)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width, count = config.width, len(config.prediction_layers)
        inner = config.prediction_inner or width
        self.shared = nn.Linear(width, count * inner)
        self.each = nn.ModuleList(nn.Linear(inner, config.prediction_width or width) for _ in range(count))

    def forward(self, x_BTD: Tensor) -> list[Tensor]:
        return [
            linear(part_BTD)
            for linear, part_BTD in zip(self.each, F.gelu(self.shared(x_BTD)).chunk(len(self.each), -1))
        ]


class Encoder(nn.Module):
    """A speech encoder: waveforms at 16 kHz to the hidden states of every layer.

    By default an utterance gives the same states alone and in a zero-padded batch: group-norm statistics, positional
    convolution and attention see its valid frames only. ``reference_padding`` brings back what fairseq and transformers
    do, whose first group norm averages over the padding too.
    """

    def __init__(self, config: EncoderConfig, reference_padding: bool = False):
        super().__init__()
        self.config, self.reference_padding = config, reference_padding
        self.frontend = FrontEnd(config)
        self.position = positional(config)
        self.relative_position = RelativePositionTable(config.relative_position) if config.relative_position else None
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        head = config.output_projection
        self.time_reduction = TimeReduction(config) if config.time_reduction > 1 else None
        count = {"none": 0, "heads": config.layers, "last": 1}[config.upsampling]
        self.upsampling = nn.ModuleList(Upsampling(config) for _ in range(count)) if count else None
        self.output_projections = (
            nn.ModuleList(nn.Linear(config.width, head) for _ in range(config.layers)) if head else None
        )
        self.predictions = PredictionHeads(config) if config.prediction_layers else None
        self.dropout, self.feature_dropout = nn.Dropout(config.dropout), nn.Dropout(config.feature_dropout)
        # no weight: nothing is computed with it but what a masking distillation asks for
        self.mask_vector: Tensor | None
        self.register_buffer("mask_vector", None, persistent=False)
        reuse = (*(config.reuse_attention or (False,) * config.layers), False)
        self._map_needed = [reuse[i + 1] for i in range(config.layers)]
        self.apply(_initialise)
        # the authors of students leave their heads at torch's initial values
        for linear in self.predictions.modules() if self.predictions is not None else self.output_projections or ():
            if isinstance(linear, nn.Linear):
                linear.reset_parameters()

    def forward(
        self,
        waveforms_BN: Tensor,
        lengths_B: Tensor | None = None,
        attention_maps: bool = False,
        masked: Masked | None = None,
    ) -> EncoderOutput:
        """Encode zero-padded waveforms.

        waveforms_BN: B x N floats at 16 kHz, not normalised (the model does it where it was trained so); of any
            floating type, which need not be the model's: a half model gets more out of fp32 waveforms.
        lengths_B: valid samples of each, 1 or more; None takes every sample as valid. One shorter than
            ``config.receptive_field`` counts as padded to it, so that every waveform has a frame.
        attention_maps: also return the maps, which costs B x H x T x T a layer.
        masked: frames that are replaced.
        """
        features_BTD, frames_B = self.features(waveforms_BN, lengths_B)
        return self.contextualize(features_BTD, frames_B, attention_maps, lengths_B is not None, masked)

    def features(self, waveforms_BN: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The front end alone: B x T x D, and the valid frames of each utterance."""
        if waveforms_BN.dim() != 2:
            raise ValueError(f"waveforms must be B x N, got shape {tuple(waveforms_BN.shape)}")
        shortest = self.config.receptive_field
        if waveforms_BN.shape[1] < shortest:
            waveforms_BN = F.pad(waveforms_BN, (0, shortest - waveforms_BN.shape[1]))
        if lengths_B is not None:
            _check_lengths(lengths_B, waveforms_BN)
            lengths_B = lengths_B.clamp(min=shortest)
        if self.config.normalize_waveform:
            if self.config.statistics == "running":
                mask_BN = None if lengths_B is None else valid_mask(lengths_B, waveforms_BN.shape[1])
                before_3B1, epsilon = before_waveform(waveforms_BN), self.config.normalize_epsilon
                waveforms_BN, _ = normalize_running(waveforms_BN, mask_BN, before_3B1, epsilon)
            else:
                waveforms_BN = normalize(waveforms_BN, lengths_B, self.config.normalize_epsilon)
        samples_B = waveforms_BN.new_full((waveforms_BN.shape[0],), waveforms_BN.shape[1], dtype=torch.long)
        if lengths_B is not None:
            samples_B = lengths_B.to(samples_B)
        masked = lengths_B is not None and not self.reference_padding
        features_BTD: Tensor = self.frontend(waveforms_BN, samples_B if masked else None)
        frames_B = self.config.feature_frames(samples_B)
        if lengths_B is not None and self.reference_padding and self.config.reference_frames == "share":
            each = waveforms_BN.shape[1] // features_BTD.shape[1]
            frames_B = ((samples_B + each - 1) // each).clamp(max=features_BTD.shape[1])
        return features_BTD, frames_B

    def contextualize(
        self,
        features_BTD: Tensor,
        frames_B: Tensor,
        attention_maps: bool = False,
        padded: bool = True,
        masked: Masked | None = None,
    ) -> EncoderOutput:
        """Positional convolution and transformer over projected features, ``masked`` after their dropout;
        ``padded=False`` says that every frame is valid."""
        x_BTD, mask_BT = self.feature_dropout(features_BTD), None
        if masked is not None:
            x_BTD = torch.where(masked.mask_BT[..., None], masked.vector_D.to(x_BTD.dtype), x_BTD)
        if padded:
            mask_BT = valid_mask(frames_B, x_BTD.shape[1])
            x_BTD = x_BTD * mask_BT[..., None]
        dropped_BTD, chunks = x_BTD, None
        # the references leave padding to what comes before the convolutions: zero at first, not after a norm
        x_BTD = self.positioned(x_BTD, None if self.reference_padding else mask_BT)
        if self.time_reduction is not None:
            x_BTD = self.time_reduction(self.dropout(x_BTD))
            mask_BT = valid_mask(frames_B // self.config.time_reduction, x_BTD.shape[1]) if padded else None
        states = [x_BTD]
        if self.time_reduction is None:
            x_BTD = self.dropout(x_BTD)
        if self.config.attention == "chunked":
            valid_BT = x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool) if mask_BT is None else mask_BT
            x_BTD, chunks = whole_chunks(self.config, x_BTD, valid_BT)
        outputs, maps = self.transformed(x_BTD, mask_BT, chunks, attention_maps)
        if chunks is not None:
            frames = states[0].shape[1]
            outputs = [x_BTD[:, :frames] for x_BTD in outputs]
            maps = [None if map_NHGK is None else chunks.map(map_NHGK, frames) for map_NHGK in maps]
        return self.answer(states + outputs, features_BTD, frames_B, maps if attention_maps else None, dropped_BTD)

    def positioned(self, x_BTD: Tensor, mask_BT: Tensor | None, history: bool = False) -> Tensor:
        """The first layer's input, of features that are 0 where they are not valid. ``history``: the first frames are
        there for those after them alone (:mod:`.position`), and have no output."""
        position_BTD: Tensor = self.position(x_BTD, mask_BT, history)
        x_BTD = (x_BTD[:, reach(self.config) :] if history else x_BTD) + position_BTD
        return self.norm(x_BTD) if self.config.norm == "post" else x_BTD

    def transformed(
        self, x_BTD: Tensor, mask_BT: Tensor | None, chunks: Chunks | None = None, attention_maps: bool = False
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Every layer's output, and the maps that were made: all of them with ``attention_maps``. With ``chunks``, x
        and maps are chunks, the outputs their frames (:class:`.chunked.Chunks`)."""
        reusable_BHTT: Tensor | None = None
        states: list[Tensor] = []
        maps: list[Tensor | None] = []
        position_HTT = None
        if self.relative_position is not None:
            position_HTT = self.relative_position(x_BTD.shape[1], chunks.left if chunks else 0)
        mask_BT = mask_BT if chunks is None else chunks.mask_NK
        scaled = self.training and self.config.scale_layer_gradients and torch.is_grad_enabled()
        for i, (layer, needed) in enumerate(zip(cast(Iterable[Layer], self.layers), self._map_needed)):
            need = attention_maps or needed
            x_BTD, map_BHTT = layer(x_BTD, mask_BT, position_HTT, reusable_BHTT, need, chunks)
            if needed and not cast(Attention, layer.attention).reuse:
                reusable_BHTT = self._as_reused(cast(Tensor, map_BHTT))
            state_BTD = x_BTD
            if scaled and x_BTD.requires_grad:
                left = self.config.layers - i
                x_BTD = scale_gradient(x_BTD, left / (left + 1))
                state_BTD = scale_gradient(x_BTD, 1 / (left + 1))
            states.append(state_BTD if chunks is None else chunks.join(state_BTD))
            maps.append(map_BHTT)
        return states, maps

    def answer(
        self,
        states: list[Tensor],
        features_BTD: Tensor,
        frames_B: Tensor,
        maps: list[Tensor | None] | None = None,
        dropped_BTD: Tensor | None = None,
    ) -> EncoderOutput:
        """What is made of the first layer's input and every layer's output."""
        if self.config.norm == "pre":
            states = [*states[:-1], self.norm(states[-1])]
        projections = self._heads(states[1:]) if self.config.has_heads else None
        last_BTD = states[-1]
        if self.config.upsampling == "last":
            last_BTD = cast(nn.ModuleList, self.upsampling)[0](last_BTD)
        predictions = None if self.predictions is None else self.predictions(last_BTD)
        return EncoderOutput(
            states=states,
            lengths_B=self.config.output_frames(frames_B),
            features_BTD=features_BTD,
            attentions=maps,
            projections=projections,
            predictions=predictions,
            dropped_BTD=dropped_BTD,
            last_BTD=last_BTD,
        )

    def stream(self, batch: int = 1) -> Stream:
        """A waveform, or ``batch`` of one length, piece by piece. Raises :class:`StarError` for a model that attends to
        whole utterances, and in training mode."""
        return Stream(self, batch)

    def _heads(self, states: list[Tensor]) -> list[Tensor]:
        """Every layer's output at the front end's frame rate, projected."""
        if self.upsampling is not None:
            states = [upsample(x_BTD) for upsample, x_BTD in zip(self.upsampling, states)]
        if self.output_projections is not None:
            states = [head(x_BTD) for head, x_BTD in zip(self.output_projections, states)]
        return states

    def _as_reused(self, map_BHTT: Tensor) -> Tensor:
        """The map as later layers take it. ARMHuBERT's code reads heads x utterances as utterances x heads, so that the
        utterances of a batch exchange their maps; that is only done where its outputs are to be reproduced, and changes
        nothing for one utterance.
        """
        if self.reference_padding and self.config.reuse_softmax:
            return map_BHTT.transpose(0, 1).reshape(map_BHTT.shape)
        return map_BHTT

    def exposed(self, output: EncoderOutput) -> list[Tensor]:
        """The states that this model gives SUPERB, by its ``hidden_states`` convention."""
        if self.config.hidden_states == "projections":
            return cast(list[Tensor], output.projections)
        if self.config.hidden_states == "last":
            return [output.projections[-1] if output.projections else cast(Tensor, output.last_BTD)]
        if self.config.hidden_states == "features":
            valid_BT = valid_mask(output.lengths_B, output.features_BTD.shape[1])
            return [output.features_BTD * valid_BT[..., None], *output.states[1:]]
        return output.states if self.config.hidden_states == "all" else output.states[1:]


def _initialise(module: nn.Module) -> None:
    """fairseq's initial values: normal(0, 0.02) for linear maps, Kaiming normal for convolutions."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)
    elif isinstance(module, nn.Conv1d) and not isinstance(module, TimeReduction):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_lengths(lengths_B: Tensor, waveforms_BN: Tensor) -> None:
    """Other lengths would be taken for all utterances, or count samples that are not there in every mean. Values are
    looked at on the CPU alone, since elsewhere one waits for them, and not while the model is made a graph."""
    batch, samples = waveforms_BN.shape
    if not isinstance(lengths_B, Tensor):
        raise ValueError(f"lengths must be a tensor of {batch} whole numbers, got {type(lengths_B).__name__}")
    if lengths_B.dim() != 1 or lengths_B.shape[0] != batch or lengths_B.is_floating_point():
        raise ValueError(
            f"lengths must be {batch} whole numbers, one a waveform, got {lengths_B.dtype} of shape "
            f"{tuple(lengths_B.shape)}"
        )
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if batch and lengths_B.device.type == "cpu" and not graph and int(lengths_B.max()) > samples:
        raise ValueError(f"lengths: {int(lengths_B.max())} samples of a waveform that has {samples}")
