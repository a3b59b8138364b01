"""Keyword spotting: SuperbKS on Speech Commands v1, twelve classes."""

from __future__ import annotations

import pandas as pd

from star_upstream.data.corpora.speech_commands import SILENCE

from ..heads import batches
from ..heads.probe import MINI_POOLED, Metric, Schedule, Task, UtteranceClassification, protocols


class KeywordSpotting(UtteranceClassification):
    """Silence is drawn in two steps in the published runs' way: a noise file, and then one of its rows, which are
    stretches of it."""

    problem = "SuperbKS"

    def __init__(self, task, table, schedule, seed):
        super().__init__(task, table, schedule, seed)
        # the stretches of each noise file: its longest rows, since its last second is cut short
        noise = table[(table["label"] == SILENCE) & table.duplicated(["split", "path"], keep=False)]
        ends = (noise["start"] + noise["samples"]).groupby(noise["path"]).transform("max")
        self.table = table.assign(within=ends.reindex(table.index, fill_value=0))
        whole = noise[noise["samples"] == noise.groupby("path")["samples"].transform("max")]
        places = pd.Series(range(len(table)), table.index)
        self.files = {key: places[part.index].tolist() for key, part in whole.groupby(["split", "path"], sort=False)}

    def _balanced(self, rows: list[int], number: int) -> list[list[int]]:
        places = list(zip(self.table["split"], self.table["path"]))
        of_row = [self.files.get(places[row], [row]) if self.targets[row] == SILENCE else [row] for row in rows]
        groups = list({group[0]: group for group in of_row}.values())
        labels = [self.targets[group[0]] for group in groups]
        return batches.balanced(groups, labels, self.schedule.batch, self.seed, number)

    def epoch(self, number):
        """The published runs left out the last batch where it is not whole."""
        found = self._balanced(self.split["train"], number)
        whole = [batch for batch in found if len(batch) == self.schedule.batch]
        return whole or found

    def dev_rows(self):
        """s3prl chooses on a class-balanced resample of dev, the same at every look: its runner sets the seed anew
        before each."""
        return [row for batch in self._balanced(self.split["dev"], 0) for row in batch]


TASK = Task(
    name="ks",
    title="Keyword spotting",
    version=3,
    corpus="Speech Commands v1, 12 classes",
    splits="training and validation lists of the training archive, the test archive",
    metrics=(Metric("ks_acc", "KS Acc", "%", "max"),),
    features="means",
    target="label",
    eval_batch=32,
    probe=KeywordSpotting,
    effects=(("channels", "1"), ("rate", "16000"), ("gain", "-3.0")),
    schedules=protocols(
        superb=Schedule(steps=200_000, batch=32, accumulate=1, lr=1e-4, eval_every=5_000, head={"hidden_size": 256}),
        mini=MINI_POOLED,
        warmup=1_400,
    ),
    differences_once=("the second of a noise file is one of its whole seconds, not from any sample on",),
)
