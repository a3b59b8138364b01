"""Attention over chunks of frames, for models that stream.

A chunk's frames attend to the chunk, to ``left_context`` frames before it and to ``look_ahead`` frames after it. Those
after it pass through every layer beside the chunk, and again as part of their own, so that the model as a whole looks
no farther ahead than one layer (Emformer, Shi et al., ICASSP 2021, section 2.2: right context).

Shapes: B utterances, W chunks, C frames of a chunk, G a chunk's frames and those after it, P left context, T frames
(W x C + look_ahead), K = P + G, D width, E inner width, N = B x W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import EncoderConfig


class Chunks:
    """Frames as chunks, for one pass through the layers."""

    def __init__(
        self,
        config: EncoderConfig,
        valid_BT: Tensor,
        valid_BP: Tensor | None = None,
        before: list[Tensor] | None = None,
    ):
        """valid_BT: which frames are an utterance's; valid_BP: the same for the left context of the first chunk.
        before: what :attr:`after` was after the chunks before these; None at an utterance's start."""
        self.chunk, self.group, self.left = config.chunk, config.chunk + config.look_ahead, config.left_context
        self.batch, self.count = valid_BT.shape[0], (valid_BT.shape[1] - config.look_ahead) // config.chunk
        self.before, self.after = list(before) if before is not None else None, list[Tensor]()
        """The left context of the next chunk: keys and values of each layer, B x P x E, in the order of their use."""
        if valid_BP is None:
            valid_BP = valid_BT.new_zeros(self.batch, self.left)
        flags_NG1 = self.split(valid_BT[..., None])
        mask_NK = self._behind(flags_NG1, valid_BP[..., None])[0][..., 0]
        # a chunk without valid frames attends to something, so that it stays finite
        self.mask_NK = mask_NK | ~mask_NK.any(-1, keepdim=True)

    def split(self, x_BTD: Tensor) -> Tensor:
        """N x G x D: every chunk with the frames after it."""
        if self.count == 1:
            return x_BTD
        x_BWGD = x_BTD.unfold(1, self.group, self.chunk).transpose(2, 3)
        return x_BWGD.reshape(-1, self.group, x_BTD.shape[2])

    def join(self, x_NGD: Tensor) -> Tensor:
        """B x (W x C) x D: the chunks without the frames after them."""
        return self._chunks(x_NGD).reshape(self.batch, -1, x_NGD.shape[2])

    def with_left(self, x_NGE: Tensor) -> Tensor:
        """N x K x E: behind its left context; what the next chunks need of it is kept."""
        before_BPE = (
            x_NGE.new_zeros(self.batch, self.left, x_NGE.shape[2]) if self.before is None else self.before.pop(0)
        )
        x_NKE, after_BPE = self._behind(x_NGE, before_BPE)
        self.after.append(after_BPE)
        return x_NKE

    def map(self, map_NHGK: Tensor, frames: int) -> Tensor:
        """An utterance's attention map, B x H x frames x frames, of its chunks'."""
        size = self.left + self.count * self.chunk + self.group - self.chunk
        map_BWHGK = map_NHGK.unflatten(0, (self.batch, self.count))
        whole = map_NHGK.new_zeros(self.batch, map_NHGK.shape[1], self.count * self.chunk, size)
        for i in range(self.count):
            start = i * self.chunk
            part = map_BWHGK[:, i, :, : self.chunk]
            whole[:, :, start : start + self.chunk, start : start + part.shape[-1]] = part
        return whole[:, :, :frames, self.left : self.left + frames]

    def _chunks(self, x_NGE: Tensor) -> Tensor:
        x_BWGE: Tensor = x_NGE.unflatten(0, (self.batch, self.count))
        return x_BWGE[:, :, : self.chunk]

    def _behind(self, x_NGE: Tensor, before_BPE: Tensor) -> tuple[Tensor, Tensor]:
        """N x K x E, and the last P frames of the chunks."""
        line_BTE = torch.cat([before_BPE, self.join(x_NGE)], 1)
        after_BPE = line_BTE[:, self.count * self.chunk :]
        if not self.left:
            return x_NGE, after_BPE
        left_BWPE = (
            line_BTE[:, : self.left + (self.count - 1) * self.chunk].unfold(1, self.left, self.chunk).transpose(2, 3)
        )
        return torch.cat([left_BWPE.reshape(-1, self.left, x_NGE.shape[2]), x_NGE], 1), after_BPE


def whole_chunks(config: EncoderConfig, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Chunks]:
    """N x G x D of whole utterances, filled up with frames that are not valid."""
    frames = x_BTD.shape[1]
    missing = -frames % config.chunk + config.look_ahead
    chunks = Chunks(config, F.pad(mask_BT, (0, missing)))
    return chunks.split(F.pad(x_BTD, (0, 0, 0, missing))), chunks
