"""A run that prunes is two trainings and a cut (DPHuBERT: Peng et al., Interspeech 2023, arXiv 2305.17651, section
2.3).

1. The student with gates is distilled while its expected size falls to the target.
2. The gates of the last update are settled at the target and cut, whatever the validation loss was on the way: earlier
   models were larger. :meth:`GatedEncoder.settle` makes the cut model meet the target even where the expected size had
   not quite reached it.
3. What is left is distilled on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .. import outputs, strict
from ..data.batches import Batch
from ..encoder import Encoder
from ..encoder.size import profile
from ..errors import StarError
from ..files import replacing, write_json
from ..formats import checkpoint
from ..pruning.config import GateConfig, PruningConfig
from ..pruning.constraint import SparsityConstraint, target_at
from ..pruning.cut import cut
from ..pruning.gates import GatedEncoder
from ..pruning.size import Size
from ..say import say
from .config import Recipe
from .distill import Distillation, Objective, Run
from .optimizer import parameter_groups
from .run_folder import RunFolder, draw_losses
from .student import make_student
from .training import Outcome

FOLDER = "stage1"


def run(recipe: Recipe, out: str | Path) -> Path:
    """Distil and prune, cut, distil; or go on with the unfinished run in ``out``. As
    :func:`star_upstream.training.distill.run`."""
    begun = Run(recipe, out)
    if begun.finished:
        return begun.model
    first = begun.folder.path / FOLDER
    if not checkpoint.is_checkpoint(first / "cut"):
        gated = GatedEncoder(make_student(begun.complete, begun.teacher.encoder), begun.complete.pruning.gates)
        first_stage = GatedDistillation(
            begun.complete, gated, begun.teacher, begun.folder, begun.clips, begun.provenance
        )
        begun.write()
        stage = begun.folder.inner(FOLDER)
        write_cut(first_stage, stage, begun.train(first_stage, stage, gated.encoder, "stage 1"))

    pruned = checkpoint.describe(first / "cut")["provenance"]
    if pruned["teacher"]["sha256"] != begun.digest:
        raise begun.other_teacher()
    student = checkpoint.load(first / "cut").train()
    provenance = {**begun.provenance, "pruning": pruned["pruning"]}
    training = Distillation(second(begun.complete), student, begun.teacher, begun.folder, begun.clips, provenance)
    training.label = "stage 2  "
    if begun.recipe.pruning.second_data == "onward":
        state = begun.folder.inner(FOLDER).load_state()
        if state is None:
            raise StarError(f"{first / 'state.pt'}: needed to go on where stage 1 ended (pruning.second_data)")
        training.begins_at = (*state["position"], state.get("processes", 1), state["audio"][1])
    # the loss's own parameters go on as they are, as in DPHuBERT's code (commit c18093f, final_distill.py)
    training.model.loss.load_state_dict(torch.load(first / "loss.pt", map_location="cpu", weights_only=True))
    begun.train(training, begun.folder, student, "stage 2")
    begun.finish()
    return begun.model


def second(recipe: Recipe) -> Recipe:
    """The recipe as stage 2 runs it."""
    assert recipe.pruning is not None
    training = dataclasses.replace(recipe.training, **vars(recipe.pruning.second))
    return dataclasses.replace(recipe, training=training, pruning=None)


class GatedObjective(Objective):
    """A distillation's loss and, in training, the penalty on what the expected sparsity lacks of its target."""

    student: GatedEncoder
    constraint: SparsityConstraint
    size: Size
    target = 0.0

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().forward(batch)
        if not self.training:
            return loss, terms
        penalty = self.constraint(self.size.sparsity(self.student.expected()), self.target)
        return loss + penalty, {**terms, "loss": loss.detach(), "pruning/penalty": penalty.detach()}


class GatedDistillation(Distillation):
    """Distillation of a student with gates. Validation measures it with its gates settled by their expected numbers."""

    label = "stage 1  "
    objective = GatedObjective
    model: GatedObjective

    def __init__(self, recipe: Recipe, student: GatedEncoder, *arguments: Any):
        super().__init__(recipe, student, *arguments)
        self.pruning = cast(PruningConfig, recipe.pruning)
        self.model.constraint = SparsityConstraint(self.pruning.quadratic_start)
        self.size = self.model.size = student.size(self.pruning.measure, self.pruning.seconds)
        student.settle(
            self.pruning.target, self.pruning.measure, self.pruning.seconds
        )  # says so now if it cannot be reached
        student.shift.zero_()

    def groups(self) -> list[dict[str, Any]]:
        config, pruning = self.config, self.pruning
        gates = {
            "params": list(self.student.gates.parameters()),
            "scale": pruning.gate_learning_rate / config.learning_rate,
        }
        multipliers = {
            "params": list(self.model.constraint.parameters()),
            "scale": pruning.multiplier_learning_rate / config.learning_rate,
            "maximize": True,
        }
        rest = parameter_groups([self.student.encoder, self.model.loss], config.weight_decay, config.decay)
        return [*rest, {**gates, "weight_decay": 0.0}, {**multipliers, "weight_decay": 0.0}]

    def before_update(self, share: float) -> None:
        self.model.target = target_at(share, self.pruning.target, self.pruning.target_warmup)

    @torch.no_grad()
    def extras(self) -> dict[str, float]:
        """Sparsity against its target, and parameters: expected, and as the settled gates would leave them now."""
        expected, constraint = self.student.expected(), self.model.constraint
        return {
            "pruning/sparsity": self.size.sparsity(expected).item(),
            "pruning/target": self.model.target,
            "pruning/expected_parameters": round(self.size.parameters(expected).item()),
            "pruning/cut_parameters": self.size.parameters(self.student.kept()),
            "pruning/linear_multiplier": constraint.linear.item(),
            "pruning/quadratic_multiplier": constraint.quadratic.item(),
        }

    def note(self, row: dict[str, Any]) -> str:
        if "pruning/sparsity" not in row:
            return ""
        millions = row["pruning/expected_parameters"] / 1e6
        sparsity = f"sparsity {row['pruning/sparsity']:.3f} of {row['pruning/target']:.3f}"
        return f"{sparsity}, {millions:.2f} M parameters expected"

    def save(self, outcome: Outcome, row: dict[str, Any], best: bool) -> None:
        """Nothing: the state holds the student, and no model before the last one is small enough."""


