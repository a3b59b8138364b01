"""The loop of every training: begin or resume, batch, update, validate, save, end.

A kind of training is a :class:`.training.Training`: a module whose forward gives the loss of a batch, its batches, and
what to save. :func:`fit` is the rest, and the same for all of them. Whatever a batch draws (dropout, gates) is a
function of its place in the run, and the state says where the run is, so a run that was killed goes on with the batches
and losses of an unbroken one."""

from __future__ import annotations

import math
import time
import zlib
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from .. import cores, heap
from ..data.batches import BatchStream
from ..errors import StarError
from ..say import say
from . import stop
from .fabric import compiled, launched, one_device, shard
from .means import Means
from .optimizer import adamw, rate, too_few
from .precision import RunPrecision
from .progress import Progress, line
from .run_folder import RunFolder
from .trackers import Trackers
from .training import Outcome, Training

clock = time.monotonic
"""What a run's seconds are counted by."""


def fit(training: Training, folder: RunFolder, state: dict[str, Any] | None = None) -> Outcome:
    """Run ``training`` to its end, from the start or from ``state``, on the devices that its configuration asks for;
    how it ended."""
    config = training.config
    if state is not None and state["finished"]:
        training.model.load_state_dict(state["model"])
        precision = state.get("chosen_precision") or config.precision
        return Outcome(state["update"], precision, too_few(config, state["update"]))
    gpu = one_device(config).type == "cuda"
    try:
        with (
            nullcontext() if gpu else heap.kept(),
            cores.divided(training.workers, config.devices, gpu) as workers,
            stop.listening() as request,
        ):
            outcome = _Loop(training, folder, workers, request).run(state)
    except StarError as error:
        # an error from a data worker arrives with that process's traceback in its text
        raise StarError(
            str(error).strip().splitlines()[-1].removeprefix(f"{StarError.__module__}.StarError: ")
        ) from None
    if folder.lead and outcome.too_few_updates:
        fix = "give it more minutes, smaller batches or a faster machine"
        say(f"{folder.path}: {training.label}{outcome.too_few_updates}; {fix}")
    return outcome


