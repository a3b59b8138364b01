"""Speaker identification: SuperbSID on VoxCeleb1."""

from __future__ import annotations

import dataclasses

from ..heads.probe import MINI_POOLED, Metric, Schedule, Task, UtteranceClassification, protocols


class SpeakerIdentification(UtteranceClassification):
    problem = "SuperbSID"


TASK = Task(
    name="sid",
    title="Speaker identification",
    version=2,
    corpus="VoxCeleb1, 1251 speakers",
    splits="iden_split.txt",
    metrics=(Metric("sid_acc", "SID Acc", "%", "max"),),
    features="means",
    target="speaker",
    probe=SpeakerIdentification,
    crop_seconds=8.0,
    schedules=protocols(
        superb=Schedule(
            steps=200_000, batch=8, accumulate=4, lr=1e-4, eval_every=5_000, head={"hidden_size": 256}, crops=4
        ),
        mini=dataclasses.replace(MINI_POOLED, crops=2),
        warmup=5_000,
        sched_lr=1e-3,
    ),
    differences_once=(
        "a training utterance over 8 s is drawn from fixed, evenly spaced 8 s crops, not from random ones",
    ),
)
