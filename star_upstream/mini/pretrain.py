"""How the mini teacher was made: HuBERT's masked prediction of k-means units (Hsu et al. 2021), small enough for two CPU cores.

    python -m star_upstream.mini.pretrain FOLDER_OR_MANIFEST... --out RUN [--recipe pretrain.yaml] [key=value ...]

Round 1 predicts units of MFCC frames, the others units of a layer of the model before. Budgets are counted in updates. A rerun goes
on where the last one stopped, after a kill too, with the losses it would have had.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import augment, cores, outputs, strict, units
from ..augment import AugmentConfig
from ..crops import Crops, CropSampler, collate
from ..data.clips import Clip, scan
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError
from ..files import replacing, write_json
from ..formats import checkpoint, sources
from ..losses.units import MaskConfig, MaskedUnits, draw_mask
from ..say import say
from ..training.precision import agree, autocast, move

LOG = (
    "update",
    "rate",
    "loss",
    "masked",
    "unmasked",
    "accuracy",
    "seconds_of_audio",
    "cpu_seconds",
    "valid_masked",
    "valid_accuracy",
)


@dataclass(frozen=True)
class Round:
    """One round of masked prediction."""

    features: str
    """``mfcc``, or ``layerN``: outputs of layer N of the model before, of round 1 the recipe's ``begin``."""
    units: int
    updates: int
    fresh: bool = False
    """Begin with new weights, as HuBERT does; otherwise with those of the model before, and a new classifier."""
    learning_rate: float | None = None
    """Instead of the recipe's."""

    def __post_init__(self):
        if self.features != "mfcc" and not re.fullmatch(r"layer\d+", self.features):
            raise StarError(f"features: expected mfcc or layerN, got {self.features!r}")
        if self.units < 2 or self.updates < 1:
            raise StarError("units must be 2 or more, updates 1 or more")

    @property
    def layer(self) -> int | None:
        return None if self.features == "mfcc" else int(self.features.removeprefix("layer"))


@dataclass(frozen=True)
class Pretraining:
    """The recipe: ``pretrain.yaml`` beside this file."""

    encoder: EncoderConfig
    rounds: tuple[Round, ...]
    begin: str | None = None
    """A model to begin with, any source that :func:`star_upstream.formats.sources.load` takes: round 1 goes on from its weights unless it is
    ``fresh``, and may take units from its layers."""
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    learning_rate: float = 1.0e-3
    warmup: int = 200
    """Updates over which the rate rises; from there it falls linearly, to nothing at the end of the round."""
    weight_decay: float = 0.01
    gradient_norm: float = 5.0
    batch_seconds: float = 20.0
    crop_seconds: float = 5.0
    min_seconds: float = 0.5
    valid_clips: int = 60
    """Clips, drawn from all, that are not learned from; the log has the loss on a crop of each."""
    log_every: int = 50
    save_every: int = 100
    valid_every: int = 250
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    """``auto`` takes bf16 where an update takes at most 0.87 of fp32's time with it (AMX, GPUs), and fp32 elsewhere; measured once, when a
    round begins. What bf16 does not compute right is computed in fp32 (:mod:`star_upstream.training.precision`)."""
    workers: int = 0
    """Processes that make batches ahead: for a GPU, of as many as there are cores to spare. On a CPU they would take the model's time."""
    seed: int = 0

    def __post_init__(self):
        if not self.rounds:
            raise StarError("rounds: name at least one")
        if min(self.log_every, self.save_every, self.valid_every) < 1 or self.save_every % self.log_every:
            raise StarError(
                "log_every, save_every, valid_every: 1 update or more; save_every must be a multiple of log_every"
            )
        if self.rounds[0].layer is not None and self.begin is None:
            raise StarError(
                f"round 1: {self.rounds[0].features} of which model? name a checkpoint as begin, or take mfcc"
            )


