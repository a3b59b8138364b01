"""Stage 1 of a run that prunes: the student with gates is distilled while its expected size falls to the target, then it is cut.

The gates of the last update are the ones that are settled and cut, whatever the validation loss was on the way: earlier models were
larger. :meth:`GatedEncoder.settle` makes the cut model meet the target even where the expected size had not quite reached it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import checkpoint, profile, strict
from ..data import Batch, Clip
from ..distillation import Distillation, make_student
from ..encoder import Encoder
from ..errors import StarError
from ..files import replacing, write_json, write_tensors
from ..recipe import Recipe
from ..run_folder import RunFolder, draw_losses
from ..training import fit, parameter_groups
from .config import GateConfig
from .constraint import SparsityConstraint, target_at
from .cut import cut
from .gates import GatedEncoder

FOLDER = "stage1"


class GatedDistillation(Distillation):
    """Distillation of a student with gates. Validation measures it with its gates settled by their expected numbers."""

    label = "stage 1  "

    def __init__(
        self,
        recipe: Recipe,
        teacher: Encoder,
        folder: RunFolder,
        clips: dict[str, Sequence[Clip]],
        state: dict[str, Any] | None,
        provenance: dict[str, Any],
    ):
        pruning = recipe.pruning
        student = GatedEncoder(make_student(recipe, teacher), pruning.gates)
        super().__init__(recipe, teacher, folder, clips, state, provenance, student)
        self.constraint, self.pruning = SparsityConstraint(pruning.quadratic_start), pruning
        self.size = student.size(pruning.measure, pruning.seconds)
        student.settle(pruning.target, pruning.measure, pruning.seconds)  # says so now if the target cannot be reached
        student.shift.zero_()

    def groups(self) -> list[dict[str, Any]]:
        config, pruning = self.config, self.pruning
        gates = {"params": list(self.student.gates.parameters()), "scale": pruning.gate_learning_rate / config.learning_rate}
        multipliers = {
            "params": list(self.constraint.parameters()),
            "scale": pruning.multiplier_learning_rate / config.learning_rate,
            "maximize": True,
        }
        rest = parameter_groups([self.student.encoder, self.loss], config.weight_decay)
        return [*rest, {**gates, "weight_decay": 0.0}, {**multipliers, "weight_decay": 0.0}]

    @property
    def target(self) -> float:
        """The target sparsity of the coming update."""
        return target_at(self.share, self.pruning.target, self.pruning.target_warmup)

    def measure(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().measure(batch)
        if not self.training:
            return loss, terms
        penalty = self.constraint(self.size.sparsity(self.student.expected()), self.target)
        return loss + penalty, {**terms, "loss": loss.detach(), "pruning/penalty": penalty.detach()}

    @torch.no_grad()
    def extras(self) -> dict[str, float]:
        """Sparsity against its target, and parameters: expected, and as the settled gates would leave them now."""
        expected = self.student.expected()
        return {
            "pruning/sparsity": self.size.sparsity(expected).item(),
            "pruning/target": self.target,
            "pruning/expected_parameters": round(self.size.parameters(expected).item()),
            "pruning/cut_parameters": self.size.parameters(self.student.kept()),
            "pruning/linear_multiplier": self.constraint.linear.item(),
            "pruning/quadratic_multiplier": self.constraint.quadratic.item(),
        }

    def note(self) -> str:
        row = self.last_row
        if "pruning/sparsity" not in row:
            return ""
        millions = row["pruning/expected_parameters"] / 1e6
        return f"sparsity {row['pruning/sparsity']:.3f} of {row['pruning/target']:.3f}, {millions:.2f} M parameters expected"

    def save_models(self, best: bool) -> None:
        """Nothing: the state holds the student, and no model before the last one is small enough."""


def run(learner: GatedDistillation) -> None:
    """The stage to its end: train, settle, cut, write. A stage that was trained but not cut is cut."""
    state = learner._resumed
    if state is None or not state["finished"]:
        fit(learner)
    else:
        learner.load_state_dict(state["model"])
        learner.update, learner.best = state["update"], state["best"]
    folder, model, pruning = learner.folder, learner.student.cpu().eval(), learner.pruning
    if not folder.lead:
        folder.wait_for(folder.path / "cut" / checkpoint.CONFIG)
        return
    draw_losses(folder.path)
    expected = learner.size.sparsity(model.expected()).item()
    reached = model.settle(pruning.target, pruning.measure, pruning.seconds)
    smaller = cut(model)
    before, after = (sum(p.numel() for p in encoder.parameters()) for encoder in (model.encoder, smaller))
    provenance = {
        **learner.provenance,
        "updates": learner.update,
        "pruning": {
            "target": pruning.target,
            "measure": pruning.measure,
            "sparsity": round(reached, 6),
            "expected_sparsity": round(expected, 6),
            "parameters": [before, after],
            "macs_g": [profile.profile(encoder.config)["macs_g"] for encoder in (model.encoder, smaller)],
            "stage1_updates": learner.update,
        },
    }
    if abs(expected - pruning.target) > 0.05:
        print(
            f"{folder.path}: the gates ended at an expected sparsity of {expected:.3f}, far from {pruning.target}; the model is cut to the "
            "target all the same, but gates that had come there would be better: train longer, raise pruning.gate_learning_rate, or "
            "where the target was overshot pruning.quadratic_start",
            file=sys.stderr,
        )
    save_gated(folder.path / "gated", model, provenance)
    with replacing(folder.path / "loss.pt") as part:
        torch.save(learner.loss.state_dict(), part)
    checkpoint.save(folder.path / "cut", smaller, provenance)
    print(
        f"{folder.path}: {pruning.measure} cut by {reached:.2%} (expected {expected:.2%}, target {pruning.target:.2%}): "
        f"{before:,} -> {after:,} parameters, {' -> '.join(map(str, provenance['pruning']['macs_g']))} G MACs\n"
        f"  channels {[n for n, _, _ in smaller.config.conv_layers]}, heads {list(smaller.config.heads)}, "
        f"FFN units {list(smaller.config.ffn)}",
        file=sys.stderr,
    )


def result(folder: Path) -> bool:
    """Whether the stage in ``folder`` has come to its end."""
    return checkpoint.is_checkpoint(folder / "cut")


def load(run_folder: RunFolder) -> tuple[Encoder, dict[str, Tensor], dict[str, Any]]:
    """What stage 2 starts with: the cut student, ready to be trained, the loss's own parameters (our choice: they go on as they are),
    and the provenance."""
    folder = run_folder.path / FOLDER
    carried = torch.load(folder / "loss.pt", map_location="cpu", weights_only=True)
    return checkpoint.load(folder / "cut").train(), carried, checkpoint.describe(folder / "cut")["provenance"]


def second(recipe: Recipe) -> Recipe:
    """The recipe as stage 2 runs it."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **vars(recipe.pruning.second)), pruning=None)


