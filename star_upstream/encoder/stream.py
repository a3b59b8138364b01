"""A waveform piece by piece: the frames that the whole waveform has, as soon as they can be known.

:class:`StreamStep` is one step as a function of samples and state, all of whose shapes are constant: it takes as many
samples as a chunk of frames has, and gives a chunk of frames. :class:`Stream` cuts pieces of any size into steps.

Every stage counts its places from the start of the waveform. Those before the start and after the end are computed like
any other, from zeros, and hidden from what comes after, as padding is in a batch; so the first steps, which fill the
windows, and the last ones are like all others.

Shapes: B utterances, N samples of a step (or of several), T frames, C channels, D width, E inner width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import StarError
from .chunked import Chunks
from .config import EncoderConfig
from .frontend import ChannelNorm, before_waveform, normalize_running
from .mel import HOP, WINDOW, LogMel
from .output import EncoderOutput
from .position import reach

UNKNOWN = 2**40
"""Samples of a waveform that has not ended."""
TOGETHER = 32
"""Steps that are taken at once where a piece is long."""


class Stage(NamedTuple):
    """A window that slides over the steps in time of the stage before: output o sees ``kernel`` steps from o x stride -
    padding on."""

    kernel: int
    stride: int
    padding: int

    def known(self, steps: int) -> int:
        """Outputs that are known when so many steps are."""
        return (steps + self.padding - self.kernel) // self.stride + 1

    def held(self, steps: int) -> int:
        """Steps that are known, and that the next output needs; below 0: so many to come that it does not need."""
        return steps - (self.known(steps) * self.stride - self.padding)


@dataclass(frozen=True)
class Plan:
    """Where each stage stands before the first step."""

    samples: int
    """A step's."""
    start: int
    """Place of the first step's first sample: 0 or before, so that a chunk and its look-ahead are known exactly when a
    step ends."""
    stages: tuple[Stage, ...]
    places: tuple[int, ...]
    """Place of the next output of each stage."""
    held: tuple[int, ...]

    @classmethod
    def of(cls, config: EncoderConfig) -> Plan:
        samples = config.chunk * config.stride
        start = -(-config.samples_for(config.look_ahead) % samples)
        mel = config.frontend == "mel"
        stages = [Stage(WINDOW, HOP, 0)] if mel else []
        stages += [Stage(kernel, stride, kernel // 2 if mel else 0) for _, kernel, stride in config.conv_layers]
        places, held, steps = [], [], start
        for stage in stages:
            held.append(stage.held(steps))
            steps = stage.known(steps)
            places.append(steps)
        return cls(samples, start, tuple(stages), tuple(places), tuple(held))


class StreamStep(nn.Module):
    """One step, or several at once, of a chunked :class:`~.encoder.Encoder`."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder, self.plan, config = encoder, Plan.of(encoder.config), encoder.config
        self.frame = self.plan.places[-1] - config.look_ahead
        """Place of the first frame that the first step gives."""

    def begin(self, batch: int = 1) -> list[Tensor]:
        """The state before the first step."""
        config, plan = self.encoder.config, self.plan
        weight = self.encoder.norm.weight
        state = [torch.zeros((), dtype=torch.long, device=weight.device)]
        if config.normalize_waveform:
            state.append(before_waveform(weight.new_zeros(batch, 1)))
        channels = [channels for channels, _, _ in config.conv_layers]
        inputs = [1, config.mel_bins, *channels] if config.frontend == "mel" else [1, *channels]
        for i, held in enumerate(plan.held):
            wide = config.frontend == "mel" and i == 0
            tail_BCT = weight.new_zeros(batch, inputs[i], max(held, 0))
            state.append(tail_BCT.float() if wide and weight.dtype != torch.float64 else tail_BCT)
            norm = self._norm(i)
            if norm is not None:
                state.append(norm.before(weight.new_zeros(batch, inputs[i + 1], 1)))
        frames = [reach(config), config.look_ahead, config.look_ahead]
        state += [weight.new_zeros(batch, count, config.width) for count in frames]
        for layer, heads in enumerate(config.heads):
            kept = 0 if not heads else 1 if config.reuse_attention and config.reuse_attention[layer] else 2
            state += [weight.new_zeros(batch, config.left_context, heads * config.head_width) for _ in range(kept)]
        return [x.contiguous() for x in state]

    def _norm(self, stage: int) -> LogMel | ChannelNorm | None:
        """The statistics that run behind a stage."""
        front = self.encoder.frontend
        conv = stage - (front.mel is not None)
        if conv < 0:
            return cast(LogMel, front.mel)
        norm = front.norms[conv] if conv < len(front.norms) else None
        return norm if isinstance(norm, ChannelNorm) else None

    def forward(self, samples_BN: Tensor, end_B: Tensor, state: Sequence[Tensor]) -> tuple[EncoderOutput, list[Tensor]]:
        """The next chunk of frames (for N = ``plan.samples`` samples; for a multiple, as many chunks), and the state
        after it.

        end_B: samples of the whole waveform, :data:`UNKNOWN` before its end. After it, samples are 0. The first frame
        of step i is frame ``self.frame + i * chunk`` of the waveform; only those of the waveform mean anything.
        """
        encoder, config, front, plan = self.encoder, self.encoder.config, self.encoder.frontend, self.plan
        before, after = iter(state), []
        done = next(before)
        steps = samples_BN.shape[1] // plan.samples
        after.append(done + steps)

        def valid(place: int, each: int, size: int, count_B: Tensor) -> Tensor:
            """Which of ``size`` places are the waveform's; the first is at ``place``, and ``each`` later a step."""
            place_T = torch.arange(size, device=samples_BN.device) + (place + done * each)
            return (place_T >= 0) & (place_T < count_B[:, None])

        count_B = end_B.clamp(min=config.receptive_field)
        if config.normalize_waveform:
            mask_BN = valid(plan.start, plan.samples, samples_BN.shape[1], count_B)
            samples_BN, moments = normalize_running(samples_BN, mask_BN, next(before), config.normalize_epsilon)
            after.append(moments)
        frames_B, count_B = config.feature_frames(count_B), config.conv_inputs(count_B)
        x_BCT, each = samples_BN[:, None], plan.samples
        for i, (stage, place, held) in enumerate(zip(plan.stages, plan.places, plan.held)):
            conv = i - (front.mel is not None)
            tail_BCT, norm, each = next(before), self._norm(i), each // stage.stride
            x_BCT = torch.cat([tail_BCT, x_BCT.to(tail_BCT.dtype)], -1)[..., max(-held, 0) :]
            after.append(x_BCT[..., steps * each * stage.stride :])
            if conv < 0:
                x_BCT = cast(LogMel, front.mel).energies(x_BCT[:, 0])
            else:
                module = cast(nn.Conv1d, front.convs[conv])
                x_BCT = F.conv1d(x_BCT, module.weight, module.bias, module.stride)
                count_B = config.conv_outputs(conv, count_B)
            mask_BT = valid(place, each, steps * each, count_B)
            if norm is not None:
                x_BCT, moments = norm.normalise_running(x_BCT, mask_BT, next(before))
                after.append(moments)
            elif 0 <= conv < len(front.norms):
                x_BCT = front.norms[conv](x_BCT, None)
            if conv >= 0:
                x_BCT = F.gelu(x_BCT)
            if front.padded:
                x_BCT = x_BCT.masked_fill(~mask_BT[:, None], 0.0)
        features_BTD = front.project(x_BCT)
        place, size = plan.places[-1], steps * config.chunk
        history = reach(config)
        x_BTD = features_BTD * valid(place, config.chunk, size, frames_B)[..., None]
        line_BTD = torch.cat([next(before), x_BTD], 1)
        after.append(line_BTD[:, size:])
        mask_BT = valid(place - history, config.chunk, history + size, frames_B)
        x_BTD = torch.cat([next(before), encoder.positioned(line_BTD, mask_BT, history=True)], 1)
        features_BTD = torch.cat([next(before), features_BTD], 1)
        after += [x_BTD[:, size:], features_BTD[:, size:]]
        chunks = Chunks(
            config,
            valid(self.frame, config.chunk, size + config.look_ahead, frames_B),
            valid(self.frame - config.left_context, config.chunk, config.left_context, frames_B),
            list(before),
        )
        outputs, _ = encoder.transformed(chunks.split(x_BTD), None, chunks)
        after += chunks.after
        answer = encoder.answer(
            [x_BTD[:, :size], *outputs], features_BTD[:, :size], frames_B.new_full(frames_B.shape, size)
        )
        return answer, after


class Stream:
    """A waveform, or ``batch`` of one length at once, that comes in pieces (:meth:`.encoder.Encoder.stream`).

    ``latency_ms`` and ``window_ms`` of the encoder's configuration say when a frame comes. What is kept does not grow.
    """

    def __init__(self, encoder: Any, batch: int = 1):
        if encoder.config.attention != "chunked":
            raise StarError(
                "this model attends to whole utterances and cannot stream; distil one with attention: chunked (recipe "
                "star_mini_stream)"
            )
        if encoder.training:
            raise StarError("a model streams in eval mode; call its eval()")
        self.step, self.batch = StreamStep(encoder), batch
        self.state = self.step.begin(batch)
        self.samples = 0
        """So many have been pushed."""
        self.frames = 0
        """So many have been given."""
        self.steps, self.flushed = 0, False
        self.waiting_BN = torch.zeros(batch, -self.step.plan.start, device=encoder.norm.weight.device)

    def push(self, samples: Tensor | np.ndarray) -> EncoderOutput:
        """The frames that can be known since these samples came, none or more.

        samples: N floats at 16 kHz, or batch x N; any N, also 0.
        """
        if self.flushed:
            raise StarError("this stream was flushed, and its waveform has ended; stream() begins another")
        found = torch.as_tensor(samples)
        piece_BN = found[None] if found.dim() == 1 else found
        if not found.is_floating_point() or piece_BN.dim() != 2 or piece_BN.shape[0] != self.batch:
            raise StarError(
                f"push: expected floats at 16 kHz, {'N' if self.batch == 1 else f'{self.batch} x N'} of them, got "
                f"{found.dtype} of shape {list(found.shape)}"
            )
        self.samples += piece_BN.shape[1]
        kind = torch.promote_types(self.step.encoder.norm.weight.dtype, torch.float32)
        self.waiting_BN = torch.cat([self.waiting_BN, piece_BN.to(self.waiting_BN.device, kind)], 1)
        return self._run(UNKNOWN)

    def flush(self) -> EncoderOutput:
        """The rest: the waveform has ended. One shorter than a frame's window is filled up with zeros, as ever."""
        config, plan = self.step.encoder.config, self.step.plan
        self.flushed = True
        steps = -((self.step.frame - config.frames(self.samples)) // config.chunk) - self.steps
        missing = steps * plan.samples - self.waiting_BN.shape[1]
        self.waiting_BN = F.pad(self.waiting_BN, (0, max(missing, 0)))
        return self._run(self.samples)

    @torch.no_grad()
    def _run(self, end: int) -> EncoderOutput:
        config, each, outputs = self.step.encoder.config, self.step.plan.samples, list[EncoderOutput]()
        total = config.frames(end)
        first, given = self.step.frame + self.steps * config.chunk, self.frames
        while self.waiting_BN.shape[1] >= each and self.frames < total:
            steps = min(self.waiting_BN.shape[1] // each, TOGETHER)
            taken_BN, self.waiting_BN = self.waiting_BN.split(
                [steps * each, self.waiting_BN.shape[1] - steps * each], 1
            )
            end_B = torch.full((self.batch,), end, device=taken_BN.device)
            output, state = self.step(taken_BN, end_B, self.state)
            outputs.append(output)
            self.state = [x.clone() for x in state]  # a view would keep the whole that it is of
            self.steps += steps
            self.frames = max(self.frames, min(self.step.frame + self.steps * config.chunk, total))
        self.waiting_BN = self.waiting_BN.clone()
        return _joined(outputs, given - first, self.frames - first) if outputs else self._nothing()

    def _nothing(self) -> EncoderOutput:
        encoder = self.step.encoder
        x_BTD = encoder.norm.weight.new_zeros(self.batch, 0, encoder.config.width)
        frames_B = torch.zeros(self.batch, dtype=torch.long, device=x_BTD.device)
        return cast(EncoderOutput, encoder.answer([x_BTD] * (encoder.config.layers + 1), x_BTD, frames_B))


def _joined(parts: list[EncoderOutput], first: int, last: int) -> EncoderOutput:
    """Frames ``first`` to ``last`` of all, one behind the other."""

    def join(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors, 1)[:, first:last]

    def join_each(lists: Iterable[list[Tensor] | None]) -> list[Tensor]:
        return [join(*tensors) for tensors in zip(*(tensors or [] for tensors in lists))]

    one = parts[0]
    return one._replace(
        states=join_each(part.states for part in parts),
        lengths_B=torch.full_like(one.lengths_B, last - first),
        features_BTD=join(*(part.features_BTD for part in parts)),
        projections=one.projections and join_each(part.projections for part in parts),
        predictions=one.predictions and join_each(part.predictions for part in parts),
        last_BTD=join(*(cast(Tensor, part.last_BTD) for part in parts)),
    )
