"""Fine-tuning: heads, and the encoder under them, learn one task or several in turn.

Kerpicci et al. (arXiv 2210.16611, section 2.2): in each iteration a keyword batch with cross entropy, then a speaker
batch with angular softmax; all parameters, Adam, learning rate 1e-4. Shapes: B utterances, E channels of the vector.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import audio, strict
from ..data import features
from ..data import tasks as task_tables
from ..data.clips import Clip
from ..data.task_batches import Alternating, TaskBatch, Utterances, collate, padding, whole
from ..data.tasks import TaskData
from ..encoder.numerics import full_precision
from ..encoder.size import parameters
from ..environment import versions
from ..errors import StarError
from ..files import home, write_json
from ..formats import checkpoint, sources
from ..heads.export import load as load_model
from ..heads.export import save as save_model
from ..heads.head import shape
from ..heads.model import MultitaskModel
from ..say import say
from . import recipe as recipes
from .fabric import one_device
from .finetune_recipe import FinetuneRecipe
from .finetune_scores import embed, evaluate, write_outcomes
from .loop import fit
from .precision import agree, autocast
from .run_folder import RunFolder
from .training import Outcome, Training

LAST, BEST = "last.safetensors", "best.safetensors"


class Objective(nn.Module):
    """Encoder and heads; the loss of a batch of one task, times ``scale``."""

    model: MultitaskModel

    def __init__(self, model: MultitaskModel, scale: int):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x_BE = embed(self.model, batch, batch.targets_B.device)
        with full_precision(x_BE.device):
            loss, logits_BC = cast(nn.Module, self.model.head(batch.task).loss)(x_BE, batch.targets_B)
        accuracy = 100.0 * (logits_BC.argmax(1) == batch.targets_B).float().mean()
        return loss * self.scale, {f"{batch.task}/loss": loss.detach(), f"{batch.task}/accuracy": accuracy}


class Finetuning(Training):
    """Heads, and unless ``frozen`` the encoder under them, learn their tasks in turn."""

    model: Objective

    def __init__(
        self,
        recipe: FinetuneRecipe,
        model: MultitaskModel,
        utterances: Utterances,
        folder: RunFolder,
        provenance: dict[str, Any],
    ):
        self.recipe, self.config, self.utterances = recipe, recipe.stepping, utterances
        self.folder, self.provenance, self.total = folder, provenance, self.config.updates
        # the loop divides by the batches of a step: the scale makes that the sum over tasks of their mean losses
        self.model = Objective(model, scale=len(recipe.tasks) if recipe.alternate == "sum" else 1)
        self.workers = recipe.data.workers

    def sampler(self, rank: int, world: int) -> Alternating:
        return Alternating(
            self.utterances.tasks, self.recipe.training.seed, self.recipe.training.batches_each, rank, world
        )

    def validation_batches(self) -> Sequence[Any]:
        batches = []
        for number, task in enumerate(self.utterances.tasks):
            rows = task.rows("valid")
            step = max(1, math.ceil(len(rows) / self.recipe.data.valid_limit))
            batches += whole(self.utterances.tasks, number, rows[::step].tolist())
        return batches

    def loader(self, part: str, batches: Any, workers: int) -> DataLoader:
        kept = all(t.name in self.utterances.waves or t.name in self.utterances.states for t in self.utterances.tasks)
        workers = 0 if kept else workers
        return DataLoader(self.utterances, batch_sampler=batches, collate_fn=collate, num_workers=workers)

    def seconds(self, batch: TaskBatch) -> float:
        if batch.states_BTSD is None:
            return batch.waveforms_BN.numel() / audio.RATE
        frames = batch.states_BTSD.shape[0] * batch.states_BTSD.shape[1]
        return frames * self.model.model.encoder.config.stride / audio.RATE

    def weight(self, batch: TaskBatch) -> float:
        return len(batch.paths)

    def judge(self, row: dict[str, float]) -> tuple[dict[str, float], float]:
        """The lowest mean classification error over tasks is the best, whatever the number of their utterances."""

        def mean(part: str) -> float:
            return sum(row[f"valid/{task}/{part}"] for task in self.recipe.tasks) / len(self.recipe.tasks)

        error = 100.0 - mean("accuracy")
        return {**row, "valid/loss": mean("loss"), "valid/error": error}, error

    def identity(self) -> dict[str, Any]:
        return self.provenance["of"]

    def save(self, outcome: Outcome, row: dict[str, Any], best: bool) -> None:
        scores = {k.removeprefix("valid/"): round(v, 4) for k, v in row.items() if k.startswith("valid/")}
        per = 1 if self.recipe.alternate == "sum" else len(self.recipe.tasks)
        written = {"iterations": outcome.updates // per, "validation": scores, **outcome.marks}
        provenance = {**self.provenance, **written}
        if outcome.too_few_updates and not best:
            checkpoint.amend(self.folder.path / BEST, {"too_few_updates": outcome.too_few_updates})
        for name in (LAST, BEST) if best else (LAST,):
            save_model(self.folder.path / name, self.model.model, provenance)


def run(recipe: FinetuneRecipe, out: str | Path) -> dict[str, Any]:
    """Fine-tune, or go on with the unfinished run in ``out``, then evaluate; the result, as ``result.json`` there has
    it.

    A finished run is left as it is. Raises :class:`StarError` when ``out`` holds a run of another recipe, for bad data,
    and when the loss is not finite.
    """
    recipe = _absolute(recipe)
    folder = RunFolder(out, maker="star finetune")
    found = folder.claim(recipe)
    if found == "finished":
        say(f"{folder.path}: finished before; remove it to run it again")
        return folder.result() or {}
    tasks = task_tables.load(recipe.tasks, recipe.data.root)
    encoder = sources.load(recipe.encoder)
    of: dict[str, Any] = {
        "encoder": checkpoint.digest(encoder),
        "data": {name: task.digest for name, task in tasks.items()},
    }
    state = folder.load_state()
    if state is not None and state["identity"] != of:
        changed = "encoder" if state["identity"]["encoder"] != of["encoder"] else "data"
        raise StarError(f"{folder.path}: was started with another {changed} than there is now; choose another folder")
    torch.manual_seed(recipe.training.seed)
    model = _model(recipe, encoder, tasks)
    if found == "new" and folder.lead:
        _begin(folder, recipe, tasks)
    utterances = _utterances(recipe, model, of["encoder"], tasks, folder)
    provenance = {"made_by": "star finetune", "recipe": _shareable(recipe), "of": of, "versions": versions()}
    training = Finetuning(recipe, model, utterances, folder, provenance)
    if folder.lead:
        folder.record_environment({"resumed_at": state["update"] if state else 0})
        at = f"resumed at update {state['update']}" if state else "started"
        counts = ", ".join(
            f"{name}: {len(t.rows('train'))} utterances of {len(t.labels)} classes" for name, t in tasks.items()
        )
        size = parameters(encoder.config) / 1e6
        say(f"{folder.path}: {at}; {recipe.setting}; encoder of {size:.2f} M parameters; {counts}")
    outcome = fit(training, folder, state)
    if not folder.lead:
        return {}
    result = _evaluate(recipe, encoder, utterances, folder, provenance, outcome.precision)
    folder.finish(result)
    features.clear(folder.path / ".cache")
    return result


def _evaluate(
    recipe: FinetuneRecipe,
    encoder,
    utterances: Utterances,
    folder: RunFolder,
    provenance: Mapping[str, Any],
    precision: Any,
) -> dict[str, Any]:
    name = BEST if recipe.select == "valid" else LAST
    model, written = load_model(folder.path / name), checkpoint.describe(folder.path / name)["provenance"]
    model.to(one_device(recipe.training))
    begun = time.monotonic()
    scores, outcomes = evaluate(model, utterances, precision, recipe.data.test_limit)
    write_outcomes(folder.path / "outcomes.npz", outcomes)
    result = {
        "model": recipe.name or provenance["recipe"]["encoder"],
        "encoder": provenance["recipe"]["encoder"],
        "encoder_sha256": provenance["of"]["encoder"],
        "parameters": parameters(encoder.config),
        "setting": recipe.setting,
        "seed": recipe.training.seed,
        "iterations": written["iterations"],
        "checkpoint": name,
        "validation": written["validation"],
        "tasks": scores,
        "evaluation_seconds": round(time.monotonic() - begun, 1),
        "test_limit": recipe.data.test_limit,
        **{key: written[key] for key in ("too_few_updates",) if key in written},
    }
    write_json(folder.path / "result.json", result)
    return result


def _model(recipe: FinetuneRecipe, encoder, tasks: Mapping[str, TaskData]) -> MultitaskModel:
    labels = {name: task.labels for name, task in tasks.items()}
    model = MultitaskModel(encoder, recipe.tasks, labels, recipe.frozen)
    for name, head in model.heads.items():
        # a head starts the same whatever other heads there are
        torch.manual_seed(recipe.training.seed)
        head.load_state_dict(type(head)(head.task, encoder.config, len(labels[name])).state_dict())
    return model.train()


def _utterances(
    recipe: FinetuneRecipe, model: MultitaskModel, digest: str, tasks: Mapping[str, TaskData], folder: RunFolder
) -> Utterances:
    data, shortest = recipe.data, model.encoder.config.receptive_field
    waves = {name: features.waves(task, Path(data.cache)) for name, task in tasks.items()} if data.cache else {}
    states = {}
    if recipe.frozen and data.keep_states:
        model.to(one_device(recipe.training))
        where = Path(data.cache) if data.cache else folder.path / ".cache"
        for name, task in tasks.items():
            states[name] = _states(task, model, digest, where, recipe.training.precision, waves.get(name))
        model.cpu().train()
    return Utterances(list(tasks.values()), shortest, waves, states)


def _states(
    task: TaskData, model: MultitaskModel, digest: str, folder: Path, precision: Any, waves: features.Waves | None
) -> features.States:
    """What the task's head reads of the frozen encoder, for every utterance."""
    encoder, device = model.encoder.eval(), next(model.parameters()).device
    # the first batch settles the precision before the states get their name: what had to be computed in fp32 is part of
    # it
    utterances = Utterances([task], encoder.config.receptive_field, {task.name: waves} if waves else None)
    first = collate([utterances[key] for key in whole([task], 0, range(len(task.table)))[0]])
    call = partial(model.states, task.name, first.waveforms_BN.to(device), padding(first, device))
    moved = agree({"encoder": encoder}, call, precision, device, task.name)

    def encode(batch: TaskBatch) -> tuple[Sequence[Tensor], Tensor]:
        with torch.no_grad(), autocast(precision, device):
            return model.states(task.name, batch.waveforms_BN.to(device), padding(batch, device))

    # where the choice is the machine's (auto) states are fp32: they are made once
    read, key = task.config.input, (digest, task.config.input, str(precision), *moved)
    return features.states(utterances, encoder.config, shape(encoder.config, read), encode, key, folder)


