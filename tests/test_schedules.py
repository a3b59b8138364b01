"""The tasks' schedules: s3prl's and the published ones, and what is left out of a table."""

import dataclasses

import pytest
import torch
from test_train import ASR, KS, SID
from torch import nn

from eval import tasks
from eval.heads import probe as probes
from eval.heads import train
from eval.heads.probe import Schedule
from star_upstream.errors import StarError


def test_learning_rate_schedule():
    """By hand, and as s3prl's linear_schedule_with_warmup sets it: the first update has rate 0."""
    from s3prl.schedulers import get_scheduler

    linear = Schedule(steps=10, batch=1, accumulate=1, lr=1.0, eval_every=1, scheduler="linear", warmup=4)
    rates = [train.rate(linear, 1.0, s) for s in range(1, 11)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, found = get_scheduler(optimizer, 10, {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4}), []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates == pytest.approx(found)
    assert train.rate(dataclasses.replace(linear, steps=1, warmup=0), 1.0, 1) == 1.0  # a single update learns
    assert train.rate(KS.schedules["superb"], 1e-4, 77) == 1e-4


@pytest.mark.parametrize("name, warmup, lr, steps", [
    ("pr", 1400, 1e-2, 100_000), ("asr", 1400, 1e-4, 200_000), ("ks", 1400, 1e-4, 200_000), ("sf", 1400, 1e-4, 200_000),
    ("er", 1400, 1e-4, 30_000), ("ic", 1000, 1e-4, 200_000), ("sid", 5000, 1e-3, 200_000), ("asv", 6000, 1e-4, 200_000),
])  # fmt: skip
def test_superb_sched_is_superb_with_the_published_warmup(name, warmup, lr, steps):
    task = tasks.get(name)
    schedule = probes.schedule(task, "superb-sched")
    assert [
        train.rate(schedule, schedule.lr, s) for s in (1, 2, warmup + 1, steps, (warmup + steps) // 2 + 1)
    ] == pytest.approx([0, lr / warmup, lr, lr / (steps - warmup), lr / 2])
    changed = {"lr", "scheduler", "warmup"}
    superb, scheduled = (dataclasses.asdict(s) for s in (task.schedules["superb"], schedule))
    assert {key for key in superb if superb[key] != scheduled[key]} == (changed if name == "sid" else changed - {"lr"})


def test_superb_sched_where_no_warmup_was_published():
    for name in ("sd", "qbe"):
        assert tasks.get(name).schedules["superb-sched"] == tasks.get(name).schedules["superb"]
    assert any("superb-sched" in line for line in tasks.get("sd").differences)


def test_official_schedules_and_heads_are_s3prls():
    from s3prl.problem import SuperbASR, SuperbKS, SuperbSID

    for task, problem in ((KS, SuperbKS), (SID, SuperbSID), (ASR, SuperbASR)):
        config, schedule = problem().default_config(), task.schedules["superb"]
        assert schedule.head == config["build_downstream"]
        assert (schedule.optimizer, schedule.lr) == (
            config["build_optimizer"]["name"],
            config["build_optimizer"]["conf"]["lr"],
        )
        trained = config["train"]
        assert (schedule.steps, schedule.eval_every) == (trained["total_steps"], trained["eval_step"])
        assert (schedule.clip, schedule.accumulate) == (trained["gradient_clipping"], trained["gradient_accumulate"])
        assert (task.direction == "max") == trained["valid_higher_better"]
    assert [list(e) for e in KS.effects] == SuperbKS().default_config()["build_dataset"]["test"]["sox_effects"]
    assert SID.crop_seconds == SuperbSID().default_config()["build_dataset"]["train"]["max_secs"]


def test_tasks_are_found_by_name():
    assert [name for name in tasks.names() if name in ("sid", "pr", "asr")] == ["pr", "asr", "sid"]
    assert [t.name for t in tasks.parse("sid, ks,sid")] == ["sid", "ks"]
    assert {t.name for t in tasks.parse("all")} == set(tasks.names())
    for text, message in (("kss", "did you mean 'ks'"), (",", "no task given")):
        with pytest.raises(StarError, match=message):
            tasks.parse(text)
    with pytest.raises(StarError, match="unknown schedule 'fast'"):
        probes.schedule(KS, "fast")
    assert probes.schedule(KS, "superb", 7).eval_every == 7
