"""Pretraining: an encoder learns to predict, where it is masked, units of a simpler model (HuBERT, Hsu et al. 2021).

Round 1 takes units of MFCC frames or of a layer of a teacher, the others of a layer of the model before. Each round is
a training of its own in a folder of its own (``round1/`` and so on): log, state, ``units.npz`` and ``encoder/``, the
checkpoint that the next one begins with. Shapes: B crops, N samples, T frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import audio, augment, units
from ..crops import Crop, Crops, CropSampler
from ..data.clip_table import Clip, join
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError
from ..formats import checkpoint
from ..losses.units import MaskConfig, MaskedUnits, draw_mask
from ..say import say
from .fabric import one_device
from .pretrain_recipe import PretrainRecipe, Round
from .run_folder import RunFolder
from .start import Start
from .student import initialise
from .training import ClipTraining, Outcome

RESULT = (
    "round",
    "updates",
    "validation_loss",
    "validation_masked",
    "validation_accuracy",
    "audio_hours",
    "too_few_updates",
)
"""What of a checkpoint's provenance is a round's result, too."""


class UnitBatch(NamedTuple):
    """Crops of one length, and what is to be predicted of them."""

    waveforms_BN: Tensor
    units_BT: Tensor
    mask_BT: Tensor
    paths: list[str]


def collate(crops: Sequence[Crop], mask: MaskConfig, seed: int) -> UnitBatch:
    """A batch with its mask, a function of ``seed`` and the batch's place in the run."""
    units_BT = torch.stack([crop.units_T for crop in crops])
    place = crops[0].place
    utterances, frames = units_BT.shape
    mask_BT = draw_mask(utterances, frames, mask, np.random.default_rng((seed, place.epoch, place.batch)))
    return UnitBatch(torch.stack([crop.wave_N for crop in crops]), units_BT, mask_BT, [crop.path for crop in crops])


class Objective(MaskedUnits):
    """The encoder and its classifier; the loss of a batch."""

    def forward(self, batch: UnitBatch) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        return super().forward(batch.waveforms_BN, batch.units_BT, batch.mask_BT)


class Pretraining(ClipTraining):
    """One round."""

    model: Objective

    def __init__(
        self,
        recipe: PretrainRecipe,
        number: int,
        before: Encoder | None,
        folder: RunFolder,
        clips: Mapping[str, Sequence[Clip]],
        found: dict[str, list[np.ndarray]],
        provenance: dict[str, Any],
    ):
        self.recipe, self.config, self.clips = recipe, recipe.round_training(number), clips
        self.folder, self.provenance = folder, {**provenance, "round": number}
        self.digest = hashlib.sha256(b"".join(u.tobytes() for part in found.values() for u in part)).hexdigest()
        self.label = f"round {number}  " if len(recipe.rounds) > 1 else ""
        self.workers, round_ = recipe.data.workers, recipe.rounds[number - 1]
        torch.manual_seed(self.config.seed)
        encoder = Encoder(recipe.encoder_config(before.config if before else None))
        if before is not None and not round_.fresh:
            encoder.load_state_dict(before.state_dict())
        elif before is not None and number == 1:
            initialise(encoder, before, self.config.initialise_from_teacher)
        self.encoder = encoder.train()
        self.model = Objective(encoder, round_.units, recipe.mask)
        self.crops = {
            part: Crops(clips[part], found[part], encoder.config, config, self.config.seed)
            for part, config in (("train", recipe.augment), ("valid", augment.NONE))
        }
        self.total = self.length()

    def sampler(self, rank: int, world: int, part: str = "train") -> CropSampler:
        data = self.recipe.data
        options = {"items": data.batch_items, "batches": data.batches, "counted": data.counted}
        train = part == "train"
        together = self.config.batches_per_update if train else None
        where: dict[str, Any] = {"rank": rank, "world": world, "shuffle": train, "together": together}
        crop = data.crop_seconds or data.max_seconds
        return CropSampler(self.clips[part], crop, data.batch_seconds, self.config.seed, **options, **where)

    def loader(self, part: str, batches: Any, workers: int) -> DataLoader:
        masked = partial(collate, mask=self.recipe.mask, seed=self.config.seed)
        return self.reader(self.crops[part], batches, masked, workers if part == "train" else 0)

    def identity(self) -> dict[str, Any]:
        teacher = self.provenance["teacher"]["sha256"] if "teacher" in self.provenance else None
        return {"teacher": teacher, "units": self.digest}

    def save(self, outcome: Outcome, row: dict[str, Any], best: bool) -> None:
        written = {"updates": outcome.updates, "audio_hours": row["audio_hours"], **outcome.marks}
        written |= {f"validation_{term}": row[f"valid/{term}"] for term in ("loss", "masked", "accuracy")}
        self.encoder.mask_vector = self.model.mask_embedding.detach().clone()
        checkpoint.save(self.folder.path / "encoder", self.encoder, {**self.provenance, **written})
        self.encoder.mask_vector = None  # the classifier's is the one that learns


