"""Heads over shared features: one for each learning rate and fold, trained in one pass, chosen on dev only.

Shapes: B utterances, L layers, T frames, D channels.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Protocol, Sequence

import torch
from torch import Tensor, nn

from eval.encode import out_of_memory
from eval.probe import Probe, Schedule
from star_upstream.errors import StarError
from star_upstream.files import replacing
from star_upstream.say import say

SAVE_EVERY, _SHARE = 20.0, 20.0
"""Seconds between two progress files, and at least so many times what the last one took to write."""


class Features(Protocol):
    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """B x L x T x D and B lengths."""


class Head(nn.Module):
    """What is trained: s3prl's weighted sum over layers (softmax of weights that start at zero), then the task's module."""

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
class Lane:
    """One learning rate: its head, its optimizer and the best it has shown on dev."""

    lr: float
    head: Head
    optimizer: torch.optim.Optimizer
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
    head: Head
    """The chosen head, in the state that was best on dev."""
    lr: float
    dev: float
    grid: list[dict[str, Any]]
    seconds: float
    """Training and looking at dev, over all runs that were needed; of several fits in one pass, an equal share."""
    lanes: list[Lane]


class _Course:
    """One probe's way through its batches, with a head a learning rate."""

    def __init__(self, probe: Probe, name: str, lanes: list[Lane]):
        self.probe, self.name, self.lanes = probe, name, lanes
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
        for lane in self.lanes:
            with own_randomness(_mixed(self.probe.seed, step), device):
                _update(lane, self.probe, micro, step)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "lanes": [lane.state() for lane in self.lanes]}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        for lane, kept in zip(self.lanes, state["lanes"], strict=True):
            lane.restore(kept)

    def fitted(self, seconds: float) -> Fitted:
        better = max if selection(self.probe)[1] == "max" else min
        chosen = better(self.lanes, key=lambda lane: lane.best)
        chosen.head.load_state_dict(chosen.best_state)
        grid = [
            {"lr": lane.lr, "dev": lane.best, "step": lane.best_step, "skipped_updates": lane.skipped, "curve": lane.history}
            for lane in self.lanes
        ]
        return Fitted(chosen.head.eval(), chosen.lr, chosen.best, grid, seconds, self.lanes)


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
    say: Callable[[str], None] = lambda line: None,
) -> list[Fitted]:
    """Train one head a learning rate for each probe (folds of one task, of one schedule), all in one pass over the schedule's updates,
    and choose each probe's by its dev split.

    ``progress`` is a file from which a later call with the same ``identity`` goes on, to the same result as an unbroken one.
    """
    schedule, device = probes[0].schedule, torch.device(device)
    courses = [
        _Course(probe, probe.task.name + (f", fold {n}" if len(probes) > 1 else ""), [_lane(probe, lr, layers, width, stride, device) for lr in lrs])
        for n, probe in enumerate(probes, start=1)
    ]  # fmt: skip
    step, spent = _restore(progress, identity, courses, device, say)
    begun = saved = time.perf_counter()
    cost = 0.0
    while step < schedule.steps:
        step += 1
        for course in courses:
            course.step(step, features, device)
        if step % schedule.eval_every == 0 or step == schedule.steps:
            for course in courses:
                _look(course, features, step, device, say)
        now = time.perf_counter()
        if progress is not None and (now - saved > max(SAVE_EVERY, _SHARE * cost) or step == schedule.steps):
            state = {"identity": identity, "step": step, "spent": spent + now - begun, "courses": [course.state() for course in courses]}
            with replacing(progress) as part:
                torch.save(state, part)
            saved = time.perf_counter()
            cost = saved - now
    seconds = (spent + time.perf_counter() - begun) / len(courses)
    return [course.fitted(seconds) for course in courses]


def agree(fits: Sequence[Fitted], direction: str) -> tuple[float, float, list[Head]]:
    """One learning rate for several fits (folds) over the same rates: it, its dev value, the mean over the fits and the best of all
    rates, and each fit's head of that rate."""
    means = [sum(lane.best for lane in lanes) / len(fits) for lanes in zip(*(fit.lanes for fit in fits), strict=True)]
    best = (max if direction == "max" else min)(range(len(means)), key=means.__getitem__)
    heads = []
    for lane in (fit.lanes[best] for fit in fits):
        lane.head.load_state_dict(lane.best_state)
        heads.append(lane.head.eval())
    return fits[0].lanes[best].lr, means[best], heads


