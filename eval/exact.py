"""Batches encoded when they are asked for, padded as s3prl's trainer pads them: what ``--exact`` takes in the place of a cache.

Upstreams whose statistics run over padding (HuBERT Base and others with group norm) give an utterance other states in a batch than
alone; s3prl trains on the former. Dev and test are encoded in s3prl's batches too, which for most tasks hold one utterance.

Shapes: B utterances, L layers, N samples, T frames, D channels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from star_upstream import audio
from star_upstream.errors import StarError

from .encode import Effects, Window, frames, out_of_memory, waveform
from .upstreams import SHORTEST, Upstream


class Padded:
    """The features of padded batches, in fp32, on the upstream's device; nothing is kept.

    crop: samples of which a training batch has at most so many an utterance, from a random first one.
    eval_batch: utterances that are encoded together for dev and test.

    Raises :class:`StarError` for a file that is not audio, and for a batch that the memory does not hold.
    """

    seconds = 0.0
    """Before training: nothing is encoded there."""

    def __init__(
        self, per_row: list[list[Window]], upstream: Upstream, effects: Effects = (), crop: int | None = None, eval_batch: int = 1
    ):
        self.windows = [row[0] for row in per_row]
        self.upstream, self.effects, self.crop, self.eval_batch = upstream, effects, crop, eval_batch
        for window in self.windows:  # what cannot be read at all shows here, and not after hours
            audio.read(window.path, window.start, 1)
        self._lengths: dict[int, int] = {}
        self._most: int | None = None

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D and B lengths, frames beyond them as the upstream gives them; with ``generator``, of random crops."""
        waves = [self._wave(self.windows[row], generator) for row in rows]
        x_BLTD, lengths_B = self._encode(waves)
        for row, x_LTD, length in zip(rows, x_BLTD, lengths_B):
            if not bool(torch.isfinite(x_LTD[:, :length]).all()):
                raise StarError(f"{self.windows[row].path}: upstream {self.upstream.name} gives NaN or infinite features for it")
        return x_BLTD, lengths_B

    def length(self, row: int) -> int:
        """T of the whole utterance."""
        if row not in self._lengths:
            self._lengths[row] = frames(self.windows[row], self.upstream, self.effects)
        return self._lengths[row]

    def _wave(self, window: Window, generator: torch.Generator | None) -> np.ndarray:
        """As s3prl crops: the sound, after the effects."""
        if generator is not None and window.within:
            first = int(torch.randint(window.within - window.samples + 1, (1,), generator=generator))
            window = replace(window, start=first)
        wave = waveform(window, self.effects)
        spare = 0 if self.crop is None or generator is None else len(wave) - self.crop
        if spare <= 0:
            return wave
        first = int(torch.randint(spare + 1, (1,), generator=generator))
        return wave[first : first + self.crop]

    def _encode(self, waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The batch in parts where memory runs out; the longest waveform is in each, so that the padding is the batch's."""
        longest = max(range(len(waves)), key=lambda i: len(waves[i]))
        others = [i for i in range(len(waves)) if i != longest]
        while True:
            most = max(1, min(len(others), self._most or len(others)))
            try:
                found: dict[int, Tensor] = {}
                for begin in range(0, max(1, len(others)), most):
                    part = [longest, *others[begin : begin + most]]
                    x_BLTD, _ = states(self.upstream, [waves[i] for i in part])
                    found.update(zip(part, x_BLTD))
                lengths_B = torch.tensor([-(-len(wave) // self.upstream.stride) for wave in waves])
                return torch.stack([found[i] for i in range(len(waves))]), lengths_B
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            if self.upstream.device.type == "cuda":  # here, where the exception no longer holds what it was computing
                torch.cuda.empty_cache()
            seconds = len(waves[longest]) / audio.RATE
            if len(others) <= 1 or most == 1:
                raise StarError(
                    f"out of memory on {self.upstream.device}: {min(2, len(waves))} utterances of up to {seconds:.1f} s do not fit "
                    "together; leave out --exact, or use a device with more memory (--device cpu)"
                )
            self._most = most // 2
            print(
                f"{self.upstream.name}: out of memory on {self.upstream.device} with {most + 1} utterances of up to {seconds:.1f} s; "
                f"encoding at most {self._most + 1} at once from here on, padded as the whole batch is",
                file=sys.stderr,
            )


@torch.no_grad()
def states(upstream: Upstream, waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """B x L x T x D and B lengths of one padded batch, in fp32: what ``s3prl.nn.S3PRLUpstream`` makes of it."""
    longest = max(len(wave) for wave in waves)
    added = max(0, SHORTEST - longest)
    inputs = [torch.from_numpy(np.pad(wave, (0, added))).float().to(upstream.device) for wave in waves]
    wanted, kept = (-(-n // upstream.stride) for n in (longest + added, longest))
    x_BLTD = torch.stack([
        torch.stack([upstream._fit(x_TD, wanted)[:kept] for x_TD in state_BTD]).float() for state_BTD in upstream._states(inputs)
    ], 1)  # fmt: skip
    return x_BLTD, torch.tensor([-(-len(wave) // upstream.stride) for wave in waves])
