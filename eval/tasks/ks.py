"""Keyword spotting: SuperbKS on Speech Commands v1, twelve classes."""

from __future__ import annotations

from ..probe import MINI_POOLED, Schedule, Task, UtteranceClassification, protocols


class KeywordSpotting(UtteranceClassification):
    problem = "SuperbKS"

    def _balanced(self, rows: list[int], number: int) -> list[list[int]]:
        from s3prl.dataio.sampler import BalancedWeightedSampler

        sampler = BalancedWeightedSampler([self.targets[r] for r in rows], self.schedule.batch, seed=self.seed)
        sampler.set_epoch(number)
        return [[rows[i] for i in batch] for batch in sampler]

    def epoch(self, number):
        return self._balanced(self.split["train"], number)

    def dev_rows(self):
        """s3prl chooses on a class-balanced resample of dev, here drawn once."""
        return [row for batch in self._balanced(self.split["dev"], 0) for row in batch]


TASK = Task(
    name="ks",
    title="Keyword spotting",
    version=1,
    corpus="Speech Commands v1, 12 classes",
    splits="training and validation lists of the training archive, the test archive",
    metric="ks_acc",
    unit="%",
    direction="max",
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
    differences=(
        "silence is cut into fixed seconds (s3prl's problem); the published runs drew a random second of a file at every visit",
    ),
)
