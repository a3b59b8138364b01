"""Trainings: each gives the loop (:mod:`.loop`) a module whose forward is a batch's loss, its batches, and what to
save.

loop.py        begin or resume, batch, update, validate, save, end: the same for all
training.py    what a kind of training gives it
config.py      a training as data                        recipe.py    yaml files with bases and overrides
run_folder.py  what a run leaves on disk
distill.py     a student learns a teacher's states
prune.py       two distillations with a cut between them
student.py     how a student starts
pretrain.py    rounds of masked prediction of units; pretrain_recipe.py
start.py       what is settled before a run's first update
finetune.py    heads, and the encoder under them, learn tasks; finetune_recipe.py, finetune_scores.py, finetune_table.py
grid.py        many fine-tunings from one command
optimizer.py   learning rate and parameter groups        progress.py  how far a run is, for people
fabric.py      devices, nodes, precision                 precision.py  is reduced precision right here
trackers.py    TensorBoard and others                    stop.py       signals that end a run
means.py       means over batches and processes
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import extras

if TYPE_CHECKING:
    from .config import Recipe
    from .pretrain_recipe import PretrainRecipe


def run(recipe: Recipe | PretrainRecipe, out: str | Path) -> Path:
    """Run ``recipe``, of a distillation or a pretraining, to its end, or go on with the unfinished run in ``out``; the
    folder of the run's model."""
    extras.need("train")
    from .pretrain_recipe import PretrainRecipe

    if isinstance(recipe, PretrainRecipe):
        from . import pretrain

        return pretrain.run(recipe, out)
    if recipe.pruning is not None:
        from . import prune

        return prune.run(recipe, out)
    from . import distill

    return distill.run(recipe, out)