def schedule(update: int, updates: int, warmup: int) -> float:
    """The learning rate's factor at ``update``, from 0: a linear rise, then a linear fall to 0 after the last one."""
    return min((update + 1) / max(1, warmup), (updates - update) / max(1, updates - warmup), 1.0)


def split(clips: Sequence[Clip], count: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Clips to learn from, and ``count`` others drawn for validation; both keep their order."""
    if count >= len(clips):
        raise StarError(f"valid_clips: {count} of {len(clips)} clips leave none to learn from")
    drawn = set(np.random.default_rng(seed).choice(len(clips), count, replace=False).tolist())
    return [c for i, c in enumerate(clips) if i not in drawn], [c for i, c in enumerate(clips) if i in drawn]


def find_units(clips: Sequence[Clip], round_: Round, before: Encoder | None, recipe: Pretraining) -> list[np.ndarray]:
    """One array of unit numbers a clip."""
    if round_.layer is None:
        return units.cluster(
            units.all_mfcc(clips, recipe.encoder, jobs=torch.get_num_threads()), round_.units, recipe.seed
        )
    (features,) = units.layers(clips, before.to("cuda" if torch.cuda.is_available() else "cpu"), [round_.layer])
    return units.cluster(features, round_.units, recipe.seed)


class Training:
    """One round: the model, its optimizer, and how far it is."""

    KEPT = ("updates", "seconds", "cpu", "precision", "in_fp32")

    def __init__(self, recipe: Pretraining, round_: Round, number: int, before: Encoder | None, out: Path):
        self.recipe, self.round, self.number, self.out = recipe, round_, number, out
        torch.manual_seed(recipe.seed + number)
        encoder = Encoder(recipe.encoder)
        if before is not None and not round_.fresh:
            encoder.load_state_dict(before.state_dict())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = MaskedUnits(encoder, round_.units, recipe.mask).to(self.device).train()
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.updates, self.seconds, self.cpu = 0, 0.0, 0.0
        self.precision: str | None = None
        self.in_fp32: list[str] = []

    def resume(self) -> None:
        """Go on from ``state.pt``, if it is there."""
        file = self.out / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True, map_location=self.device)
        there = {**state["recipe"], "rounds": state["recipe"]["rounds"][self.number - 1]}
        here = {**strict.plain(self.recipe), "rounds": strict.plain(self.round)}
        changed = strict.difference(there, here, free=("log_every", "save_every", "valid_every", "begin", "workers"))
        if changed:
            raise StarError(
                f"{file}: the run began with another recipe: {changed}; restore it, or choose another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self.KEPT:
            setattr(self, name, state[name])
        move({"model": self.model}, self.in_fp32)
        self._trim_log()

    def settle(self, waveforms_BN: Tensor, units_BT: Tensor) -> None:
        """Which precision the round is in, decided on its first batch."""
        if self.precision is not None:
            return
        call = partial(self._loss, waveforms_BN, units_BT, (self.recipe.seed,))
        self.precision = self.recipe.precision
        if self.precision == "auto":
            gpu, seconds = self.device.type == "cuda", {}
            clock = time.perf_counter if gpu else time.process_time
            for name in ("32", "bf16-mixed", "32", "bf16-mixed"):
                self.precision, begun = name, clock()
                call()[0].backward()
                if gpu:
                    torch.cuda.synchronize()
                seconds[name] = clock() - begun  # the first of each also made what the kernels need
                self.optimizer.zero_grad(set_to_none=True)
            self.precision = "bf16-mixed" if seconds["bf16-mixed"] <= 0.87 * seconds["32"] else "32"
            times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
            say(f"round {self.number}: precision {self.precision} (forward and backward: {times})")
        self.in_fp32 = agree({"model": self.model}, call, self.precision, self.device, f"round {self.number}")

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recipe": strict.plain(self.recipe),
        }
        with replacing(self.out / "state.pt") as part:
            torch.save({**state, **{name: getattr(self, name) for name in self.KEPT}}, part)

    def update(self, waveforms_BN: Tensor, units_BT: Tensor) -> dict[str, float]:
        """One step of the optimizer; what the log shows of it."""
        recipe = self.recipe
        rate = (self.round.learning_rate or recipe.learning_rate) * schedule(
            self.updates, self.round.updates, recipe.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # dropout, where the encoder has any, is a function of the place in the run as well
        torch.manual_seed(1_000_003 * recipe.seed + self.updates)
        loss, terms = self._loss(waveforms_BN, units_BT, (recipe.seed, self.number, self.updates))
        if not torch.isfinite(loss):
            raise StarError(
                f"round {self.number}: the loss is {loss.item()} at update {self.updates}; lower learning_rate"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.seconds += waveforms_BN.numel() / 16_000
        return {"rate": rate, "loss": loss.item(), **{name: term.item() for name, term in terms.items()}}

    def _loss(self, waveforms_BN: Tensor, units_BT: Tensor, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        mask_BT = draw_mask(*units_BT.shape, self.recipe.mask, np.random.default_rng(seed))
        with autocast(self.precision, self.device):
            return self.model(waveforms_BN.to(self.device), units_BT.to(self.device), mask_BT.to(self.device))

    @torch.inference_mode()
    def validate(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The masked frames' loss and accuracy over fixed crops and masks, each crop with the same weight a second."""
        self.model.eval()
        sums, frames = np.zeros(2), 0
        for place, (waveforms_BN, units_BT) in enumerate(batches):
            _, terms = self._loss(waveforms_BN, units_BT, (self.recipe.seed, place))
            sums += units_BT.numel() * np.array([terms["masked"].item(), terms["accuracy"].item()])
            frames += units_BT.numel()
        self.model.train()
        return {"valid_masked": sums[0] / frames, "valid_accuracy": sums[1] / frames}

    def log(self, values: dict[str, float]) -> None:
        row = {"update": self.updates, "seconds_of_audio": self.seconds, "cpu_seconds": self.cpu, **values}
        line = ",".join(f"{row[name]:.6g}" if name in row else "" for name in LOG)
        say(f"round {self.number}: {line}")
        file = self.out / "log.csv"
        text = line if file.is_file() else ",".join(LOG) + "\n" + line
        with open(file, "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def _trim_log(self) -> None:
        """Rows past the state that is gone on from are written anew."""
        file = self.out / "log.csv"
        if file.is_file():
            head, *rows = file.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= self.updates]
            with replacing(file) as part:
                part.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")


def train(training: Training, learned: Crops, held: Crops, stop: int | None = None) -> dict[str, float]:
    """From where ``training`` stands to the round's end, or to update ``stop``; the last row of the log."""
    recipe, round_ = training.recipe, training.round
    sampler = CropSampler(
        learned.clips, recipe.crop_seconds, recipe.batch_seconds, recipe.seed + training.number, training.updates
    )
    fixed = CropSampler(held.clips, recipe.crop_seconds, recipe.batch_seconds, recipe.seed)
    batches = [collate([held[place] for place in places]) for places, _ in zip(fixed, range(len(fixed.plans)))]
    end, seen, row, clock = min(round_.updates, stop or round_.updates), [], {}, time.process_time()
    threads, workers = cores.divide(recipe.workers, gpu=training.device.type == "cuda")
    torch.set_num_threads(threads)
    for waveforms_BN, units_BT in DataLoader(learned, batch_sampler=sampler, collate_fn=collate, num_workers=workers):
        if training.updates >= end:
            break
        training.settle(waveforms_BN, units_BT)
        seen.append(training.update(waveforms_BN, units_BT))
        training.cpu, clock = training.cpu + time.process_time() - clock, time.process_time()
        last = training.updates == end
        if training.updates % recipe.log_every == 0 or last:
            means = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]} | {"rate": seen[-1]["rate"]}
            valid = training.validate(batches) if last or training.updates % recipe.valid_every == 0 else {}
            training.log(row := means | valid)
            seen, clock = [], time.process_time()
        if training.updates % recipe.save_every == 0 or last:
            training.save()
    return row


