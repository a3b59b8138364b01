"""The loop of every training: begin or resume, batch, update, validate, save, end.

A kind of training is a :class:`Training`: a module whose forward gives the loss of a batch, its batches, and what to save. :func:`fit`
is the rest, and the same for all of them. Whatever a batch draws (dropout, gates) is a function of its place in the run, and the
state says where the run is, so a run that was killed goes on with the batches and losses of an unbroken one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
import zlib
from typing import Any, Iterator

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from lightning.fabric.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from .. import cores
from ..data.batches import BatchStream
from ..errors import StarError
from ..say import say
from . import precision
from .optimizer import enough, parameter_groups, rate
from .progress import Progress
from .recipe import TrainingConfig
from .run_folder import RunFolder

clock = time.monotonic
"""What a run's seconds are counted by."""


class Training:
    """What one kind of training gives the loop."""

    config: TrainingConfig
    total: int | None
    """Updates of the whole run; None where the clock decides."""
    model: nn.Module
    """All that is trained. ``model(batch)``: the loss (a scalar) and its terms by name; a term ``loss`` is logged in the loss's place."""
    label = ""
    """In front of every line of progress."""
    workers = 0
    """Data workers of ``loader``: as many as are asked for; :func:`fit` makes it as many as there are cores for."""
    begins_at: tuple[int, int, int] = (0, 0, 0)
    """Where a run that does not go on with a state begins: epoch, batches of it that are done, and their ``audio_crc32``."""
    too_few_updates = ""
    """At the end of a run whose budget of time bought too few updates to learn: that it did."""

    def others(self) -> dict[str, nn.Module]:
        """What takes part without being trained or saved (a teacher), by name."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; the first one's learning rate is the run's, ``scale`` makes another's a multiple of it."""
        return parameter_groups([self.model], self.config.weight_decay, self.config.decay)

    def sampler(self, rank: int, world: int) -> Any:
        """The training batches of this process: ``plan(epoch)``, ``epoch``, ``start``, ``rank``, ``world``."""
        raise NotImplementedError

    def validation_batches(self) -> list[Any]:
        """All of them, of every process."""
        raise NotImplementedError

    def loader(self, part: str, batches: Any) -> DataLoader:
        """Reads the ``batches`` of ``train`` or ``valid``."""
        raise NotImplementedError

    def seconds(self, batch: Any) -> float:
        """Audio in a batch, padding included."""
        raise NotImplementedError

    def audio(self, batch: Any) -> torch.Tensor | None:
        """What of a batch the log's ``audio_crc32`` counts; None: there is no such column."""
        return None

    def weight(self, batch: Any) -> float:
        """What a batch counts in a validation's means."""
        return self.seconds(batch)

    def judge(self, row: dict[str, float]) -> tuple[dict[str, float], float]:
        """A validation's means (``valid/...``), completed, and the number whose lowest value makes ``best``."""
        return row, row["valid/loss"]

    def before_update(self, share: float) -> None:
        """Told how much of the run has passed, in the middle of the coming update."""

    def taken(self, batch: Any) -> None:
        """Told of each training and validation batch as it arrives."""

    def extras(self) -> dict[str, float]:
        """Further columns of the training log."""
        return {}

    def note(self, row: dict[str, Any]) -> str:
        """Further words of a line of progress."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Digests of what a resumed run must find as it was, kept with the state."""
        return {}

    def save(self, update: int, row: dict[str, Any], best: bool) -> None:
        """Write the model as ``last``, and as ``best`` when the validation in ``row`` was the best so far."""


def fit(training: Training, folder: RunFolder, state: dict[str, Any] | None = None) -> int:
    """Run ``training`` to its end, from the start or from ``state``, on the devices that its configuration asks for; its updates."""
    if state is not None and state["finished"]:
        training.model.load_state_dict(state["model"])
        training.too_few_updates = too_few(training, state["update"])
        return state["update"]
    loop = _Loop(training, folder)
    try:
        with _cores(training):
            loop.run(state)
    except StarError as error:
        # an error from a data worker arrives with that process's traceback in its text
        raise StarError(
            str(error).strip().splitlines()[-1].removeprefix(f"{StarError.__module__}.StarError: ")
        ) from None
    if folder.lead and training.too_few_updates:
        fix = "give it more minutes, smaller batches or a faster machine"
        say(f"{folder.path}: {training.label}{training.too_few_updates}; {fix}")
    return loop.update


