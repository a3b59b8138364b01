"""Emotion recognition: SuperbER on IEMOCAP, four classes, mean of five folds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from ..heads.probe import MINI_POOLED, Metric, Schedule, Task, UtteranceClassification, protocols

DEV_SHARE = 0.2


class EmotionRecognition(UtteranceClassification):
    problem = "SuperbER"

    def __init__(self, task, table, schedule, seed):
        super().__init__(task, table, schedule, seed)
        if "drawn" in table:  # s3prl's batches of dev are of this order, which matters to --exact
            self.split["dev"].sort(key=table["drawn"].iloc.__getitem__)

    @classmethod
    def splits(cls, task: Task, table: pd.DataFrame) -> list[pd.DataFrame]:
        """Each fold is test once; of the other rows, in the table's order, s3prl's random split with seed 0 gives dev a
        fifth: those that are ``drawn`` last."""
        tables = []
        for fold in sorted(set(table["fold"])):
            others = np.flatnonzero(table["fold"] != fold)
            order = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).numpy()]
            split, drawn = np.full(len(table), "test", dtype=object), np.full(len(table), -1)
            split[others], drawn[order] = "train", np.arange(len(order))
            split[order[int((1 - DEV_SHARE) * len(order)) :]] = "dev"
            tables.append(table.assign(split=split, drawn=drawn))
        return tables


TASK = Task(
    name="er",
    title="Emotion recognition",
    version=2,
    corpus="IEMOCAP, four classes",
    splits="5 folds (sessions), each tested once; a random fifth of the other four is dev",
    metrics=(Metric("er_acc", "ER Acc", "%", "max"),),
    features="means",
    target="label",
    eval_batch=4,
    probe=EmotionRecognition,
    schedules=protocols(
        superb=Schedule(steps=30_000, batch=4, accumulate=8, lr=1e-4, eval_every=1_000, head={"hidden_size": 256}),
        mini=dataclasses.replace(MINI_POOLED, steps=200, eval_every=25, warmup=10),
        warmup=1_400,
    ),
    differences=("of several learning rates the one with the best mean of the folds' dev accuracies serves all folds",),
)