def run_round(recipe: Pretraining, number: int, clips: Sequence[Clip], before: Encoder | None, out: Path) -> Encoder:
    """Units, training, and the encoder that comes of it, kept in ``out/encoder``; what is there already is not made again."""
    round_ = recipe.rounds[number - 1]
    if (out / "encoder").is_dir():
        return checkpoint.load(out / "encoder")
    learned, held = split(clips, recipe.valid_clips, recipe.seed)
    if before is not None and not round_.fresh and before.config != recipe.encoder:
        raise StarError(
            f"round {number}: the model before has another shape (encoder); set fresh: true to begin with new weights"
        )
    if round_.layer is not None and round_.layer > before.config.layers:
        raise StarError(f"round {number}: {round_.features} of a model with {before.config.layers} layers")
    if round_.layer is not None and before.config.stride != recipe.encoder.stride:
        strides = f"{before.config.stride} samples apart, this one's {recipe.encoder.stride}"
        raise StarError(f"round {number}: frames of the model before are {strides}; units need equal ones")
    file, clock = out / "units.npz", time.process_time()
    if not file.is_file():
        units.write(file, find_units(clips, round_, before, recipe))
        say(f"round {number}: units made in {time.process_time() - clock:.0f} s of this process")
    found = dict(zip(clips, units.read(file, [recipe.encoder.frames(clip.samples) for clip in clips])))
    crops = [
        Crops(part, [found[clip] for clip in part], recipe.encoder, config, recipe.seed + number)
        for part, config in ((learned, recipe.augment), (held, augment.NONE))
    ]
    training = Training(recipe, round_, number, before, out)
    training.resume()
    train(training, *crops)
    encoder = training.model.encoder.cpu().eval()
    encoder.mask_vector = training.model.mask_embedding.detach().cpu()
    provenance = {"made_by": "star_upstream.mini.pretrain", "recipe": strict.plain(recipe), "round": number}
    seen = {"clips": len(learned), "hours_heard": round(training.seconds / 3600, 2), "cpu_seconds": round(training.cpu)}
    checkpoint.save(out / "encoder", encoder, {**provenance, **seen}, torch.float16)
    return checkpoint.load(out / "encoder")


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with changes whose keys are dotted for sections."""
    merged = copy.deepcopy(dict(values))
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = merged
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return merged


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Pretraining:
    """The recipe with ``key=value`` changes, dotted for sections; values are yaml."""
    pairs = [change.partition("=") for change in changes]
    for key, equals, _ in pairs:
        if not equals:
            raise StarError(f"{key}: expected key=value")
    values = merge(
        yaml.safe_load(path.read_text(encoding="utf-8")), {key: yaml.safe_load(value) for key, _, value in pairs}
    )
    return strict.build(Pretraining, values, path.name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m star_upstream.mini.pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="+", help="folders, lists of audio, audio files; key=value changes the recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("pretrain.yaml"))
    args = parser.parse_intermixed_args(argv)
    changes = [text for text in args.data if "=" in text and not Path(text).exists()]
    recipe = read_recipe(args.recipe, changes)
    outputs.claim_folder(args.out, "star_upstream.mini.pretrain")
    corpus = scan([text for text in args.data if text not in changes], min_seconds=recipe.min_seconds)
    say(f"{len(corpus.clips)} clips, {corpus.seconds / 3600:.2f} h")
    encoder = sources.load(recipe.begin) if recipe.begin else None
    for number in range(1, len(recipe.rounds) + 1):
        encoder = run_round(recipe, number, corpus.clips, encoder, args.out / f"round{number}")
    made = str(args.out / f"round{len(recipe.rounds)}" / "encoder")
    write_json(args.out / "done.json", {"encoder": made})
    print(json.dumps({"encoder": made}))


if __name__ == "__main__":
    try:
        main()
    except StarError as error:
        say(f"error: {error}")
        sys.exit(2)
