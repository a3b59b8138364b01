"""Cores are counted as this process may use them, and never promised twice."""

import os

import pytest
import torch

from star_upstream import cores


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_affinity_and_quota_are_respected(files, count, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv(cores.LIMIT, raising=False)
    assert cores.available(tmp_path) == count
    monkeypatch.setenv(cores.LIMIT, "2")
    assert cores.available(tmp_path) == min(2, count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert cores.available(tmp_path) == 1


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("own", [1, 3, 64])
def test_threads_and_workers_fit_into_the_cores(own, gpu, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)  # OMP_NUM_THREADS, or as many as there are
    for count in (1, 2, 3, 4, 8, 64):
        monkeypatch.setattr(cores, "available", lambda count=count: count)
        for processes in (1, 2, 4):
            for asked in (0, 1, 2, 8, 100):
                threads, workers = cores.divide(asked, processes, gpu)
                assert 1 <= threads <= own and 0 <= workers <= asked
                assert processes * (threads + workers) <= max(count, processes)


def test_what_is_free_is_used(monkeypatch):
    monkeypatch.setattr(cores, "available", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert cores.divide(2) == (6, 2) and cores.divide(0) == (8, 0) and cores.divide(8, gpu=True) == (1, 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert cores.divide(4) == (1, 4)
