"""A distilled encoder with a head for each of several tasks, fine-tuned jointly (Kerpicci et al., arXiv 2210.16611).

    recipe.py     what a fine-tuning is, as data
    losses.py     cross entropy, angular and additive angular softmax
    heads.py      states of an utterance -> one vector -> class scores; encoder and heads as one model
    data.py       corpora -> tasks with classes and splits; batches that alternate between tasks
    store.py      decoded waveforms and states of a frozen encoder, kept on disk
    learning.py   the training, and what starts, resumes and ends it
    evaluate.py   accuracy and equal error rate with intervals
    export.py     one file with encoder and heads
    table.py      runs beside the published rows
    grid.py       many runs from one command
"""

from __future__ import annotations


def untrained(encoder: str, path: str, keyword: list[str]) -> None:
    """Write the file that ``star finetune multitask_mini`` would, with heads of random weights: for trying out what reads it."""
    from ..formats import sources
    from . import export, recipe
    from .heads import MultitaskModel

    model = MultitaskModel(sources.load(encoder), recipe.load("multitask_mini").tasks, {"keyword": keyword})
    export.save(path, model, {"made_by": "star_upstream.multitask.untrained"})