def run(recipe: PretrainRecipe, out: str | Path, shared_units: Path | None = None) -> Path:
    """Pretrain, or go on with the unfinished run in ``out``; the folder of the last round's checkpoint.

    ``shared_units``: a file for round 1's units, used where it is there and made where it is not; None: in the run's
    folder. A finished run is left as it is. Raises :class:`StarError` when ``out`` holds a run of another recipe, for
    bad data, for rounds that the models before cannot give units or weights for, and when the loss is not finite.
    """
    begun = Start(recipe, out, "star pretrain")
    name = f"round{len(recipe.rounds)}/encoder"
    if begun.finished:
        return begun.folder.path / name
    recipe, model = begun.recipe, begun.encoder
    _check(recipe, model)
    begun.write()
    for number in range(1, len(recipe.rounds) + 1):
        model = _round(begun, number, model, shared_units if number == 1 else None)
    begun.folder.finish_with(name, RESULT)
    return begun.folder.path / name


def _check(recipe: PretrainRecipe, teacher: Encoder | None) -> None:
    """Raise :class:`StarError` for a round that the model before it does not fit."""
    before = None if teacher is None else teacher.config
    own = recipe.encoder_config(before)
    if recipe.data.min_seconds * audio.RATE < own.receptive_field:
        seconds = recipe.data.min_seconds
        raise StarError(f"data.min_seconds: {seconds} is too short for one frame ({own.receptive_field} samples)")
    for number, round_ in enumerate(recipe.rounds, 1):
        if before is not None and not round_.fresh and before != own:
            raise StarError(
                f"round {number}: the model before has another shape (encoder); set fresh: true to begin with new "
                "weights"
            )
        if before is not None and round_.layer is not None:
            if round_.layer > before.layers:
                raise StarError(f"round {number}: {round_.features} of a model with {before.layers} layers")
            if before.stride != own.stride:
                strides = f"{before.stride} samples apart, this one's {own.stride}"
                raise StarError(f"round {number}: frames of the model before are {strides}; units need equal ones")
        before = own


def _round(begun: Start, number: int, before: Encoder | None, shared: Path | None) -> Encoder:
    """Units, training, and the encoder that comes of it; what is there already is not made again."""
    recipe, folder = begun.recipe, begun.folder.inner(f"round{number}")
    round_ = recipe.rounds[number - 1]
    if folder.result() is None:
        clips = join(begun.clips.values())
        own = recipe.encoder_config(before.config if before else None)
        file = shared or folder.path / "units.npz"
        if folder.lead and not file.is_file():
            say(f"{folder.path}: {round_.units} units of {round_.features}, of {len(clips)} clips")
            units.write(file, make_units(clips, round_, before, own, recipe.training))
        folder.wait_for(file)
        found = iter(units.read(file, [own.frames(clip.samples) for clip in clips]))
        parts = {name: [next(found) for _ in part] for name, part in begun.clips.items()}
        training = Pretraining(recipe, number, before, folder, begun.clips, parts, begun.provenance)
        begun.train(training, folder, training.encoder, f"round {number}")
        folder.finish_with("encoder", RESULT)
    folder.wait_for(folder.path / "done.json")
    return checkpoint.load(folder.path / "encoder")


def make_units(
    clips: Sequence[Clip], round_: Round, before: Encoder | None, own: EncoderConfig, config: Any
) -> list[np.ndarray]:
    """One array of unit numbers a clip, one for each of the frames that the encoder ``own`` has of it."""
    if round_.layer is None or before is None:
        features: units.Features = partial(units.all_mfcc, config=own, jobs=torch.get_num_threads())
    else:
        model, layer = before.to(one_device(config)), round_.layer

        def features(wanted: Sequence[Clip]):
            return ((place, layer_TF) for place, (layer_TF,) in units.encoded(wanted, model, [layer]))

    found = units.cluster(clips, features, round_.units, config.seed, round_.features)
    return [units.fit_frames(units_T, own.frames(clip.samples)) for units_T, clip in zip(found, clips)]