def predict(head: Head, probe: Probe, features: Features, rows: Sequence[int], device: str | torch.device = "cpu") -> list[Any]:
    """The head's answer for each of ``rows``, in their order; a row that comes twice is computed once.

    In batches of ``features.eval_batch`` in the order of ``rows`` where the features have one, since there the batch matters.
    """
    device, answers, most = torch.device(device), {}, None
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
                        answers.update(zip(batch[part], probe.predict(head.task, mixed_BTD, lengths_B[part].to(device), batch[part])))
                    break
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    most = _fewer(most, error, len(batch), device, "answers are the same")
    return [answers[r] for r in rows]


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device = torch.device("cpu")) -> Iterator[None]:
    """Sets torch's generators to ``seed`` and puts them back: dropout, SpecAugment and initial weights have no other source."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _mixed(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=6).digest(), "little")


def _lane(probe: Probe, lr: float, layers: int, width: int, stride: int, device: torch.device) -> Lane:
    with own_randomness(probe.seed):
        head = Head(layers, probe.head(width, stride)).to(device)
    return Lane(lr, head, getattr(torch.optim, probe.schedule.optimizer)(head.parameters(), lr=lr))


def rate(schedule: Schedule, lr: float, step: int) -> float:
    """The learning rate of update ``step`` (from 1): s3prl's linear_schedule_with_warmup counts from 0, where its rate is 0."""
    if schedule.scheduler == "none":
        return lr
    if step - 1 < schedule.warmup:
        return lr * (step - 1) / schedule.warmup
    return lr * (schedule.steps - step + 1) / max(1, schedule.steps - schedule.warmup)


def _update(lane: Lane, probe: Probe, micro: list, step: int) -> None:
    lane.head.train()
    for group in lane.optimizer.param_groups:
        group["lr"] = rate(probe.schedule, lane.lr, step)
    while True:
        lane.optimizer.zero_grad()
        try:
            for x_BLTD, lengths_B, rows in micro:
                for part in _parts(len(rows), lane.most):
                    kept, mixed_BTD = lengths_B[part], lane.head.mix(_cut(x_BLTD, lengths_B, part))
                    loss = probe.loss(lane.head.task, mixed_BTD, kept, rows[part])
                    (loss * (len(kept) / len(rows) / len(micro))).backward()
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            count = max(len(rows) for _, _, rows in micro)
            lane.most = _fewer(lane.most, error, count, x_BLTD.device, "an update is the sum of the parts, each with its share of the batch")
    norm = nn.utils.clip_grad_norm_(lane.head.parameters(), probe.schedule.clip)
    if torch.isfinite(norm):
        lane.optimizer.step()
    else:
        lane.skipped += 1


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
        raise StarError(f"out of memory on {device}: the head does not fit with a single utterance; try --device cpu") from None
    say(
        f"out of memory on {device}: the head's batches of {count} go in parts of {at_once // 2} from here on; {follows}"
    )
    return at_once // 2


def selection(probe: Probe) -> tuple[str, str]:
    """Name and direction of what a head is chosen by."""
    return probe.selection or (probe.task.metric, probe.task.direction)


def _look(course: _Course, features: Features, step: int, device: torch.device, say) -> None:
    probe, (name, direction) = course.probe, selection(course.probe)
    rows = probe.dev_rows()
    for lane in course.lanes:
        value = probe.dev_value(predict(lane.head, probe, features, rows, device), rows)
        lane.history.append([step, round(value, 4)])
        if lane.best is None or (value > lane.best if direction == "max" else value < lane.best):
            lane.best, lane.best_step = value, step
            lane.best_state = copy.deepcopy({k: v.cpu() for k, v in lane.head.state_dict().items()})
    shown = ", ".join(f"lr {lane.lr:g}: {lane.history[-1][1]:.2f}" for lane in course.lanes)
    say(f"{course.name}: step {step}/{probe.schedule.steps}, dev {name} {shown}")


def _restore(progress: Path | None, identity: str, courses: list[_Course], device, say) -> tuple[int, float]:
    """The step and the seconds that a broken run of this identity had come to; 0 and 0 where there is none."""
    if progress is None or not progress.is_file():
        return 0, 0.0
    try:
        state = torch.load(progress, map_location=device, weights_only=True)
        if state["identity"] != identity:
            say(f"{progress}: is of another run; starting anew")
            return 0, 0.0
        for course, kept in zip(courses, state["courses"], strict=True):
            course.restore(kept)
    except Exception as error:
        raise StarError(f"{progress}: damaged progress file ({type(error).__name__}); remove it to start anew") from None
    say(f"{progress.stem}: going on after step {state['step']}")
    return state["step"], state["spent"]
