"""jobs: processes side by side, their logs, and those that die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import PATIENCE

from star_upstream import cores
from star_upstream.jobs import side_by_side


def work(name):
    print(f"here is {name}", flush=True)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "fails":
        raise ValueError("no good")
    return name.upper()


def test_results_logs_and_deaths(tmp_path):
    ended = {
        one.name: (one.result, one.why)
        for one in side_by_side(work, ["dies", "a", "fails"], 2, lambda n: tmp_path / f"{n}.log")
    }
    died, failed = (f"its process ended with {how}" for how in (f"signal {int(signal.SIGKILL)}", "exit code 1"))
    assert ended == {"a": ("A", ""), "dies": (None, died), "fails": (None, failed)}
    for name in ended:
        assert (tmp_path / f"{name}.log").read_text().startswith(f"here is {name}\n")
    assert "ValueError: no good" in (tmp_path / "fails.log").read_text()


def counts(name):
    import torch

    return torch.get_num_threads(), cores.available()


def test_cores_are_divided(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(cores.LIMIT, "2")
    running, names = cores.available(), ["a", "b", "c"]
    found = [one.result for one in side_by_side(counts, names, 3, lambda n: tmp_path / f"{n}.log")]
    assert all(threads <= share == 1 for threads, share in found) and len(found) == 3
    assert f"3 at once were asked for; {running} run, as there are cores" in capsys.readouterr().err


def sleeps(name):
    print(os.getpid(), flush=True)
    time.sleep(PATIENCE)


def as_a_shell_may_leave_it():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_none_outlives_a_killed_caller_even_where_sigterm_is_ignored(tmp_path, number):
    log = tmp_path / "x.log"
    code = (
        "import pathlib, sys, test_jobs; from star_upstream.jobs import side_by_side; "
        "list(side_by_side(test_jobs.sleeps, ['x'], 1, lambda name: pathlib.Path(sys.argv[1])))"
    )
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(log)], env=environment, preexec_fn=as_a_shell_may_leave_it
    )
    child = int(_soon(lambda: log.is_file() and log.read_text().strip()))
    caller.send_signal(number)
    caller.wait(PATIENCE)
    assert _soon(lambda: not _alive(child))


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _soon(condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    return False
