"""Signals, torchrun and another number of processes: a run is stopped in order, and goes on as an unbroken one."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_pretrain import write_recipe, write_steps
from tiny_runs import PATIENCE, ROOT, log

from star_upstream.errors import StarError
from star_upstream.training import pretrain, recipe, stop
from star_upstream.training.config import TrainingConfig
from star_upstream.training.pretrain_recipe import PretrainRecipe
from star_upstream.training.run_folder import RunFolder

ONE = [{"features": "mfcc", "units": 6}]
TRAINING = {"updates": 12, "validate_every": 6, "save_every": 100, "batches_per_update": 2}
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_steps(folder / "clips")
    return folder


def command(world, file, *values):
    return ["pretrain", file, f"data.train={world / 'clips'}", *values]


def begin(words, run, rows=0, torchrun=0):
    """The command as a process, or as ``torchrun`` nodes of one process each; with ``rows`` it waits once there are so
    many rows in its log, until a signal comes."""
    program = [HERE / "paused.py", run / "round1" / "log.csv", rows] if rows else ["-m", "star_upstream"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = []
    for node in range(max(torchrun, 1)):
        before = []
        if torchrun:
            place = ["--node-rank", node, "--master-addr", "127.0.0.1", "--master-port", PORT, "--nproc-per-node", 1]
            before = ["-m", "torch.distributed.run", "--nnodes", torchrun, *place]
        command = [sys.executable, *map(str, [*before, *program, *words, "--out", run])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=run.parent, env=environment, start_new_session=True, **pipes))
    return processes


PORT = 20_000 + os.getpid() % 20_000


def wait_for_rows(run, rows, processes):
    file, limit = run / "round1" / "log.csv", time.monotonic() + PATIENCE
    while not file.is_file() or len(file.read_text().splitlines()) <= rows:
        assert all(p.poll() is None for p in processes) and time.monotonic() < limit, processes[0].communicate()
        time.sleep(0.01)


def same(one, other):
    assert log(one / "round1") == log(other / "round1")
    files = [run / "round1" / "encoder" / "model.safetensors" for run in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def whole(world):
    file = write_recipe(world / "r.yaml", rounds=ONE, training=TRAINING, data={"workers": 1})
    asked = recipe.load(file, [f"data.train={world / 'clips'}"], PretrainRecipe)
    pretrain.run(asked, world / "whole")
    return file, world / "whole"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_writes_the_state_and_says_how_to_go_on(world, whole, tmp_path, number):
    file, unbroken = whole
    run = tmp_path / "run"
    (process,) = begin(command(world, file), run, rows=5)
    wait_for_rows(run, 5, [process])
    os.killpg(process.pid, number)  # data workers too, as Slurm does
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and not out, err
    update = RunFolder(run / "round1").load_state()["update"]
    assert 5 <= update < 12
    line = next(line for line in err.splitlines() if "to go on: " in line)
    assert f"stopped by {number.name} after update {update}, its state is written" in line
    words = shlex.split(line.partition("to go on: ")[2])
    assert words[0] == "paused.py" and words[3:] == [*map(str, command(world, file)), "--out", str(run)]
    pretrain.run(recipe.load(file, [f"data.train={world / 'clips'}"], PretrainRecipe), run)
    same(run, unbroken)


def test_data_workers_ignore_signals_and_end_with_their_batches_after_an_error_too():
    loader = torch.utils.data.DataLoader(list(range(100)), num_workers=1, prefetch_factor=1)
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="no good"), stop.batches(loader) as batches:
        assert next(batches).item() == 0
        (worker,) = set(multiprocessing.active_children()) - before
        for number in stop.SIGNALS:
            os.kill(worker.pid, number)
        assert [next(batches).item() for _ in range(20)] == list(range(1, 21))
        raise ValueError("no good")
    assert not worker.is_alive()


def near(run, other):
    """Logs that differ in the order of sums alone."""
    ours, theirs = (log(folder / "round1") for folder in (run, other))
    assert [(row["update"], row["epoch"]) for row in ours] == [(row["update"], row["epoch"]) for row in theirs]
    for one, two in zip(ours, theirs):
        for name in ("train/loss", "valid/loss"):
            assert not one[name] or float(one[name]) == pytest.approx(float(two[name]), rel=1e-3)


def test_two_torchrun_nodes_killed_and_resumed_are_the_run_of_one_process(world, whole, tmp_path):
    file, alone = whole
    words, run = command(world, file, "training.nodes=2"), tmp_path / "run"
    processes = begin(words, run, rows=8, torchrun=2)
    wait_for_rows(run, 8, processes)
    for process in processes:
        # torchrun's own processes are in sessions of their own
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.killpg(int(child), signal.SIGKILL)
        process.kill()
        process.communicate()
    assert RunFolder(run / "round1").load_state()["update"] == 6
    processes = begin(words, run, torchrun=2)
    ends = [process.communicate(timeout=PATIENCE) for process in processes]
    assert all(process.returncode == 0 for process in processes), ends
    assert sum(bool(out.strip()) for out, _ in ends) == 1  # the first process alone prints the result
    assert any("resumed at update 6" in err for _, err in ends)
    near(run, alone)


def test_a_run_goes_on_on_another_number_of_processes(world, whole, tmp_path, monkeypatch):
    """Stopped after 6 updates of one process, gone on with by two: the losses are the unbroken run's, but for
    rounding."""
    from star_upstream.training import loop

    file, unbroken = whole
    asked = recipe.load(file, [f"data.train={world / 'clips'}"], PretrainRecipe)
    step = loop._Loop.step

    def interrupted(self):
        step(self)
        if self.update == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(asked, tmp_path / "run")
    state = RunFolder(tmp_path / "run" / "round1").load_state()
    assert (state["update"], state["processes"]) == (6, 1)
    (process,) = begin(command(world, file, "training.devices=2"), tmp_path / "run")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "resumed at update 6" in err, err
    near(tmp_path / "run", unbroken)


def test_without_batches_per_update_another_number_of_processes_is_refused_with_the_reason(world, tmp_path):
    file = write_recipe(tmp_path / "r.yaml", rounds=ONE, training={"updates": 1})
    data = f"data.train={world / 'clips'}"
    pretrain.run(recipe.load(file, [data], PretrainRecipe), tmp_path / "run")
    for name in ("done.json", "round1/done.json"):
        (tmp_path / "run" / name).unlink()
    message = "training.devices is 1 there and 2 here; only with training.batches_per_update a run goes on"
    with pytest.raises(StarError, match=message):
        pretrain.run(recipe.load(file, [data, "training.devices=2"], PretrainRecipe), tmp_path / "run")


def test_processes_share_an_updates_batches():
    config = TrainingConfig(updates=1, batches_per_update=8, devices=2, nodes=2)
    assert (config.processes, config.batches_each) == (4, 2)
    assert TrainingConfig(updates=1, accumulate=3, devices=2).batches_each == 3
    for wrong in ({"batches_per_update": 3, "devices": 2}, {"batches_per_update": 0}):
        with pytest.raises(StarError, match="batches_per_update: must be a multiple of the number of processes"):
            TrainingConfig(updates=1, **wrong)


def test_processes_that_were_not_started_are_named(world, whole, tmp_path):
    """torchrun started one process where the recipe asks for two machines."""
    file, _ = whole
    (process,) = begin(command(world, file, "training.nodes=2"), tmp_path / "run", torchrun=1)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "training.devices" in err, err
