"""Do both sides compute the same? The same batches from the same initial head: every loss, and where the head ends up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch

from .. import encode, train
from .ours import Ours, Picked
from .theirs import Theirs

TOLERANCE, TOLERANCE_AT_FIRST = {"asv": 1e-2}, 1e-5
"""Largest relative difference of a loss (1e-4 but for asv), and the same of the first update's batches, with fp32 features on both
sides: what is left is the order of additions, since padding does not change these encoders' states. It begins at about 1e-7 and grows
with every update, since Adam divides a gradient by its size: a weight whose gradient is rounding moves as far as any other. The
x-vector of asv has millions of those; there 1e-7 has become 2e-3 after 20 updates."""


@dataclass(frozen=True)
class Agreement:
    steps: int
    accumulate: int
    batch: int
    first: float
    """Loss of the first and of the last batch, ours."""
    last: float
    worst: float
    """Largest relative difference of any batch's loss."""
    worst_as_kept: float
    """The same with the features as a run keeps them: frames in fp16, time means in fp32."""
    worst_at_first: float
    """The largest of the first update's batches, before rounding had an update to grow in."""
    tolerance: float
    weights: float
    """Distance of the two heads at the end, as a share of the distance that ours went."""

    @property
    def good(self) -> bool:
        return self.worst <= self.tolerance and self.worst_at_first <= TOLERANCE_AT_FIRST


def agreement(ours: Ours, theirs: Theirs, steps: int) -> Agreement:
    """``steps`` updates of the schedule of ``ours`` on each side."""
    accumulate = ours.schedule.accumulate
    batches = ours.batches(steps * accumulate)
    rows = list(dict.fromkeys(row for batch in batches for row in batch))
    kept = ours.encode(rows)[0]
    ours.probe.ready(kept)
    start = ours.head()
    before = flat(start)
    as_kept, _, head = ours.train(kept, batches, steps, accumulate)
    mine = as_kept
    if ours.task.features == "frames":
        mine, _, head = ours.train(Picked(Exact(ours, rows), rows, ours.upstream), batches, steps, accumulate)
    theirs.initial = s3prl_state(start)
    theirs.before = lambda done: torch.manual_seed(train._mixed(ours.seed, done // accumulate + 1)) if done % accumulate == 0 else None
    theirs.train(batches, steps, accumulate)
    theirs.before = None
    state, weights = theirs.state()
    mine_state, mine_weights = s3prl_state(head)
    pairs = [(mine_state[name], state[name].detach()) for name in mine_state]
    pairs += [] if weights is None else [(mine_weights, weights.detach())]
    gone = (flat(head) - before).norm()
    apart = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
    return Agreement(
        steps, accumulate, ours.schedule.batch, mine[0], mine[-1], _worst(mine, theirs.losses), _worst(as_kept, theirs.losses),
        _worst(mine[:accumulate], theirs.losses[:accumulate]), TOLERANCE.get(ours.task.name, 1e-4), float(apart / gone),
    )  # fmt: skip


def _worst(mine: list[float], losses: list[float]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(mine, losses, strict=True))


class Exact:
    """Frames in fp32, each utterance encoded alone, in memory."""

    def __init__(self, ours: Ours, rows: list[int]):
        windows = encode.windows(ours.probe.table.iloc[rows])
        ours.upstream.expert.eval()
        self.states = [ours.upstream.encode([encode.waveform(row[0], ours.task.effects)])[0] for row in windows]

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        states = [self.states[row].transpose(0, 1) for row in rows]
        x_BTLD = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        return x_BTLD.transpose(1, 2), torch.tensor([len(s) for s in states])


def flat(head: train.Head) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in head.parameters()]).clone()


def s3prl_state(head: train.Head) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Our head's parameters under the names of :meth:`Theirs.state`: s3prl's modules, but for the wrapped LSTM layers."""
    names = {"model.": "downstream.", "loss.": "loss."}
    state = {}
    for key, value in head.task.state_dict().items():
        prefix = next(p for p in names if key.startswith(p))
        state[names[prefix] + key.removeprefix(prefix).replace(".original.", ".")] = value.detach().clone()
    return state, None if head.weights is None else head.weights.detach().clone()
