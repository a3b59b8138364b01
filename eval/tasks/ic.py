"""Intent classification: SuperbIC on Fluent Speech Commands, action, object and location jointly."""

from __future__ import annotations

from ..heads.probe import MINI_POOLED, Metric, Schedule, Task, UtteranceClassification, protocols


class IntentClassification(UtteranceClassification):
    problem = "SuperbIC"


TASK = Task(
    name="ic",
    title="Intent classification",
    version=2,
    corpus="Fluent Speech Commands",
    splits="train_data.csv, valid_data.csv, test_data.csv",
    metrics=(Metric("ic_acc", "IC Acc", "%", "max"),),
    features="means",
    target=("action", "object", "location"),
    eval_batch=32,
    probe=IntentClassification,
    schedules=protocols(
        superb=Schedule(steps=200_000, batch=32, accumulate=1, lr=1e-4, eval_every=5_000, head={"hidden_size": 256}),
        mini=MINI_POOLED,
        warmup=1_000,
    ),
)
