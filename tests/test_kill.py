"""kill -9 while encoding, while training and while a report is written: the same command again ends as if nothing had
happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_corpus
from tiny_runs import PATIENCE

from eval.__main__ import main

HERE = Path(__file__).resolve().parent
DECIDED = (
    "value",
    "interval_95",
    "grid",
    "layer_weights",
    "dev_value",
    "lr",
    "items",
    "rows",
    "table_digest",
    "upstream_digest",
)
"""What of a record must not depend on how often its run was broken; times and memory do."""


def start(folder, code, *arguments):
    """A process of its own that runs ``code`` (which may slow things down) and then the command line."""
    code = f"import sys, time\n{code}\nfrom eval.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        "STAR_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment, stderr=log, stdout=log
        )


def finish(folder, *arguments):
    """The same command, undisturbed; here, since a process of its own takes seconds to import torch."""
    os.environ["STAR_CACHE"] = str(folder / "cache")
    assert main([str(argument) for argument in arguments]) == 0


def killed_when(process, condition):
    """SIGKILL as soon as ``condition()`` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < end, (
            "ended, or nothing happened, before it could be killed"
        )
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def decided(path):
    record = json.loads(path.read_text())
    return {key: record[key] for key in DECIDED}


def entries(folder):
    """Files of the cache, with what changes when one is written again."""
    return {p: p.stat().st_ino for p in (folder / "cache").rglob("*.safetensors")}


@pytest.fixture(autouse=True)
def environment():
    before = os.environ.get("STAR_CACHE")
    yield
    os.environ.pop("STAR_CACHE", None)
    if before is not None:
        os.environ["STAR_CACHE"] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, and what undisturbed runs on it give."""
    folder = tmp_path_factory.mktemp("kill")
    tiny_corpus.make(folder / "data")
    (folder / "calm").mkdir()
    finish(folder / "calm", *run(folder, folder / "calm" / "o"))
    return folder


def run(folder, out, *more):
    return [
        "run",
        "--upstream",
        "tiny_corpus:upstream",
        "--schedule",
        "mini",
        "--data",
        folder / "data",
        "--tasks",
        "sid,asr",
        "--steps",
        12,
        "--out",
        out,
        *more,
    ]


SLOW_ENCODING = """
import tiny_corpus
quick, calls = tiny_corpus.TinyUpstream.forward, []
def stopping(self, wavs):
    calls.append(1)
    while len(calls) > 9:
        time.sleep(60)
    return quick(self, wavs)
tiny_corpus.TinyUpstream.forward = stopping
"""


def test_killed_while_encoding(folder, tmp_path):
    """asr's utterances are kept one by one: those that were encoded stay, half a file never counts, the rest follow."""
    out = tmp_path / "o"
    process = start(tmp_path, SLOW_ENCODING, *run(folder, out, "--tasks", "asr"))
    killed_when(process, lambda: len(entries(tmp_path)) >= 5)
    kept = entries(tmp_path)
    assert 5 <= len(kept) < 20 and not list(out.glob("*.json"))
    finish(tmp_path, *run(folder, out))
    after = entries(tmp_path)
    assert {p: after.get(p) for p in kept} == kept and len(after) > len(kept)
    for name in ("sid", "asr"):
        assert decided(out / f"{name}.json") == decided(folder / "calm" / "o" / f"{name}.json")


SLOW_WRITING = """
import pathlib
from eval.features import store
quick = store.write_tensors
def slow(path, tensors, metadata):
    quick(path, tensors, metadata)
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[: len(content) // 2])
    while True:
        time.sleep(60)
store.write_tensors = slow
"""


def test_killed_while_a_feature_file_is_half_written(folder, tmp_path):
    out = tmp_path / "o"
    process = start(tmp_path, SLOW_WRITING, *run(folder, out))

    def half():
        return [p for p in (tmp_path / "cache").rglob(".*.part") if p.stat().st_size]

    killed_when(process, half)
    assert half() and not entries(tmp_path)
    finish(tmp_path, *run(folder, out))
    for name in ("sid", "asr"):
        assert decided(out / f"{name}.json") == decided(folder / "calm" / "o" / f"{name}.json")


SAVE_OFTEN = """
from eval.heads import train
train.SAVE_EVERY = train._SHARE = 0.0
quick = train._update
def stopping(candidate, probe, micro, step):
    while probe.task.name == "asr" and step > 6:
        print("stopped", flush=True)
        time.sleep(60)
    return quick(candidate, probe, micro, step)
train._update = stopping
"""


def test_killed_while_training(folder, tmp_path, capsys):
    """sid's record stays as it was; asr goes on from its progress file, which is whole whenever it is there."""
    out = tmp_path / "o"
    progress = out / ".progress" / "asr.pt"
    process = start(tmp_path, SAVE_OFTEN, *run(folder, out))
    killed_when(process, lambda: "stopped\n" in (tmp_path / "log").read_text())
    sid = (out / "sid.json").read_bytes()
    assert progress.exists() and not (out / "asr.json").exists()
    finish(tmp_path, *run(folder, out))
    log = capsys.readouterr().err
    assert "asr: going on after step" in log and "sid: already done" in log
    assert (out / "sid.json").read_bytes() == sid and not (out / ".progress").exists()
    assert decided(out / "asr.json") == decided(folder / "calm" / "o" / "asr.json")


SLOW_REPORT = """
import pathlib
quick = pathlib.Path.write_text
def slow(self, text, *arguments, **named):
    if ".part" in self.name:
        quick(self, text[: len(text) // 2], *arguments, **named)
        while True:
            time.sleep(60)
    return quick(self, text, *arguments, **named)
pathlib.Path.write_text = slow
"""


def test_killed_while_a_report_is_written(folder, tmp_path):
    """The files of an older report stay whole until the new ones take their place."""
    table = tmp_path / "table"
    arguments = ["report", folder / "calm" / "o", "--out", table]
    finish(tmp_path, *arguments)
    names = sorted(p.name for p in tmp_path.glob("table.*"))
    assert names == ["table.csv", "table.html", "table.md"]
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    older = {name: content + b"older" for name, content in whole.items()}
    for name in names:
        (tmp_path / name).write_bytes(older[name])
    process = start(tmp_path, SLOW_REPORT, *arguments)
    killed_when(process, lambda: any(p.stat().st_size for p in tmp_path.glob(".table*.part")))
    assert all((tmp_path / name).read_bytes() in (older[name], whole[name]) for name in names)
    assert any((tmp_path / name).read_bytes() == older[name] for name in names)
    finish(tmp_path, *arguments)
    assert {name: (tmp_path / name).read_bytes() for name in names} == whole