def too_few(training: Training, update: int) -> str:
    """What is to be said of a run that its budget of time ended after ``update`` updates; empty where they are enough."""
    needed = enough(training.config)
    if training.total is not None or update >= needed:
        return ""
    minutes = training.config.minutes
    done = f"{update} update{'s' * (update != 1)} in {minutes:g} minute{'s' * (minutes != 1)}"
    return f"{done}, and a run needs {needed} at least to learn from"


@contextlib.contextmanager
def _cores(training: Training) -> Iterator[None]:
    """Torch's threads and data workers of all processes together ask for no more cores than there are."""
    config, name = training.config, "OMP_NUM_THREADS"
    threads, variable = torch.get_num_threads(), os.environ.get(name)
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    mine, training.workers = cores.divide(training.workers, config.devices, gpu)
    torch.set_num_threads(mine)
    if config.devices > 1:
        os.environ[name] = str(mine)  # the other processes begin with it; Lightning would set a number of its own
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if config.devices > 1:
            os.environ.pop(name)
            os.environ.update({} if variable is None else {name: variable})


class _Loop:
    def __init__(self, training: Training, folder: RunFolder):
        self.training, self.config, self.folder = training, training.config, folder
        self.update, self.elapsed, self.best = 0, 0.0, None
        self.row: dict[str, Any] = {}
        """The latest value of every column of the log."""
        self.sums: dict[str, torch.Tensor] = {}
        """Sum and count of each term since the last line of the log."""
        self.audio_seconds, self.audio_crc = 0.0, 0
        """Of all training batches so far, each with the one of those before it: equal where all audio was, and its order."""
        self.compared = False
        self.comparison: dict[str, Any] | None = None
        """Where the run is in reduced precision: on what it was compared with fp32, and which modules are in fp32 since."""

    def run(self, state: dict[str, Any] | None) -> None:
        self.begin(state)
        with self.progress:
            batches = iter(self.training.loader("train", self.stream))
            while not self.finished:
                self.training.before_update(self.share)
                for number in range(self.config.accumulate):
                    self.learn(next(batches), last=number + 1 == self.config.accumulate)
                self.step()
                validates = self.finished or self.update % self.config.validate_every == 0
                if self.finished or self.update % self.config.log_every == 0:
                    self.log_training()
                if validates:
                    self.validate()
                if validates or self.update % self.config.save_every == 0:
                    self.save_state()

    # begin

    def begin(self, state: dict[str, Any] | None) -> None:
        training, config = self.training, self.config
        self.fabric = make_fabric(config, self.folder)
        self.fabric.launch()
        rank, world = self.fabric.global_rank, self.fabric.world_size
        for module in training.others().values():
            module.to(self.fabric.device)
        optimizer = torch.optim.AdamW(
            training.groups(), config.learning_rate, betas=config.betas, eps=config.eps, fused=fused(config)
        )
        self.model, self.optimizer = self.fabric.setup(training.model, optimizer)
        self.model.train()
        self.sampler = training.sampler(rank, world)
        self.stream = BatchStream(self.sampler)
        if state is not None:
            self.resume(state)
        else:
            self.sampler.epoch, self.sampler.start, self.audio_crc = training.begins_at
        self.folder.open_log(self.update)
        self.clock = self.since = clock()
        self.heard = 0.0
        self.progress = Progress(self, shown=self.fabric.is_global_zero)

    def resume(self, state: dict[str, Any]) -> None:
        training = self.training
        training.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["precision"]:
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.sampler.epoch, self.sampler.start = state["position"]
        self.update, self.elapsed, self.best = state["update"], state["elapsed"], state["best"]
        self.sums = {name: value.to(self.fabric.device) for name, value in state["sums"].items()}
        self.audio_seconds, self.audio_crc = state.get("audio", (0.0, 0))
        self.comparison = state.get("comparison")
        if self.comparison is not None:
            precision.move(self.parts, self.comparison["in_fp32"])

    @property
    def share(self) -> float:
        """How much of the run has passed, in the middle of the coming update."""
        if self.training.total is None:
            return self.elapsed / (self.config.minutes * 60)
        return (self.update + 0.5) / self.training.total

    @property
    def finished(self) -> bool:
        if self.training.total is None:
            return self.elapsed >= self.config.minutes * 60
        return self.update >= self.training.total

    # the first batch

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {**dict(self.training.model.named_children()), **self.training.others()}

    def compare(self, batch: Any) -> None:
        """In reduced precision: compare with fp32 on ``batch``, and move to fp32 what deviates, the same modules in every process.

        A resumed run has its modules from its state; it is compared again where it goes on in another place than it was compared in.
        """
        kind = precision.reduced_type(self.fabric.strategy.precision.precision, self.fabric.device)
        if kind is None:
            return
        place = precision.place(self.fabric.device)
        if self.everyones(self.comparison is not None and self.comparison["place"] == place).count(False) == 0:
            return
        found, fault = None, ""
        try:
            found = precision.settle(self.parts, lambda: self.training.model(batch), kind, self.fabric.device)
        except StarError as error:
            fault = str(error)
        if faults := list(filter(None, self.everyones(fault))):
            raise StarError(faults[0])
        records = self.everyones(found.record())
        moved = {**(self.comparison or {}).get("in_fp32", {})}
        for record in records:
            moved.update(record["in_fp32"])
        precision.move(self.parts, moved)
        self.comparison = {**found.record(), "place": place, "in_fp32": moved}
        if self.fabric.is_global_zero:
            self.folder.amend_environment({"compared_with_fp32": self.comparison})
            for line in found.told(moved):
                say(f"{self.folder.path}: {line}")
        self.clock = self.since = time.monotonic()

    def everyones(self, value: Any) -> list[Any]:
        """The value of each process."""
        values = [value] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    # a batch and an update

    def learn(self, batch: Any, last: bool) -> None:
        """Add a batch's gradients; processes share them at the ``last`` batch of an update."""
        training, sampler = self.training, self.sampler
        training.taken(batch)
        audio = training.audio(batch)
        if audio is not None:
            self.audio_crc = zlib.crc32(audio.contiguous().numpy().data, self.audio_crc)
        batch = self.fabric.to_device(batch)
        if not self.compared:
            self.compare(batch)
            self.compared = True
        # dropout depends on the place in the run alone, so a resumed run draws what an unbroken one draws
        seed = np.random.SeedSequence((self.config.seed, sampler.epoch, sampler.start, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        with (
            self.fabric.no_backward_sync(self.model, enabled=not last)
            if self.fabric.world_size > 1
            else contextlib.nullcontext()
        ):
            loss, terms = self.model(batch)
            if not math.isfinite(loss.item()):
                raise StarError(
                    f"the loss is {loss.item()} at update {self.update}; files of the batch: {', '.join(batch.paths)}"
                )
            self.fabric.backward(loss / self.config.accumulate)
        for name, value in {"loss": loss.detach(), **terms}.items():
            pair = torch.stack([value.float(), torch.ones_like(value, dtype=torch.float32)])
            self.sums[name] = self.sums.get(name, 0.0) + pair
        seconds = training.seconds(batch) * self.fabric.world_size
        self.heard, self.audio_seconds = self.heard + seconds, self.audio_seconds + seconds
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
        self.progress.advance()

    def tick(self) -> None:
        now = clock()
        self.elapsed, self.clock = self.elapsed + now - self.clock, now
        if self.training.total is None:
            # one clock decides: the learning rate and the end must be the same in every process
            self.elapsed = self.fabric.broadcast(self.elapsed)

    @property
    def speed(self) -> float:
        """Seconds of audio a second since the last line of the log."""
        return self.heard / max(clock() - self.since, 1e-9)

    # the log

    def log_training(self) -> None:
        self.share_sums()
        means = {name: (total / count).item() for name, (total, count) in self.sums.items()}
        row: dict[str, Any] = {f"train/{n}": means[n] for n in sorted(means, key=lambda n: (n != "loss", n))}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        now = clock()
        row["audio_seconds_per_second"] = round(self.speed, 2)
        row["audio_hours"] = round(self.audio_seconds / 3600, 4)
        row.update(self.training.extras())
        self.sums, self.heard, self.since = {}, 0.0, now
        self.write(row, {"audio_crc32": self.audio_crc} if self.audio_crc else {})

    def share_sums(self) -> None:
        """Replace each process's sums by their mean over processes."""
        if self.sums:
            values = self.fabric.all_reduce(torch.stack(list(self.sums.values())), reduce_op="mean")
            self.sums = dict(zip(self.sums, values))

    def write(self, row: dict[str, Any], marks: dict[str, int] | None = None) -> None:
        """``marks``: columns of the log that are no measurements."""
        position = {"update": self.update, "epoch": self.sampler.epoch, "seconds": round(self.elapsed, 1)}
        self.row = {**self.row, **position, **row}
        self.folder.log({**position, **row, **(marks or {})})
        self.fabric.log_dict({**position, **row}, step=self.update)

    # validation, state, end

    @torch.no_grad()
    def validate(self) -> None:
        rank, world, training = self.fabric.global_rank, self.fabric.world_size, self.training
        self.progress.validating()
        batches = training.validation_batches()
        # with too few to share, every process takes all of them: the mean is the same
        batches = batches[rank::world] if len(batches) >= world else batches
        self.model.eval()
        sums: dict[str, np.ndarray] = {}
        for batch in training.loader("valid", batches):
            training.taken(batch)
            loss, terms = self.model(self.fabric.to_device(batch))
            weight = training.weight(batch)
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + np.array([float(value) * weight, weight])
        self.model.train()
        means = self.over_processes(sums)
        row = {f"valid/{n}": means[n] for n in sorted(means, key=lambda n: (n != "loss", n))}
        row, score = training.judge(row)
        if not math.isfinite(row["valid/loss"]):
            fix = "lower training.learning_rate, or set training.clip"
            raise StarError(f"the validation loss is {row['valid/loss']} at update {self.update}; {fix}")
        better = self.best is None or score < self.best
        self.best = score if better else self.best
        self.tick()
        self.write(row)
        training.too_few_updates = too_few(training, self.update) if self.finished else ""
        if self.fabric.is_global_zero:
            training.save(self.update, self.row, better)
        self.progress.validated()
        self.since = clock()

    def over_processes(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Means of each name over the batches of all processes; one process may have names that another has not."""
        everyones = self.everyones(sums)
        names = sorted({name for one in everyones for name in one})
        totals = {name: sum(one[name] for one in everyones if name in one) for name in names}
        return {name: float(total / weight) for name, (total, weight) in totals.items()}

    def save_state(self) -> None:
        self.share_sums()
        if not self.fabric.is_global_zero:
            return
        self.folder.save_state(
            {
                "identity": self.training.identity(),
                "model": self.training.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "comparison": self.comparison,
                "sums": {name: value.cpu() for name, value in self.sums.items()},
                "position": [self.sampler.epoch, self.sampler.start],
                "audio": [self.audio_seconds, self.audio_crc],
                "update": self.update,
                "elapsed": self.elapsed,
                "best": self.best,
                "finished": self.finished,
            }
        )


def make_fabric(config: TrainingConfig, folder: RunFolder) -> Fabric:
    """Devices, precision and logger as the configuration has them."""
    strategy: Any = "auto"
    if config.devices > 1:
        # a loss may leave parts of the student out: the layers above its highest one, or all but the attention of the last
        strategy = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    return Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=strategy,
        precision="32-true" if config.precision == 32 else config.precision,
        loggers=TensorBoardLogger(str(folder.path), name="", version="tensorboard"),
    )


def fused(config: TrainingConfig) -> bool:
    """Whether the optimizer may take its fused form: the loss scaler of fp16 and it do not go together on every device."""
    return config.precision != "16-mixed"
