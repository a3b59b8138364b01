"""Heads over shared features: one for each learning rate and fold, trained in one pass, chosen on dev only.

Shapes: B utterances, L layers, T frames, D channels.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from star_upstream.errors import StarError
from star_upstream.files import replacing
from star_upstream.say import say

from ..features.encode import out_of_memory
from .probe import Probe, Schedule

SAVE_EVERY, _SHARE = 20.0, 20.0
"""Seconds between two progress files, and at least so many times what the last one took to write."""


class Features(Protocol):
    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D and B lengths."""


class Head(nn.Module):
    """What is trained: s3prl's weighted sum over layers (softmax of weights that start at zero), then the task's
    module."""

    def __init__(self, layers: int, task: nn.Module):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers)) if layers > 1 else None
        self.task = task

    def mix(self, x_BLTD: Tensor) -> Tensor:
        """B x T x D. One layer is copied, since SpecAugment writes into what it is given."""
        if self.weights is None:
            return x_BLTD[:, 0].clone()
        return torch.einsum("l,bltd->btd", self.weights.softmax(-1), x_BLTD)

    def layer_weights(self) -> list[float]:
        return [1.0] if self.weights is None else [round(w, 6) for w in self.weights.detach().softmax(-1).tolist()]


@dataclass
class Candidate:
    """One learning rate: its head, its optimizer and the best it has shown on dev."""

    lr: float | None
    """None where nothing is trained; the head then says what is chosen."""
    head: Any
    optimizer: Any
    best: float | None = None
    best_step: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[list[float]] = field(default_factory=list)
    """[step, dev value] pairs."""
    most: int | None = None
    """Utterances that fit into memory at once; None: a whole batch."""
    skipped: int = 0
    """Updates left out because the gradient was not a number, as s3prl leaves them out."""

    def state(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("lr", "best", "best_step", "best_state", "history", "skipped")}
        return {**plain, "head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("best", "best_step", "best_state", "history", "skipped"):
            setattr(self, name, state[name])


@dataclass
class Fitted:
    """What one fold's heads came to; :func:`choose_rate` chooses among them."""

    grid: list[dict[str, Any]]
    seconds: float
    """Training and looking at dev, over all runs that were needed; of several fits in one pass, an equal share."""
    candidates: list[Candidate]


class _Sweep:
    """One probe's way through its batches, with a head a learning rate."""

    def __init__(self, probe: Probe, name: str, candidates: list[Candidate]):
        self.probe, self.name, self.candidates = probe, name, candidates
        self.epoch = self.position = 0
        self.batches: list[list[int]] | None = None

    def step(self, step: int, features: Features, device: torch.device) -> None:
        """An update of every head, on the same batches."""
        micro = []
        for _ in range(self.probe.schedule.accumulate):
            if self.batches is None:
                self.batches = self.probe.epoch(self.epoch)
            if self.position == len(self.batches):
                self.epoch, self.position = self.epoch + 1, 0
                self.batches = self.probe.epoch(self.epoch)
            rows = self.batches[self.position]
            crops = torch.Generator().manual_seed(_mixed(self.probe.seed, self.epoch, self.position))
            x_BLTD, lengths_B = features.batch(rows, crops)
            micro.append((x_BLTD.to(device), lengths_B.to(device), rows))
            self.position += 1
        for candidate in self.candidates:
            with own_randomness(_mixed(self.probe.seed, step), device):
                _update(candidate, self.probe, micro, step)

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self.position,
            "candidates": [candidate.state() for candidate in self.candidates],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        for candidate, kept in zip(self.candidates, state["candidates"], strict=True):
            candidate.restore(kept)

    def fitted(self, seconds: float) -> Fitted:
        grid = [
            {
                "lr": candidate.lr,
                "dev": candidate.best,
                "step": candidate.best_step,
                "skipped_updates": candidate.skipped,
                "curve": candidate.history,
            }
            for candidate in self.candidates
        ]
        return Fitted(grid, seconds, self.candidates)


def fit(
    probes: Sequence[Probe],
    features: Features,
    layers: int,
    width: int,
    stride: int,
    lrs: Sequence[float],
    device: str | torch.device = "cpu",
    progress: Path | None = None,
    identity: str = "",
) -> list[Fitted]:
    """Train one head a learning rate for each probe (folds of one task, of one schedule), all in one pass over the
    schedule's updates, and keep of each head the state that was best on dev.

    ``progress`` is a file from which a later call with the same ``identity`` goes on, to the same result as an unbroken
    one.
    """
    schedule, device = probes[0].schedule, torch.device(device)
    sweeps = [
        _Sweep(
            probe,
            probe.task.name + (f", fold {n}" if len(probes) > 1 else ""),
            [_candidate(probe, lr, layers, width, stride, device) for lr in lrs],
        )
        for n, probe in enumerate(probes, start=1)
    ]
    step, spent = _restore(progress, identity, sweeps, device)
    begun = saved = time.perf_counter()
    cost = 0.0
    while step < schedule.steps:
        step += 1
        for sweep in sweeps:
            sweep.step(step, features, device)
        if step % schedule.eval_every == 0 or step == schedule.steps:
            for sweep in sweeps:
                _validate(sweep, features, step, device)
        now = time.perf_counter()
        if progress is not None and (now - saved > max(SAVE_EVERY, _SHARE * cost) or step == schedule.steps):
            state = {
                "identity": identity,
                "step": step,
                "spent": spent + now - begun,
                "sweeps": [sweep.state() for sweep in sweeps],
            }
            with replacing(progress) as part:
                torch.save(state, part)
            saved = time.perf_counter()
            cost = saved - now
    seconds = (spent + time.perf_counter() - begun) / len(sweeps)
    return [sweep.fitted(seconds) for sweep in sweeps]


def choose_rate(fits: Sequence[Fitted], direction: str) -> tuple[float | None, float, list[Any]]:
    """One learning rate for all fits (folds) over the same rates: it, its dev value, the mean over the fits and the
    best of all rates, and each fit's head of that rate, in the state that was best on dev."""
    means = [
        sum(map(_best, candidates)) / len(fits) for candidates in zip(*(fit.candidates for fit in fits), strict=True)
    ]
    best = (max if direction == "max" else min)(range(len(means)), key=means.__getitem__)
    heads = []
    for candidate in (fit.candidates[best] for fit in fits):
        candidate.head.load_state_dict(candidate.best_state)
        heads.append(candidate.head.eval())
    return fits[0].candidates[best].lr, means[best], heads


def predict(
    head: Any, probe: Probe, features: Features, rows: Sequence[int], device: str | torch.device = "cpu"
) -> list[Any]:
    """The head's answer for each of ``rows``, in their order; a row that comes twice is computed once.

    In batches of ``features.eval_batch`` in the order of ``rows`` where the features have one, since there the batch
    matters.
    """
    device, most = torch.device(device), None
    answers: dict[int, Any] = {}
    head.eval()
    size = getattr(features, "eval_batch", None)
    todo = list(dict.fromkeys(rows)) if size else sorted(set(rows), key=lambda r: -int(probe.table["samples"].iloc[r]))
    size = size or 32
    with torch.no_grad():
        for i in range(0, len(todo), size):
            batch = todo[i : i + size]
            x_BLTD, lengths_B = features.batch(batch)
            while True:
                try:
                    for part in _parts(len(batch), most):
                        mixed_BTD = head.mix(_cut(x_BLTD, lengths_B, part).to(device))
                        answers.update(
                            zip(
                                batch[part],
                                probe.predict(head.task, mixed_BTD, lengths_B[part].to(device), batch[part]),
                            )
                        )
                    break
                except (MemoryError, RuntimeError) as error:
                    most = _fewer(most, error, len(batch), device, "answers are the same")
    return [answers[r] for r in rows]


@contextlib.contextmanager
def own_randomness(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Sets torch's generators to ``seed`` and puts them back: dropout, SpecAugment and initial weights have no other
    source."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _best(candidate: Candidate) -> float:
    """What it has come to on dev, where it has been looked at."""
    assert candidate.best is not None
    return candidate.best


def _mixed(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=6).digest(), "little")


def _candidate(probe: Probe, lr: float, layers: int, width: int, stride: int, device: torch.device) -> Candidate:
    with own_randomness(probe.seed):
        head = Head(layers, probe.head(width, stride)).to(device)
    return Candidate(lr, head, getattr(torch.optim, probe.schedule.optimizer)(head.parameters(), lr=lr))


def rate(schedule: Schedule, lr: float, step: int) -> float:
    """The learning rate of update ``step`` (from 1): s3prl's linear_schedule_with_warmup counts from 0, where its rate
    is 0."""
    if schedule.scheduler == "none":
        return lr
    if step - 1 < schedule.warmup:
        return lr * (step - 1) / schedule.warmup
    return lr * (schedule.steps - step + 1) / max(1, schedule.steps - schedule.warmup)


def _update(candidate: Candidate, probe: Probe, micro: list, step: int) -> None:
    assert candidate.lr is not None
    candidate.head.train()
    for group in candidate.optimizer.param_groups:
        group["lr"] = rate(probe.schedule, candidate.lr, step)
    while True:
        candidate.optimizer.zero_grad()
        try:
            for x_BLTD, lengths_B, rows in micro:
                for part in _parts(len(rows), candidate.most):
                    kept, mixed_BTD = lengths_B[part], candidate.head.mix(_cut(x_BLTD, lengths_B, part))
                    loss = probe.loss(candidate.head.task, mixed_BTD, kept, rows[part])
                    (loss * (len(kept) / len(rows) / len(micro))).backward()
            break
        except (MemoryError, RuntimeError) as error:
            count = max(len(rows) for _, _, rows in micro)
            candidate.most = _fewer(
                candidate.most,
                error,
                count,
                x_BLTD.device,
                "an update is the sum of the parts, each with its share of the batch",
            )
    norm = nn.utils.clip_grad_norm_(candidate.head.parameters(), probe.schedule.clip)
    if torch.isfinite(norm):
        candidate.optimizer.step()
    else:
        candidate.skipped += 1


def _parts(count: int, most: int | None) -> list[slice]:
    size = count if most is None else min(most, count)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _cut(x_BLTD: Tensor, lengths_B: Tensor, part: slice) -> Tensor:
    """Those utterances, no longer than the longest of them; a whole batch as it is."""
    return x_BLTD if part == slice(0, len(lengths_B)) else x_BLTD[part, :, : int(lengths_B[part].max())]


def _fewer(most: int | None, error: Exception, count: int, device: torch.device, follows: str) -> int:
    """Half of what a head took at once; other errors than that memory ran out are raised again."""
    if not out_of_memory(error):
        raise error
    at_once = min(count, most or count)
    if at_once == 1:
        raise StarError(
            f"out of memory on {device}: the head does not fit with a single utterance; try --device cpu"
        ) from None
    say(
        f"out of memory on {device}: the head's batches of {count} go in parts of {at_once // 2} from here on; "
        f"{follows}"
    )
    return at_once // 2


def selection(probe: Probe) -> tuple[str, str]:
    """Name and direction of what a head is chosen by."""
    return probe.selection or (probe.task.metric, probe.task.direction)


def _validate(sweep: _Sweep, features: Features, step: int, device: torch.device) -> None:
    probe, (name, direction) = sweep.probe, selection(sweep.probe)
    rows = probe.dev_rows()
    for candidate in sweep.candidates:
        value = probe.dev_value(predict(candidate.head, probe, features, rows, device), rows)
        candidate.history.append([step, round(value, 4)])
        if candidate.best is None or (value > candidate.best if direction == "max" else value < candidate.best):
            candidate.best, candidate.best_step = value, step
            candidate.best_state = copy.deepcopy({k: v.cpu() for k, v in candidate.head.state_dict().items()})
    shown = ", ".join(f"lr {candidate.lr:g}: {candidate.history[-1][1]:.2f}" for candidate in sweep.candidates)
    say(f"{sweep.name}: step {step}/{probe.schedule.steps}, dev {name} {shown}")


def _restore(progress: Path | None, identity: str, sweeps: list[_Sweep], device: torch.device) -> tuple[int, float]:
    """The step and the seconds that a broken run of this identity had come to; 0 and 0 where there is none."""
    if progress is None or not progress.is_file():
        return 0, 0.0
    try:
        state = torch.load(progress, map_location=device, weights_only=True)
        if state["identity"] != identity:
            say(f"{progress}: is of another run; starting anew")
            return 0, 0.0
        for sweep, kept in zip(sweeps, state["sweeps"], strict=True):
            sweep.restore(kept)
    except Exception as error:
        raise StarError(
            f"{progress}: damaged progress file ({type(error).__name__}); remove it to start anew"
        ) from None
    say(f"{progress.stem}: going on after step {state['step']}")
    return state["step"], state["spent"]