def save_gated(folder: Path, model: GatedEncoder, provenance: dict[str, Any]) -> None:
    """The whole encoder as an ordinary checkpoint, with its gates beside it (``gates.safetensors``, ``gates.json``)."""
    made_by = "star distill, stage 1: the weights before the cut, gates not applied"
    checkpoint.save(folder, model.encoder, {**provenance, "made_by": made_by})
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    with replacing(folder / "gates.safetensors") as part:
        write_tensors(part, tensors)
    write_json(folder / "gates.json", strict.plain(model.options))


def load_gated(folder: str | Path, **changes: Any) -> GatedEncoder:
    """What :func:`save_gated` wrote, in eval mode: as slow as the whole encoder, with the states of the cut one. ``changes``: options of
    the gates that shall differ, such as ``round_channels``."""
    file = Path(folder) / "gates.json"
    if not file.is_file():
        raise StarError(f"{folder}: no gates.json; the gated student of a pruned run is in RUN/{FOLDER}/gated")
    options = strict.build(GateConfig, {**json.loads(file.read_text(encoding="utf-8")), **changes}, "gates")
    model = GatedEncoder(checkpoint.load(folder), options)
    missing, unknown = model.load_state_dict(load_file(Path(folder) / "gates.safetensors"), strict=False)
    if unknown or any(not name.startswith("encoder.") for name in missing):
        raise StarError(f"{folder}: gates.safetensors does not fit gates.json")
    return model.eval()


def cut_again(gated: Path, folder: Path, sparsity: float | None = None, multiple: int | None = None) -> dict[str, Any]:
    """Cut a gated student to ``sparsity`` (None: the run's target) with channels and units in multiples of ``multiple`` (None: as the
    run has it), and write it to ``folder``, a new one; what was reached."""
    rounding = {} if multiple is None else {"round_channels": multiple, "round_units": multiple}
    model, provenance = load_gated(gated, **rounding), checkpoint.describe(gated)["provenance"]
    if folder.exists():
        raise StarError(f"{folder}: is there already; choose another folder")
    pruned = provenance["pruning"]
    target = pruned["target"] if sparsity is None else sparsity
    reached = model.settle(target, pruned["measure"], provenance["recipe"]["pruning"]["seconds"])
    smaller = cut(model)
    counts = [sum(p.numel() for p in encoder.parameters()) for encoder in (model.encoder, smaller)]
    result = {**pruned, "target": target, "sparsity": round(reached, 6), "parameters": counts, **rounding}
    result["macs_g"] = [profile.profile(encoder.config)["macs_g"] for encoder in (model.encoder, smaller)]
    checkpoint.save(folder, smaller, {**provenance, "made_by": "star cut", "pruning": result})
    return {"checkpoint": str(folder), **result}
