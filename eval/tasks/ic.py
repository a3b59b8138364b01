"""Intent classification: SuperbIC on Fluent Speech Commands, action, object and location jointly."""

from __future__ import annotations

from eval.probe import MINI_POOLED, Choice, Schedule, Task, UtteranceClassification, protocols


class IntentClassification(UtteranceClassification):
    problem = "SuperbIC"

    def check_labels(self):
        if self.schedule.generation == "downstream":
            super().check_labels()


TASK = Task(
    name="ic",
    title="Intent classification",
    version=2,
    corpus="Fluent Speech Commands",
    splits="train_data.csv, valid_data.csv, test_data.csv",
    metric="ic_acc",
    unit="%",
    direction="max",
    features="means",
    target=("action", "object", "location"),
    eval_batch=32,
    probe=IntentClassification,
    schedules=protocols(
        superb=Schedule(steps=200_000, batch=32, accumulate=1, lr=1e-4, eval_every=5_000, head={"hidden_size": 256}),
        mini=MINI_POOLED,
        warmup=1_000,
    ),
    choices=(
        Choice("the classes are those of train, and one that only dev or test has is refused", "the classes are those of all splits"),
    ),
)
