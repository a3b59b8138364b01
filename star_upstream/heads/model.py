"""Encoder and heads as one model.

Shapes: B utterances, N samples, T frames, D width, E channels of the vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..data.task_config import TaskConfig
from ..encoder import Encoder
from ..errors import StarError
from .head import TaskHead, select


class MultitaskModel(nn.Module):
    """An encoder and its heads by name. ``labels``: the classes of each head, in order; empty for one that answers with
    its vector."""

    def __init__(
        self,
        encoder: Encoder,
        tasks: Mapping[str, TaskConfig],
        labels: Mapping[str, Sequence[str]],
        frozen: bool = False,
    ):
        super().__init__()
        self.encoder, self.labels, self.frozen = encoder, {name: list(labels.get(name, ())) for name in tasks}, frozen
        heads = {}
        for name, task in tasks.items():
            try:
                heads[name] = TaskHead(task, encoder.config, len(self.labels[name]))
            except StarError as error:
                raise StarError(f"tasks.{name}.{error}") from None
        self.heads = nn.ModuleDict(heads)
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> MultitaskModel:
        """A frozen encoder stays in eval mode: no dropout either."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def head(self, name: str) -> TaskHead:
        """The head ``name``."""
        return cast(TaskHead, self.heads[name])

    def states(self, name: str, waveforms_BN: Tensor, lengths_B: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """What the head ``name`` reads, and the valid frames of each utterance."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output = self.encoder(waveforms_BN, lengths_B)
            return select(self.encoder, output, self.head(name).task.input), output.lengths_B

    def forward(self, name: str, waveforms_BN: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """The vectors (B x E) of the head ``name``."""
        return self.heads[name](*self.states(name, waveforms_BN, lengths_B))