def _begin(folder: RunFolder, recipe: FinetuneRecipe, tasks: Mapping[str, TaskData]) -> None:
    columns = ["path", "samples", "start"]
    parts = {
        part: [
            Clip(str(p), int(n), int(s))
            for task in tasks.values()
            for p, n, s in task.table.loc[task.rows(part), columns].to_numpy()
        ]
        for part in ("train", "valid")
    }
    folder.begin(recipes.dump(recipe), parts, [])


def _absolute(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """With absolute paths, so that a run can be resumed from another folder."""
    data = recipe.data
    paths: dict[str, Any] = {
        name: str(home(getattr(data, name)).resolve()) for name in ("root", "cache") if getattr(data, name)
    }
    place = home(recipe.encoder)
    encoder = str(place.resolve()) if place.exists() else recipe.encoder
    return dataclasses.replace(recipe, data=dataclasses.replace(data, **paths), encoder=encoder)


def _shareable(recipe: FinetuneRecipe) -> dict[str, Any]:
    """The recipe without this machine's folders: what is published with the weights."""
    values = strict.plain(recipe)
    values["data"].update({"root": Path(recipe.data.root).name, "cache": ""})
    if Path(recipe.encoder).is_absolute():
        values["encoder"] = "/".join(Path(recipe.encoder).parts[-2:])
    return values


def untrained(encoder: str, path: str, keyword: list[str]) -> None:
    """Write the file that ``star finetune multitask_mini`` would, with heads of random weights: for trying out what
    reads it."""
    tasks = recipes.load("multitask_mini", (), FinetuneRecipe).tasks
    model = MultitaskModel(sources.load(encoder), tasks, {"keyword": keyword})
    save_model(path, model, {"made_by": "star_upstream.training.finetune.untrained"})
