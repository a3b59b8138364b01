"""What every training has in common: optimizer, schedule, exact resumption, logs, and the Lightning trainer.

A training is a :class:`Learner`. Lightning runs it in rounds: the batches from one validation to the next are one Lightning
epoch. Epochs of the data are :class:`BatchStream`'s business, and what must survive an interruption is in
:meth:`Learner.state`, so nothing depends on how Lightning restores its loops.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from typing import Any, Iterable

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from . import audio
from .data import Batch, BatchStream
from .errors import StarError
from .recipe import TrainingConfig
from .run_folder import RunFolder


def rate(share: float, config: TrainingConfig) -> float:
    """Learning rate when ``share`` of the run (0 to 1) has passed: a linear rise, then cosine or linear decay to 0, or none."""
    share = min(max(share, 0.0), 1.0)
    if share < config.warmup:
        return config.learning_rate * share / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    left = (1.0 - share) / (1.0 - config.warmup)
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay; biases, norms and other vectors without.

    A group's ``scale`` (1 where it has none) is its learning rate as a multiple of the run's.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


class Learner(pl.LightningModule):
    """A training that resumes exactly. A subclass gives :meth:`measure` and :meth:`save_models`, sets ``stream`` in ``setup``, and
    hands out its loaders.

    ``update``, ``elapsed`` (seconds) and ``best`` (validation loss) say how far it is.
    """

    stream: BatchStream
    label = ""
    """In front of every line of progress."""

    def __init__(self, config: TrainingConfig, folder: RunFolder, total: int | None, state: dict[str, Any] | None):
        super().__init__()
        self.config, self.folder = config, folder
        self.total = total
        """Updates of the whole run; None where the clock decides."""
        self.update, self.elapsed = 0, 0.0
        self.best: float | None = None
        self.last_row: dict[str, Any] = {}
        self._batches = 0
        self._sums: dict[str, Tensor] = {}
        self._since = 0.0
        self._resumed = state

    # what a subclass gives

    def measure(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (a scalar) and its parts by name; a part named ``loss`` is logged in the loss's place."""
        raise NotImplementedError

    def save_models(self, best: bool) -> None:
        """Write ``last/``, and ``best/`` when this validation was the best so far; called by the first process."""
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; the first one's learning rate is the run's."""
        return parameter_groups([self], self.config.weight_decay)

    def extras(self) -> dict[str, float]:
        """Further columns of the log."""
        return {}

    def note(self) -> str:
        """Further words of a line of progress."""
        return ""

    # state

    @property
    def share(self) -> float:
        """How much of the run has passed, in the middle of the coming update."""
        if self.total is None:
            return self.elapsed / (self.config.minutes * 60)
        return (self.update + 0.5) / self.total

    @property
    def finished(self) -> bool:
        return self.elapsed >= self.config.minutes * 60 if self.total is None else self.update >= self.total

    def batches_to_validation(self) -> int:
        """Batches of this process from here to the next validation."""
        every = self.config.validate_every
        updates = every - self.update % every
        return (updates if self.total is None else min(updates, self.total - self.update)) * self.config.accumulate

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; the same in every process."""
        sampler, plugin = self.stream.sampler, self.trainer.precision_plugin
        return {
            "model": self.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "precision": plugin.state_dict(),
            "sums": {k: v.cpu() for k, v in self._sums.items()},
            "position": [sampler.epoch, sampler.start],
            "update": self.update,
            "elapsed": self.elapsed,
            "best": self.best,
            "finished": self.finished,
        }

    def on_fit_start(self) -> None:
        state, self._resumed = self._resumed, None
        if state is not None:
            self.load_state_dict(state["model"])
            self.trainer.optimizers[0].load_state_dict(state["optimizer"])
            if state["precision"]:
                self.trainer.precision_plugin.load_state_dict(state["precision"])
            self.stream.sampler.epoch, self.stream.sampler.start = state["position"]
            for name in ("update", "elapsed", "best"):
                setattr(self, name, state[name])
            self._sums = {k: v.to(self.device) for k, v in state["sums"].items()}
        self.folder.open_log(self.update)
        self._clock = self._since_time = time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        self.elapsed, self._clock = self.elapsed + now - self._clock, now
        if self.total is None:
            # one clock decides: the learning rate and the end must be the same in every process
            self.elapsed = self.trainer.strategy.broadcast(self.elapsed)

    def _share_sums(self) -> None:
        """Replace each process's sums by their mean over processes."""
        if self._sums:
            values = self.trainer.strategy.reduce(torch.stack(list(self._sums.values())), reduce_op="mean")
            self._sums = dict(zip(self._sums, values))

    def _save(self) -> None:
        self._share_sums()
        if self.trainer.is_global_zero:
            self.folder.save_state(self.state())

    # training

    def configure_optimizers(self):
        config = self.config
        # the fused form cannot be combined with clipping or loss scaling in Lightning
        fused = not config.clip and config.precision != "16-mixed"
        return torch.optim.AdamW(self.groups(), config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # dropout depends on the place in the run alone, so a resumed run draws what an unbroken one draws
        sampler = self.stream.sampler
        seed = np.random.SeedSequence((self.config.seed, sampler.epoch, sampler.start, self.global_rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        if self._batches % self.config.accumulate == 0:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = rate(self.share, self.config) * group.get("scale", 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, terms = self.measure(batch)
        if not math.isfinite(loss.item()):
            raise StarError(f"the loss is {loss.item()} at update {self.update}; files of the batch: {', '.join(batch.paths)}")
        for name, value in {"loss": loss.detach(), **terms, "batches": torch.ones((), device=self.device)}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
        return loss

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        self.stream.advance()
        self._batches += 1
        self._since += batch.waveforms_BN.numel() / audio.RATE * self.trainer.world_size
        if self._batches % self.config.accumulate:
            return
        self.update += 1
        self._tick()
        if self.finished:
            self.trainer.should_stop = True
        if self.update % self.config.log_every == 0 or self.finished:
            self._log_training()
        # at a validation the state is saved after it, so that a resumed run does not miss it
        if self.update % self.config.save_every == 0 and self.update % self.config.validate_every and not self.finished:
            self._save()

    def _log_training(self) -> None:
        self._share_sums()
        means = {name: value.item() for name, value in self._sums.items()}
        batches = means.pop("batches")
        now = time.monotonic()
        row = {f"train/{n}": means[n] / batches for n in sorted(means, key=lambda n: (n != "loss", n))}
        row["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        row["audio_seconds_per_second"] = round(self._since / max(now - self._since_time, 1e-9), 2)
        row.update(self.extras())
        self._sums, self._since, self._since_time = {}, 0.0, now
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        position = {"update": self.update, "epoch": self.stream.sampler.epoch, "seconds": round(self.elapsed, 1)}
        self.last_row = {**self.last_row, **position, **row}
        self.folder.log({**position, **row})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.update)

    # validation

    def on_validation_epoch_start(self) -> None:
        self._valid: dict[str, float] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, terms = self.measure(batch)
        seconds = batch.waveforms_BN.numel() / audio.RATE
        for name, value in {"loss": loss, **terms, "seconds": 1.0}.items():
            self._valid[name] = self._valid.get(name, 0.0) + float(value) * seconds

    def on_validation_epoch_end(self) -> None:
        # a process may have had no batch: names are agreed on, sums are added up
        names = self.trainer.strategy.broadcast(sorted(self._valid))
        values = torch.tensor([self._valid.get(n, 0.0) for n in names], device=self.device)
        means = dict(zip(names, self.trainer.strategy.reduce(values, reduce_op="sum").tolist()))
        seconds = means.pop("seconds")
        row = {f"valid/{n}": means[n] / seconds for n in sorted(means, key=lambda n: (n != "loss", n))}
        loss = row["valid/loss"]
        if not math.isfinite(loss):
            fix = "lower training.learning_rate, or set training.clip"
            raise StarError(f"the validation loss is {loss} at update {self.update}; {fix}")
        better = self.best is None or loss < self.best
        self.best = loss if better else self.best
        self._tick()
        self._write(row)
        if self.trainer.is_global_zero:
            self.save_models(better)
        self._since_time = time.monotonic()
        self._save()


class Progress(pl.Callback):
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, every_seconds: float = 15.0):
        self.every, self.bar, self.printed = every_seconds, None, 0.0

    def on_train_start(self, trainer, learner: Learner) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(stderr=True), transient=False)
            self.task = self.bar.add_task("", total=1.0)
            self.bar.start()

    def on_train_batch_end(self, trainer, learner: Learner, *_) -> None:
        if not trainer.is_global_zero:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=min(1.0, learner.share), description=self._line(learner))
        elif "train/loss" in learner.last_row and time.monotonic() - self.printed > self.every:
            self.printed = time.monotonic()
            print(f"{min(1.0, learner.share):4.0%}  {self._line(learner)}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer, learner: Learner) -> None:
        if trainer.is_global_zero and self.bar is None:
            print(f"{min(1.0, learner.share):4.0%}  {self._line(learner)}", file=sys.stderr, flush=True)

    def _line(self, learner: Learner) -> str:
        row = learner.last_row
        names = {"train/loss": "loss {:.4g}", "valid/loss": "valid {:.4g}", "learning_rate": "lr {:.2g}"}
        parts = [text.format(row[name]) for name, text in names.items() if name in row]
        speed = row.get("audio_seconds_per_second")
        words = [f"{learner.label}update {learner.update}", *parts, learner.note(), f"{speed:.0f} s of audio a second" if speed else ""]
        return "  ".join(word for word in words if word)

    def on_train_end(self, trainer, learner) -> None:
        if self.bar is not None:
            self.bar.stop()

    def on_exception(self, trainer, learner, exception) -> None:
        self.on_train_end(trainer, learner)


def fit(learner: Learner) -> None:
    """Run the training to its end, on the devices that its configuration asks for."""
    config, folder = learner.config, learner.folder
    strategy = "auto"
    if config.devices > 1:
        # a loss may leave parts of the student out: the layers above its highest one, or all but the attention of the last
        strategy = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for noise in (".*does not have many workers.*", ".*isinstance.treespec, LeafSpec.*", ".*sync_dist.*"):
        warnings.filterwarnings("ignore", noise)
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=strategy,
        precision="32-true" if config.precision == 32 else config.precision,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None,
        logger=TensorBoardLogger(str(folder.path), name="", version="tensorboard"),
        callbacks=[Progress()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
    )
    try:
        trainer.fit(learner)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except StarError as error:
        # an error from a data worker arrives with that process's traceback in its text
        raise StarError(str(error).strip().splitlines()[-1].removeprefix(f"{StarError.__module__}.StarError: ")) from None
