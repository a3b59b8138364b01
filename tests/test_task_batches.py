"""Batches that alternate between tasks."""

import numpy as np
import pytest
from tiny_finetune import make, tasks_of

from star_upstream.data.task_batches import Alternating
from star_upstream.data.task_config import TaskConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tones") / "data")


def test_tasks_take_turns_and_do_not_change_one_another(root):
    tasks = list(tasks_of(root).values())
    both, alone = Alternating(tasks, seed=3), Alternating(tasks[1:], seed=3)
    plan = [batch for epoch in range(4) for batch in both.plan(epoch)]
    assert [batch[0][0] for batch in plan] == [0, 1] * (len(plan) // 2) and both.iterations == 3 and len(both) == 6
    speakers = [[key[1:] for key in batch] for batch in plan[1::2]]
    assert speakers == [[key[1:] for key in batch] for epoch in range(4) for batch in alone.plan(epoch)]
    assert len({row for batch in speakers[:3] for row, _, _ in batch}) == 24  # a pass has each utterance at most once
    other = Alternating(tasks, seed=4)
    assert other.plan(0) != both.plan(0) == Alternating(tasks, seed=3).plan(0)


def test_processes_share_each_tasks_turn(root):
    tasks = list(tasks_of(root).values())
    ranks = [Alternating(tasks, 0, group=2, rank=r, world=2) for r in range(2)]
    for sampler in ranks:
        own = sampler.plan(0)[sampler.rank :: 2]
        assert [batch[0][0] for batch in own] == [0, 0, 1, 1] * sampler.iterations and len(own) == len(sampler)
    assert [Alternating(tasks, 0).plan(0)[0], Alternating(tasks, 0).plan(0)[2]] == ranks[0].plan(0)[:2]


def test_crops_lie_inside_and_move(root):
    task = tasks_of(root)["speaker"]
    samples, firsts = task.table["samples"].to_numpy(), set()
    for epoch in range(5):
        for batch in Alternating([task], 0).plan(epoch):
            for _, row, first, count in batch:
                assert count == min(samples[row], 6400) and 0 <= first <= samples[row] - count
                firsts.add((row, first))
    assert len(firsts) > 40


def test_balanced_classes_come_equally_often(root):
    task = tasks_of(root)["keyword"]
    task.config = TaskConfig(data="ks", batch=8, balanced=True)
    keep = ~((task.table["target"] == 0) & (task.table["split"] == "train") & (task.table.index % 10 > 0))
    task.table = task.table[keep].reset_index(drop=True)
    drawn = [
        task.table["target"][row]
        for epoch in range(100)
        for batch in Alternating([task], 0).plan(epoch)
        for _, row, _, _ in batch
    ]
    assert np.bincount(drawn).min() / len(drawn) == pytest.approx(1 / 3, abs=0.05)
