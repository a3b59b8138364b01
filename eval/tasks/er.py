"""Emotion recognition: SuperbER on IEMOCAP, four classes, mean of five folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from ..probe import Schedule, Task, UtteranceClassification, protocols

DEV_SHARE = 0.2


class EmotionRecognition(UtteranceClassification):
    problem = "SuperbER"

    @classmethod
    def splits(cls, task: Task, table: pd.DataFrame) -> list[pd.DataFrame]:
        """Each fold is test once; of the other rows, in the table's order, s3prl's random split with seed 0 gives dev a fifth."""
        tables = []
        for fold in sorted(set(table["fold"])):
            others = np.flatnonzero(table["fold"] != fold)
            drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).numpy()
            split = np.full(len(table), "test", dtype=object)
            split[others] = "train"
            split[others[drawn[int((1 - DEV_SHARE) * len(others)) :]]] = "dev"
            tables.append(table.assign(split=split))
        return tables


TASK = Task(
    name="er",
    title="Emotion recognition",
    version=1,
    corpus="IEMOCAP, four classes",
    splits="5 folds (sessions), each tested once; a random fifth of the other four is dev",
    metric="er_acc",
    unit="%",
    direction="max",
    features="means",
    target="label",
    eval_batch=4,
    probe=EmotionRecognition,
    schedules=protocols(
        superb=Schedule(steps=30_000, batch=4, accumulate=8, lr=1e-4, eval_every=1_000, head={"hidden_size": 256}),
        mini=Schedule(
            steps=200,
            batch=32,
            accumulate=1,
            lr=1e-2,
            lr_grid=(1e-3, 1e-2),
            eval_every=25,
            head={"hidden_size": 64},
            scheduler="linear",
            warmup=10,
        ),
        warmup=1_400,
    ),
    differences=(
        "the random fifth is drawn as s3prl draws it, but from the utterances in order of their names; s3prl's order is that of a"
        " list that it downloads",
        "of several learning rates the one with the best mean of the folds' dev accuracies serves all folds",
    ),
)
