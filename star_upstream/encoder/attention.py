"""Multi-head self-attention, with WavLM's gated relative position bias and ARMHuBERT's reused maps.

Shapes: B utterances, T frames, D width, H heads, K channels a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunked import Chunks
from .config import EncoderConfig, RelativePosition
from .numerics import wide


class RelativePositionTable(nn.Module):
    """One bias a head for every bucket of distances (T5's buckets, both directions)."""

    def __init__(self, config: RelativePosition):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.buckets, config.total_heads)

    def forward(self, queries: int, before: int = 0) -> Tensor:
        """H x queries x keys, ``[h, query, key]``; ``before`` keys come before the one at the first query's place."""
        half = self.config.buckets // 2
        exact = half // 2
        position_T = torch.arange(-before, queries, device=self.embedding.weight.device)
        offset_TT = position_T[None, :] - position_T[before:, None]
        distance_TT = offset_TT.abs()
        ratio_TT = torch.log(distance_TT.clamp(min=1).float() / exact) / math.log(self.config.max_distance / exact)
        far_TT = (exact + (ratio_TT * (half - exact)).long()).clamp(max=half - 1)
        bucket_TT = torch.where(distance_TT < exact, distance_TT, far_TT) + (offset_TT > 0).long() * half
        embedded_TTH: Tensor = self.embedding(bucket_TT)
        return embedded_TTH.permute(2, 0, 1)


class PositionGate(nn.Module):
    """WavLM's gate on the position bias: a function of the query frame's content, one a head (WavLM, equations 3 to
    6)."""

    def __init__(self, config: EncoderConfig, position: RelativePosition, layer: int):
        super().__init__()
        self.heads = position.total_heads
        self.kept = None if position.kept_heads is None else list(position.kept_heads[layer])
        self.linear = nn.Linear(config.head_width, 8)
        self.scale = nn.Parameter(torch.ones(position.total_heads))

    def forward(self, x_BTD: Tensor, bias_HTT: Tensor) -> Tensor:
        """B x H x T x T: the gated bias of the heads that this layer keeps."""
        x_BHTK = x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)
        scale_H: Tensor = self.scale
        if self.kept is not None:
            x_BHTK, bias_HTT, scale_H = x_BHTK[:, self.kept], bias_HTT[self.kept], scale_H[self.kept]
        update_BHT, reset_BHT = torch.sigmoid(wide(self.linear(x_BHTK)).unflatten(-1, (2, 4)).sum(-1)).unbind(-1)
        gate_BHT = update_BHT * (reset_BHT * scale_H[:, None] - 1.0) + 2.0
        gated_BHTT: Tensor = gate_BHT[..., None].to(bias_HTT.dtype) * bias_HTT
        return gated_BHTT


class Attention(nn.Module):
    """Self-attention of one layer. ``reuse`` takes the map from outside, without dropout as in ARMHuBERT's code, and
    has no query and key of its own."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        self.heads, self.dropout = config.heads[layer], config.attention_dropout
        self.reuse = bool(config.reuse_attention and config.reuse_attention[layer])
        self.reuse_softmax = config.reuse_softmax
        inner = self.heads * config.head_width
        if not self.reuse:
            self.query = nn.Linear(config.width, inner)
            self.key = nn.Linear(config.width, inner)
        self.value = nn.Linear(config.width, inner)
        self.output = nn.Linear(inner, config.width)
        position = None if self.reuse else config.relative_position
        self.gate = None if position is None else PositionGate(config, position, layer)

    def _split(self, x_BTE: Tensor) -> Tensor:
        x_BHTK: Tensor = x_BTE.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return x_BHTK

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        position_HTT: Tensor | None = None,
        reused_BHTT: Tensor | None = None,
        need_map: bool = False,
        chunks: Chunks | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """B x T x D, and the attention map (B x H x T x T, before dropout) if ``need_map`` or if it was reused.

        ``mask_BT`` is True on valid frames; only these are attended to. Scores are scaled by the head width's square
        root. With ``chunks``, x holds chunks (N x G x D), and keys and values reach into the left context, so that maps
        are N x H x G x K.
        """
        value_BTE = self.value(x_BTD)
        value_BHTK = self._split(value_BTE if chunks is None else chunks.with_left(value_BTE))
        dropout = self.dropout if self.training and not self.reuse else 0.0
        if self.reuse:
            assert reused_BHTT is not None
            map_BHTT = reused_BHTT
            if self.reuse_softmax:
                masked_BHTT = (
                    map_BHTT if mask_BT is None else map_BHTT.masked_fill(~mask_BT[:, None, None], float("-inf"))
                )
                map_BHTT = masked_BHTT.softmax(-1)
        else:
            key_BTE = self.key(x_BTD)
            key_BHTK = self._split(key_BTE if chunks is None else chunks.with_left(key_BTE))
            query_BHTK = self._split(self.query(x_BTD))
            bias = None if mask_BT is None else mask_BT[:, None, None]
            if self.gate is not None:
                bias_BHTT = self.gate(x_BTD, position_HTT).to(query_BHTK.dtype)
                bias = bias_BHTT if bias is None else bias_BHTT.masked_fill(~bias, float("-inf"))
            if not need_map:
                context_BHTK = F.scaled_dot_product_attention(query_BHTK, key_BHTK, value_BHTK, bias, dropout)
                return self._merge(context_BHTK), None
            # scaled before the product, which in fp16 could overflow
            scores_BHTT = (query_BHTK / math.sqrt(query_BHTK.shape[-1])) @ key_BHTK.transpose(-1, -2)
            if bias is not None:
                scores_BHTT = (
                    scores_BHTT.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores_BHTT + bias
                )
            map_BHTT = wide(scores_BHTT).softmax(-1)
        weights_BHTT = F.dropout(map_BHTT, dropout).to(value_BHTK.dtype)
        return self._merge(weights_BHTT @ value_BHTK), map_BHTT

    def _merge(self, context_BHTK: Tensor) -> Tensor:
        output_BTD: Tensor = self.output(context_BHTK.transpose(1, 2).flatten(2))
        return output_BTD
