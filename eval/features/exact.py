"""Batches encoded when they are asked for, padded as s3prl's trainers pad them: what ``--exact`` takes in the place of
a cache.

Upstreams whose statistics run over padding (HuBERT Base and others with group norm) give an utterance other states in a
batch than alone; s3prl trains on the former. Dev and test are encoded in s3prl's batches too, which for most tasks hold
one utterance.

Shapes: B utterances, L layers, N samples, T frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from star_upstream import audio
from star_upstream.errors import StarError
from star_upstream.say import say

from .encode import Effects, Window, out_of_memory, samples_of, waveform
from .upstreams import Upstream, finite


class Padded:
    """The features of padded batches, in fp32, on the upstream's device; nothing is kept.

    crop: samples of which a training batch has at most so many an utterance, from a random first one.
    eval_batch: utterances that are encoded together for dev and test.

    Raises :class:`StarError` for a file that is not audio, and for a batch that the memory does not hold.
    """

    seconds = 0.0
    """Before training: nothing is encoded there."""

    def __init__(
        self,
        per_row: list[list[Window]],
        upstream: Upstream,
        effects: Effects = (),
        crop: int | None = None,
        eval_batch: int = 1,
    ):
        self.windows = [row[0] for row in per_row]
        self.upstream, self.effects, self.crop, self.eval_batch = upstream, effects, crop, eval_batch
        for window in self.windows:  # what cannot be read at all shows here, and not after hours
            audio.read(window.path, window.start, 1)
        self._samples: dict[int, int] = {}
        self._most: int | None = None

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D and B lengths; frames beyond them are zero. With ``generator``, of random crops."""
        waves = [self._wave(self.windows[row], generator) for row in rows]
        x_BLTD, lengths_B = self._encode(waves)
        for row, x_LTD, length in zip(rows, x_BLTD, lengths_B):
            if not finite(x_LTD[:, :length]):
                raise StarError(
                    f"{self.windows[row].path}: upstream {self.upstream.name} gives NaN or infinite features for it"
                )
        return x_BLTD, lengths_B

    def length(self, row: int) -> int:
        """T of the whole utterance, alone."""
        return self.upstream.frames(self.samples(row))

    def samples(self, row: int) -> int:
        """N of the whole utterance, after the effects."""
        if row not in self._samples:
            self._samples[row] = samples_of(self.windows[row], self.effects)
        return self._samples[row]

    def _wave(self, window: Window, generator: torch.Generator | None) -> np.ndarray:
        """As s3prl crops: the sound, after the effects."""
        if generator is not None and window.within:
            first = int(torch.randint(window.within - window.samples + 1, (1,), generator=generator))
            window = replace(window, start=first)
        wave = waveform(window, self.effects)
        if self.crop is None or generator is None or len(wave) <= self.crop:
            return wave
        first = int(torch.randint(len(wave) - self.crop + 1, (1,), generator=generator))
        return wave[first : first + self.crop]

    def _encode(self, waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The batch in parts where memory runs out; the longest waveform is in each, so that the padding is the
        batch's."""
        longest = max(range(len(waves)), key=lambda i: len(waves[i]))
        others = [i for i in range(len(waves)) if i != longest]
        while True:
            most = max(1, min(len(others), self._most or len(others)))
            try:
                found: dict[int, Tensor] = {}
                lengths: dict[int, int] = {}
                for begin in range(0, max(1, len(others)), most):
                    part = [longest, *others[begin : begin + most]]
                    x_BLTD, lengths_B = states(self.upstream, [waves[i] for i in part])
                    found.update(zip(part, x_BLTD))
                    lengths.update(zip(part, lengths_B.tolist()))
                rows = range(len(waves))
                return torch.stack([found[i] for i in rows]), torch.tensor([lengths[i] for i in rows])
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            if self.upstream.device.type == "cuda":  # here, where the exception no longer holds what it was computing
                torch.cuda.empty_cache()
            seconds = len(waves[longest]) / audio.RATE
            if len(others) <= 1 or most == 1:
                raise StarError(
                    f"out of memory on {self.upstream.device}: {min(2, len(waves))} utterances of up to "
                    f"{seconds:.1f} s do not fit "
                    "together; leave out --exact, or use a device with more memory (--device cpu)"
                )
            self._most = most // 2
            say(
                f"{self.upstream.name}: out of memory on {self.upstream.device} with {most + 1} utterances of up to "
                f"{seconds:.1f} s; "
                f"encoding at most {self._most + 1} at once from here on, padded as the whole batch is"
            )


@torch.no_grad()
def states(upstream: Upstream, waves: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """B x L x T x D and B lengths of one padded batch, in fp32: what s3prl's Featurizer makes of it.

    An utterance has round(N / stride) frames, the last of which may be one of the padding (49 of a second alone, 50 in
    a longer batch), and zeros follow.
    """
    given, samples = upstream.run(waves, together=True)
    lengths = [upstream.kept(len(wave), given[0].shape[1], max(samples)) for wave in waves]
    x_BLTD = torch.stack([x_BTD[:, : max(lengths)].float() for x_BTD in given], 1)
    for x_LTD, length in zip(x_BLTD, lengths):
        x_LTD[:, length:] = 0.0
    return x_BLTD, torch.tensor(lengths)