def write_cut(training: GatedDistillation, folder: RunFolder, ended: Outcome) -> None:
    """Settle the trained gates, cut, and write both models: ``gated/``, ``loss.pt`` and, last, ``cut/``."""
    if not folder.lead:
        folder.wait_for(folder.path / "cut" / checkpoint.CONFIG)
        return
    model, pruning = training.student.cpu().eval(), training.pruning
    draw_losses(folder.path)
    expected = training.size.sparsity(model.expected()).item()
    smaller, outcome = settle_and_cut(model, pruning.target, pruning.measure, pruning.seconds)
    outcome.update(expected_sparsity=round(expected, 6), stage1_updates=ended.updates)
    if ended.too_few_updates:
        outcome["too_few_updates"] = f"stage 1: {ended.too_few_updates}"
    provenance = {**training.provenance, "updates": ended.updates, "pruning": outcome}
    if abs(expected - pruning.target) > 0.05:
        say(
            f"{folder.path}: the gates ended at an expected sparsity of {expected:.3f}, far from {pruning.target}; the "
            "model is cut to the target all the same, but gates that had come there would be better: train longer, "
            "raise pruning.gate_learning_rate, or where the target was overshot pruning.quadratic_start"
        )
    save_gated(folder.path / "gated", model, provenance)
    with replacing(folder.path / "loss.pt") as part:
        torch.save(training.model.loss.state_dict(), part)
    checkpoint.save(folder.path / "cut", smaller, provenance)
    before, after = outcome["parameters"]
    say(
        f"{folder.path}: {pruning.measure} cut by {outcome['sparsity']:.2%} (expected {expected:.2%}, target "
        f"{pruning.target:.2%}): {before:,} -> {after:,} parameters, {' -> '.join(map(str, outcome['macs_g']))} G "
        f"MACs\n  channels {[n for n, _, _ in smaller.config.conv_layers]}, heads {list(smaller.config.heads)}, "
        f"FFN units {list(smaller.config.ffn)}"
    )


def settle_and_cut(model: GatedEncoder, target: float, measure: str, seconds: float) -> tuple[Encoder, dict[str, Any]]:
    """The smaller encoder, and what was reached."""
    reached = model.settle(target, measure, seconds)
    pair = model.encoder, cut(model)
    return pair[1], {
        "target": target,
        "measure": measure,
        "sparsity": round(reached, 6),
        "parameters": [sum(p.numel() for p in encoder.parameters()) for encoder in pair],
        "macs_g": [profile(encoder.config)["macs_g"] for encoder in pair],
    }


def save_gated(folder: Path, model: GatedEncoder, provenance: dict[str, Any]) -> None:
    """The whole encoder as an ordinary checkpoint, with its gates beside it (``gates.safetensors``, ``gates.json``)."""
    made_by = "star distill, stage 1: the weights before the cut, gates not applied"
    checkpoint.save(folder, model.encoder, {**provenance, "made_by": made_by})
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    checkpoint.save_tensors(folder / "gates.safetensors", tensors)
    write_json(folder / "gates.json", strict.plain(model.options))


def load_gated(folder: str | Path, **changes: Any) -> GatedEncoder:
    """What :func:`save_gated` wrote, in eval mode: as slow as the whole encoder, with the states of the cut one.
    ``changes``: options of the gates that shall differ, such as ``round_channels``."""
    file = Path(folder) / "gates.json"
    if not file.is_file():
        lacks = "no gates.json" if Path(folder).exists() else "no such folder"
        raise StarError(f"{folder}: {lacks}; the gated student of a pruned run is in RUN/{FOLDER}/gated")
    options = strict.build(GateConfig, {**json.loads(file.read_text(encoding="utf-8")), **changes}, "gates")
    model = GatedEncoder(checkpoint.load(folder), options)
    missing, unknown = model.load_state_dict(checkpoint.load_tensors(Path(folder) / "gates.safetensors"), strict=False)
    if unknown or any(not name.startswith("encoder.") for name in missing):
        raise StarError(f"{folder}: gates.safetensors does not fit gates.json")
    return model.eval()


def cut_again(gated: Path, folder: Path, sparsity: float | None = None, multiple: int | None = None) -> dict[str, Any]:
    """Cut a gated student to ``sparsity`` (None: the run's target) with channels and units in multiples of ``multiple``
    (None: as the run has it), and write it to ``folder``, a new or empty one; what was reached."""
    folder = outputs.check_folder(folder, "star cut")
    rounding = {} if multiple is None else {"round_channels": multiple, "round_units": multiple}
    model, provenance = load_gated(gated, **rounding), checkpoint.describe(gated)["provenance"]
    pruned = provenance["pruning"]
    target = pruned["target"] if sparsity is None else sparsity
    seconds = provenance["recipe"]["pruning"]["seconds"]
    smaller, outcome = settle_and_cut(model, target, pruned["measure"], seconds)
    result = {**pruned, **outcome, **rounding}
    checkpoint.save(folder, smaller, {**provenance, "made_by": "star cut", "pruning": result})
    return {"checkpoint": str(folder), **result}