class _Loop:
    def __init__(self, training: Training, folder: RunFolder, workers: int, request: stop.Request):
        self.training, self.config, self.folder = training, training.config, folder
        self.workers, self.request = workers, request
        self.update, self.elapsed = 0, 0.0
        self.best: float | None = None
        self.heard = self.heard_before = 0.0
        """Seconds of audio that all processes learned from, now and at the last line of the log."""
        self.budget = 60 * (self.config.minutes or 0.0)
        self.row: dict[str, Any] = {}
        """The latest value of every column of the log."""
        self.means = Means()
        """Of the loss and its terms since the last line of the log."""
        self.audio_crc = 0
        """Of all training batches so far, each with the one before it: equal where all audio was, and its order."""

    def run(self, state: dict[str, Any] | None) -> Outcome:
        self.begin(state)
        with self.progress, stop.batches(self.training.loader("train", self.stream, self.workers)) as batches:
            while not self.finished:
                self.training.before_update(self.share)
                for number in range(self.config.batches_each):
                    self.learn(next(batches), last=number + 1 == self.config.batches_each)
                self.step()
                validates = self.finished or self.update % self.config.validate_every == 0
                if self.finished or self.update % self.config.log_every == 0:
                    self.log_training()
                if validates:
                    self.validate()
                stops = not self.finished and self.request.came(self.fabric)
                if validates or stops or self.update % self.config.save_every == 0:
                    self.save_state()
                if stops or self.finished:
                    self.trackers.close()
                if stops:
                    self.request.end(self.folder, self.update)
        return self.outcome

    # begin

    def begin(self, state: dict[str, Any] | None) -> None:
        training, config = self.training, self.config
        self.fabric = launched(config)
        if config.shard_teacher and not training.others():
            raise StarError("training.shard_teacher: there is no teacher in this training; leave it out")
        for module in training.others().values():
            if config.shard_teacher:
                shard(module, self.fabric)
            module.to(self.fabric.device)
        self.model, self.optimizer = self.fabric.setup(training.model, adamw(training.groups(), config))
        self.model.train()
        others = () if config.shard_teacher else training.others().values()
        self.to_compile = [training.model, *others] if config.compile else []
        parts = {**dict(training.model.named_children()), **training.others()}
        self.precision = RunPrecision(self.fabric, config.precision, parts, self.folder)
        self.sampler = training.sampler(self.fabric.global_rank, self.fabric.world_size)
        self.stream = BatchStream(self.sampler)
        if state is not None:
            self.resume(state)
        else:
            epoch, start, processes, self.audio_crc = training.begins_at
            self.place(epoch, start, processes)
        self.folder.open_log(self.update)
        self.trackers = Trackers(config.trackers, self.folder)
        self.clock = self.since = clock()
        self.progress = Progress(training.label, shown=self.fabric.is_global_zero)

    def resume(self, state: dict[str, Any]) -> None:
        training = self.training
        training.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load(state)
        epoch, start = state["position"]
        self.place(epoch, start, state.get("processes", self.fabric.world_size))
        self.update, self.elapsed, self.best = state["update"], state["elapsed"], state["best"]
        self.heard, self.audio_crc = state.get("audio", (0.0, 0))
        self.heard_before = self.heard
        self.means = Means(state["sums"])

    def place(self, epoch: int, start: int, processes: int) -> None:
        """Begin at that batch of as many processes: the same batches, shared by another number of them."""
        self.sampler.epoch, self.sampler.start = epoch, start * processes // self.fabric.world_size

    @property
    def share(self) -> float:
        """How much of the run has passed, in the middle of the coming update."""
        if self.training.total is None:
            return self.elapsed / self.budget
        return (self.update + 0.5) / self.training.total

    @property
    def finished(self) -> bool:
        if self.training.total is None:
            return self.elapsed >= self.budget
        return self.update >= self.training.total

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.update, self.precision.chosen, too_few(self.config, self.update) if self.finished else "")

    # a batch and an update

    def learn(self, batch: Any, last: bool) -> None:
        """Add a batch's gradients; processes share them at the ``last`` batch of an update."""
        training, sampler = self.training, self.sampler
        training.taken(batch)
        if (audio := training.audio(batch)) is not None:
            self.audio_crc = zlib.crc32(audio.contiguous().numpy().data, self.audio_crc)
        batch = self.fabric.to_device(batch)
        if self.precision.settle(training.model, batch):
            self.clock = self.since = clock()  # it took some updates' time, and is none
        if self.to_compile:  # behind the comparison, which looks into every module
            for module in self.to_compile:
                compiled(module, self.config.compile)
            self.to_compile = []
        # dropout depends on the batch's place in the run alone, so a resumed run draws what an unbroken one draws
        place = sampler.start * self.fabric.world_size + self.fabric.global_rank
        seed = np.random.SeedSequence((self.config.seed, sampler.epoch, place, 0))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            loss, terms = self.model(batch)
            if not math.isfinite(loss.item()):
                raise StarError(
                    f"the loss is {loss.item()} at update {self.update}; files of the batch: {', '.join(batch.paths)}"
                )
            self.fabric.backward(loss / self.config.batches_each)
        self.means.add(loss, terms)
        self.heard += training.seconds(batch) * self.fabric.world_size
        self.stream.advance()

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.share, self.config) * group.get("scale", 1.0)
        if self.config.clip:
            # a gradient that is not finite is the loss scaler's business, and shows in the next loss without one
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update += 1
        self.tick()
        self.progress.advance(self.share, self.line)

    def tick(self) -> None:
        now = clock()
        self.elapsed, self.clock = self.elapsed + now - self.clock, now
        if self.training.total is None:
            # one clock decides: the learning rate and the end must be the same in every process
            self.elapsed = self.fabric.broadcast(self.elapsed)

    @property
    def speed(self) -> float:
        """Seconds of audio a second since the last line of the log."""
        return (self.heard - self.heard_before) / max(clock() - self.since, 1e-9)

    @property
    def line(self) -> str:
        """How far the run is, in words."""
        speed = self.row.get("audio_seconds_per_second") or self.speed
        return line(self.training.label, self.update, self.row, speed, self.training.note(self.row))

    # the log

    def log_training(self) -> None:
        self.means.share(self.fabric)
        row: dict[str, Any] = self.means.row("train")
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row["audio_seconds_per_second"] = round(self.speed, 2)
        row["audio_hours"] = round(self.heard / 3600, 4)
        row.update(self.training.extras())
        self.means, self.heard_before, self.since = Means(), self.heard, clock()
        self.write(row, {"audio_crc32": self.audio_crc} if self.audio_crc else {})

    def write(self, row: dict[str, Any], marks: dict[str, int] | None = None) -> None:
        """``marks``: columns of the log that are no measurements."""
        position = {"update": self.update, "epoch": self.sampler.epoch, "seconds": round(self.elapsed, 1)}
        self.row = {**self.row, **position, **row}
        self.folder.log({**position, **row, **(marks or {})})
        self.trackers.log({**position, **row}, self.update)

    # validation, state, end

    @torch.no_grad()
    def validate(self) -> None:
        rank, world, training = self.fabric.global_rank, self.fabric.world_size, self.training
        self.progress.validating(self.line)
        batches = training.validation_batches()
        # with too few to share, or a teacher that all have to run equally often, every process takes all of them: the
        # mean is the same
        shared = len(batches) >= world and not self.config.shard_teacher
        batches = batches[rank::world] if shared else batches
        self.model.eval()
        means = Means()
        with stop.batches(training.loader("valid", batches, self.workers)) as loaded:
            for batch in loaded:
                training.taken(batch)
                loss, terms = self.model(self.fabric.to_device(batch))
                means.add(loss, terms, training.weight(batch))
        self.model.train()
        means.share(self.fabric)
        row, score = training.judge(means.row("valid"))
        if not math.isfinite(row["valid/loss"]):
            fix = "lower training.learning_rate, or set training.clip"
            raise StarError(f"the validation loss is {row['valid/loss']} at update {self.update}; {fix}")
        better = self.best is None or score < self.best
        self.best = score if better else self.best
        self.tick()
        self.write(row)
        if self.fabric.is_global_zero:
            # the log may have had no line yet, in this start of the run
            training.save(self.outcome, {**self.row, "audio_hours": round(self.heard / 3600, 4)}, better)
        self.progress.validated(self.share, self.line)
        self.since = clock()

    def save_state(self) -> None:
        self.means.share(self.fabric)
        if not self.fabric.is_global_zero:
            return
        self.folder.save_state(
            {
                "identity": self.training.identity(),
                "model": self.training.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                **self.precision.state(),
                "sums": self.means.state(),
                "processes": self.fabric.world_size,
                "position": [self.sampler.epoch, self.sampler.start],
                "audio": [self.heard, self.audio_crc],
                "update": self.update,
                "elapsed": self.elapsed,
                "best": self.best,
                "finished": self.finished,
            }
        )
