"""cluster: tasks as jobs of submitit's local executor, one of them killed, and what Slurm would be told."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import submitit
import tiny_corpus
import torch
from test_jobs import _alive, _soon
from tiny_runs import HERE, PATIENCE

from eval.__main__ import main
from star_upstream import audio, cluster, cores
from star_upstream.errors import StarError

LOCAL = cluster.Launch(cluster="local")


class Holding(tiny_corpus.TinyUpstream):
    """Stops for good at the long utterances, which sid alone has, while there is a file to say by whom."""

    def forward(self, wavs):
        if max(map(len, wavs)) > 5 * 16_000 and (hold := Path(os.environ["HOLD"])).is_file():
            hold.write_text(f"{os.getpid()}\n")
            time.sleep(PATIENCE)
        return super().forward(wavs)


def holding():
    return Holding()


def kill_who_holds(hold):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not hold.read_text().endswith("\n"):
        time.sleep(0.05)
    os.kill(int(hold.read_text()), signal.SIGKILL)


def test_a_killed_job_is_named_and_alone_submitted_again(tmp_path, monkeypatch, capsys):
    corpus, hold, out = tiny_corpus.make(tmp_path / "data"), tmp_path / "hold", tmp_path / "out"
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # what a slow file system is given
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOLD", str(hold))
    hold.touch()
    words = ["run", "--upstream", "test_cluster:holding", "--tasks", "ks,sid", "--data", str(corpus), "--steps", "2"]
    words += ["--out", str(out), "--launcher", "submitit", "--cluster", "local"]
    killer = threading.Thread(target=kill_who_holds, args=(hold,))
    killer.start()
    assert main(words) == 1
    killer.join()
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert list(told["failed"]) == ["sid"] and list(told["metrics"]) == ["ks_acc"]
    assert "ended without a result" in told["failed"]["sid"]
    (failed,) = (line for line in printed.err.splitlines() if "FAILED" in line)
    log = Path(failed.rpartition("(see ")[2].removesuffix(")"))
    assert log.is_relative_to(out / "jobs") and "sid: encoding" in log.read_text()
    assert "submitted, a job each: ks, sid;" in printed.err and "step 2/2" not in printed.err

    hold.unlink()
    before = set((out / "jobs").iterdir())
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "ks: already done" in printed.err and "submitted, a job each: sid;" in printed.err
    assert len({entry for entry in set((out / "jobs").iterdir()) - before if list(entry.glob("*_submitted.pkl"))}) == 1
    assert sorted(json.loads(printed.out)["metrics"]) == ["ks_acc", "sid_acc"]

    assert main(words) == 0 and "submitted" not in capsys.readouterr().err


class Counting(tiny_corpus.TinyUpstream):
    """Writes down who heard what."""

    def forward(self, wavs):
        with open(os.environ["HEARD"], "a") as file:
            file.writelines(f"{os.getpid()} {zlib.crc32(wav.numpy().tobytes())}\n" for wav in wavs)
        return super().forward(wavs)


def counting():
    return Counting()


def test_jobs_encode_shares_first_and_nothing_twice(tmp_path, monkeypatch, capsys):
    corpus, out = tiny_corpus.make(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    words = ["run", "--upstream", "test_cluster:counting", "--tasks", "ks,asr", "--data", str(corpus), "--steps", "2"]
    words += ["--out", str(out), "--launcher", "submitit", "--cluster", "local", "--encode-jobs", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().err
    assert "encoding 1-of-2: done" in printed and "submitted, a job each: ks, asr;" in printed
    heard = [line.split() for line in (tmp_path / "heard").read_text().splitlines()]
    audio_files = {zlib.crc32(audio.read(file).tobytes()) for file in corpus.rglob("*.wav")}
    of_corpus = [(pid, int(crc)) for pid, crc in heard if int(crc) in audio_files]
    assert len(of_corpus) == len({crc for _, crc in of_corpus}) > 10
    assert len({pid for pid, _ in of_corpus}) == 2


def share(name):
    return name, cores.available(), torch.get_num_threads(), os.getpid()


def test_local_jobs_share_the_cores_and_debug_is_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv(cores.LIMIT, "2")
    running = cores.available()
    ended = list(cluster.array(share, ["a", "b"], tmp_path / "jobs", LOCAL, "test"))
    assert {one.name for one in ended} == {"a", "b"} and not any(one.why for one in ended)
    for one in ended:
        name, count, threads, pid = one.result
        assert name == one.name and threads <= count == max(1, running // 2) and pid != os.getpid()
    assert os.environ[cores.LIMIT] == "2"
    (one,) = cluster.array(share, ["a"], tmp_path / "debug", cluster.Launch(cluster="debug"), "test")
    assert one.result[3] == os.getpid()


def raises(name):
    raise ValueError("no good")


def test_what_a_job_raises_is_in_its_log(tmp_path):
    (one,) = cluster.array(raises, ["a"], tmp_path / "jobs", LOCAL, "test")
    assert one.result is None and "without a result" in one.why and "ValueError: no good" in one.log.read_text()


def sleeps(folder, number, name):
    """``long`` sleeps until a signal other than ``number`` ends it."""
    if name == "long":
        signal.signal(number, signal.SIG_IGN)
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(PATIENCE)
    while not (folder / "pid").is_file():
        time.sleep(0.05)
    return name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_early_ends_what_runs_whatever_it_ignores(tmp_path, monkeypatch, number):
    """SIGINT is ignored in what a script starts with ``&``, SIGTERM by a training that writes its state."""
    monkeypatch.setattr(cluster, "GRACE", PATIENCE if number == signal.SIGINT else 0.5)
    work = functools.partial(sleeps, tmp_path, number)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = cluster.array(work, ["long", "short"], tmp_path / "jobs", LOCAL, "test")
        assert next(ended).result == "short"
    finally:
        signal.signal(signal.SIGINT, before)
    pid = int((tmp_path / "pid").read_text())
    assert _alive(pid)
    ended.close()
    assert _soon(lambda: not _alive(pid))


def test_local_jobs_do_not_outlive_a_killed_caller(tmp_path):
    code = (
        "import functools, pathlib, sys; from test_cluster import LOCAL, cluster, signal, sleeps; "
        "folder = pathlib.Path(sys.argv[1]); work = functools.partial(sleeps, folder, signal.SIGINT); "
        "list(cluster.array(work, ['long'], folder / 'jobs', LOCAL, 'test'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    assert _soon(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    job, pid = (int(next((tmp_path / "jobs").glob("*/*.out")).name.split("_")[0]), int((tmp_path / "pid").read_text()))
    assert _alive(job) and _alive(pid)
    caller.kill()
    caller.wait()
    assert _soon(lambda: not _alive(job) and not _alive(pid))


def test_a_job_that_left_slurms_queue_without_a_result_is_lost(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"  # stands in for Slurm's
    squeue.write_text(f"#!/bin/sh\necho look >> {tmp_path}/looks\n[ -f {tmp_path}/down ] && exit 1\necho 7_2\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    done, lost, waits = jobs = [submitit.LocalJob(tmp_path / "%j", f"7_{i}") for i in range(3)]
    for job in jobs:
        job.paths.folder.mkdir()
    done.paths.result_pickle.touch()
    ended = cluster._endings(jobs, slurm=True)
    assert next(ended) == (done, True) and not (tmp_path / "looks").exists()
    assert next(ended) == (lost, False) and (tmp_path / "looks").read_text() == "look\nlook\n"
    waits.paths.result_pickle.touch()
    assert list(ended) == [(waits, True)]
    (tmp_path / "down").touch()
    assert cluster._queue() is None


def test_slurm_is_told_what_it_knows_and_the_rest_as_it_is():
    words = ["partition=gpu", "--gpus-per-node=2", "mem=32G", "time=90", "reservation=mine", "exclusive=true"]
    assert cluster._parameters(cluster.pairs([*words, "setup=module load cuda"]), 3) == {
        "slurm_array_parallelism": 3,
        "slurm_partition": "gpu",
        "slurm_gpus_per_node": 2,
        "slurm_mem": "32G",
        "slurm_time": 90,
        "slurm_exclusive": True,
        "slurm_setup": ["module load cuda"],
        "slurm_additional_parameters": {"reservation": "mine"},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "submitit", "--slurm", "partition"], "--slurm partition: expected KEY=VALUE"),
        (["--launcher", "submitit", "--slurm", "time=1:00:00"], "time in minutes"),
        (["--launcher", "submitit", "--slurm", "nodes=2"], "nodes is decided here"),
        (["--launcher", "submitit", "--cluster", "local", "--slurm", "mem=1G"], "these jobs go to local"),
        (["--launcher", "submitit", "--slurm", "mem=1G", "data.train=/a"], "write it before --slurm"),
        (["--slurm", "mem=1G"], "are for --launcher submitit"),
        (["--cluster", "local"], "are for --launcher submitit"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, message, tmp_path, capsys):
    corpus = tiny_corpus.make(tmp_path / "data")
    given = ["--upstream", "tiny_corpus:upstream", "--tasks", "ks", "--data", str(corpus), "--out", str(tmp_path / "o")]
    assert main(["run", *given, *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("o/jobs/*/*_submitted.pkl"))


def test_no_slurm_and_no_submitit_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StarError, match="there is no srun here"):
        next(cluster.array(share, ["a"], tmp_path / "jobs", cluster.Launch(cluster="slurm"), "test"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(StarError, match=r"star-upstream\[cluster\]"):
        next(cluster.array(share, ["a"], tmp_path / "jobs", LOCAL, "test"))
