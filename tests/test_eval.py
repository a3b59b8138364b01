"""python -m eval, from the command line to the record, on tones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny_corpus
from tiny_runs import PATIENCE

from eval.__main__ import main
from eval.run import _kind
from eval.tasks import get

FAST = ["--upstream", "tiny_corpus:upstream", "--schedule", "mini"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus.make(tmp_path_factory.mktemp("tones") / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def evaluate(*arguments):
    return main(["run", *map(str, arguments)])


def error(capsys):
    return error_line(capsys.readouterr().err)


def error_line(text):
    lines = [line for line in text.splitlines() if line.startswith("error:") or "FAILED" in line]
    assert len(lines) == 1
    return lines[0]


def test_three_tasks_end_to_end(corpus, tmp_path, capsys):
    out = tmp_path / "results" / "tiny"
    arguments = [
        *FAST,
        "--data",
        corpus,
        "--out",
        out,
        "--steps",
        20,
        "--tasks",
        "ks,sid,asr",
        "--lr-grid",
        "1e-3,1e-2",
    ]
    assert evaluate(*arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in ("ks", "sid", "asr")}
    assert printed["metrics"] == {r["metric"]: r["value"] for r in records.values()}
    assert not (out / ".progress").exists()
    for name in ("ks", "sid", "asr"):  # what paired tests of several models need
        with np.load(out / f"{name}.resamples.npz") as found:
            values = found[records[name]["metric"]]
        assert len(values) == 1000
        assert np.percentile(values, [2.5, 97.5]).tolist() == pytest.approx(records[name]["interval_95"], abs=1e-4)

    ks, sid, asr = records["ks"], records["sid"], records["asr"]
    assert ks["value"] == 100.0 and sid["value"] == 100.0  # tones of different pitch
    assert ks["interval_95"] == [100.0, 100.0] and asr["interval_95"][0] <= asr["value"] <= asr["interval_95"][1]
    assert (ks["items"], sid["items"], asr["items"]) == (12, 8, 4)
    for record in records.values():
        assert record["limited"] is True and record["steps"] == 20 and record["schedule"] == "mini"
        assert (
            record["corpus"] == f"manifest:{corpus.name}"
            and record["stride"] == 160
            and record["parameters"] == 3 * 201 * 24
        )
        assert [g["lr"] for g in record["grid"]] == [1e-3, 1e-2] and record["lr"] in (1e-3, 1e-2)
        assert len(record["layer_weights"]) == 3 and sum(record["layer_weights"]) == pytest.approx(1, abs=1e-4)
        assert record["versions"]["s3prl"] and record["peak_memory_mb"] > 10 and len(record["upstream_digest"]) == 64
        assert record["seconds_encoding"] > 0 and record["task_version"] == get(record["task"]).version
        assert record["macs_g"] is None and record["encoding_precision"] == "fp32"

    stamp = (out / "ks.json").stat().st_mtime_ns
    assert evaluate(*arguments) == 0 and (out / "ks.json").stat().st_mtime_ns == stamp
    assert "already done" in capsys.readouterr().err
    assert evaluate(*arguments, "--seed", 1, "--tasks", "ks") == 2
    assert "holds another run (seed differ)" in error(capsys)
    assert evaluate(*arguments, "--seed", 1, "--tasks", "ks", "--overwrite") == 0
    assert json.loads((out / "ks.json").read_text())["seed"] == 1
    assert 'seconds_encoding": 0.0' in (out / "ks.json").read_text()

    capsys.readouterr()
    assert main(["report", str(out), "--out", str(tmp_path / "table.md")]) == 0
    text = capsys.readouterr().out
    assert "| tiny | tiny_corpus:upstream |" in text and "LIMITED RUN" in text and "No overall score" in text


def test_same_seed_same_numbers(corpus, tmp_path):
    values = []
    for name in ("a", "b"):
        assert evaluate(*FAST, "--data", corpus, "--out", tmp_path / name, "--steps", 4, "--tasks", "asr") == 0
        record = json.loads((tmp_path / name / "asr.json").read_text())
        values.append((record["value"], record["grid"], record["layer_weights"]))
    assert values[0] == values[1]


def test_a_folder_of_another_name_holds_the_same_corpus(corpus, tmp_path, capsys):
    given = [*FAST, "--out", tmp_path / "o", "--steps", 2, "--tasks", "asr", "--data"]
    assert evaluate(*given, corpus) == 0
    (tmp_path / "elsewhere").symlink_to(corpus)
    assert evaluate(*given, tmp_path / "elsewhere") == 0
    assert "already done" in capsys.readouterr().err


def test_a_dry_run_looks_at_the_data_and_writes_nothing(corpus, tmp_path, capsys):
    given = ["--out", tmp_path / "o", "--dry-run", "--data"]
    assert evaluate(*FAST, *given, corpus, "--tasks", "ks,asr") == 0
    assert "60 rows for ks" in capsys.readouterr().err and not (tmp_path / "o").exists()
    assert evaluate(*FAST, *given, corpus, "--tasks", "ks,er") == 2
    assert "no data for er" in capsys.readouterr().err


def test_limit_marks_the_record(corpus, tmp_path):
    assert evaluate(*FAST, "--data", corpus, "--out", tmp_path / "o", "--limit", 3, "--steps", 2, "--tasks", "ks") == 0
    record = json.loads((tmp_path / "o" / "ks.json").read_text())
    assert record["limited"] and record["limit"] == 3 and record["rows"] == {"used": 9, "corpus": 60}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "kss"], "unknown task 'kss'; did you mean 'ks'"),
        (["--tasks", "qbx"], "unknown task 'qbx'"),
        (["--upstream", "fbnak"], "s3prl has 'fbank'"),
        (["--data", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--schedule", "slow"], "unknown schedule 'slow'"),
        (["--limit", "0"], "--limit 0"),
        (["--steps", "0"], "--steps 0"),
        (["--lr-grid", "0"], "above 0"),
        (["--lr-grid", "nan"], "above 0"),
        (["--cache-gb", "-1"], "--cache-gb -1"),
        (["--cache-gb", "nan"], "--cache-gb nan"),
        (["--cache", "/proc/none"], "/proc/none: cannot hold the cache"),
        (["--out", "/proc/none"], "/proc/none: cannot be written"),
        (["--schedule", "slow", "--tasks", "all"], "unknown schedule 'slow'"),
        (["--data", "/no/such/folder", "--tasks", "all"], "/no/such/folder: no such folder"),
        (["--jobs", "0"], "--jobs 0"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, message, corpus, tmp_path, capsys):
    assert evaluate(*FAST, "--data", corpus, "--out", tmp_path / "o", "--tasks", "ks", *arguments) == 2
    assert message in error(capsys)
    assert not (tmp_path / "o" / "ks.json").exists()


def damaged(corpus, root, change):
    """The corpus at ``root`` with ``change`` made to the ks table."""
    (root / "manifests").mkdir(parents=True)
    for name in ("ks", "sid", "asr"):
        table = pd.read_csv(corpus / "manifests" / f"{name}.tsv", sep="\t", keep_default_na=False)
        table["path"] = [str(corpus / p) for p in table["path"]]
        if name == "ks":
            table = change(table)
        table.to_csv(root / "manifests" / f"{name}.tsv", sep="\t", index=False)
    return root


def _bad_wave(table):
    bad = Path(table["path"][0]).with_name("bad.wav")
    bad.write_bytes(b"RIFF not really")
    table.loc[3, "path"] = str(bad)
    return table


def _new_label(table):
    table.loc[table.index[-1], "label"] = "maybe"
    return table


@pytest.mark.parametrize(
    "change, message",
    [
        (_bad_wave, "bad.wav: cannot be read as audio"),
        (_new_label, "'maybe' is in test but not in train"),
        (lambda t: t[t["split"] != "dev"], "dev"),
    ],
    ids=["corrupt wav", "label only in test", "empty split"],
)
def test_bad_corpora_are_one_line_and_do_not_stop_other_tasks(change, message, corpus, tmp_path, capsys):
    data = damaged(corpus, tmp_path / "data", change)
    assert evaluate(*FAST, "--data", data, "--out", tmp_path / "o", "--steps", 2, "--tasks", "ks") == 2
    assert message in error(capsys)
    assert evaluate(*FAST, "--data", data, "--out", tmp_path / "o", "--steps", 2, "--tasks", "ks,sid") == 1
    captured = capsys.readouterr()
    assert message in json.loads(captured.out)["failed"]["ks"] and list(json.loads(captured.out)["metrics"]) == [
        "sid_acc"
    ]


def test_a_crash_is_logged_and_the_others_go_on(corpus, tmp_path, monkeypatch, capsys):
    def crash(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("eval.tasks.ks.KeywordSpotting.head", crash)
    out = tmp_path / "o"
    assert evaluate(*FAST, "--data", corpus, "--out", out, "--steps", 2, "--tasks", "ks,sid") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failed"] == {"ks": "RuntimeError: boom"} and (out / "sid.json").is_file()
    assert "in crash" in (out / "ks.error.txt").read_text() and "ks.error.txt" in captured.err
    monkeypatch.undo()
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    assert evaluate(*FAST, "--data", corpus, "--out", out, "--steps", 2, "--tasks", "ks,sid") == 0
    assert not (out / "ks.error.txt").exists()


def test_kill_9_and_the_same_command_again(corpus, tmp_path, capsys):
    arguments = ["run", *FAST, "--data", str(corpus), "--steps", "25", "--tasks", "asr", "--out"]
    code = (
        "import sys, time; from eval.heads import train; train.SAVE_EVERY = train._SHARE = 0.0; from eval.__main__ "
        "import main\n"
        "quick = train._update\n"
        "def stopping(candidate, probe, micro, step):\n"
        "    while step > 10: time.sleep(60)\n"
        "    return quick(candidate, probe, micro, step)\n"
        "train._update = stopping\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, str(tmp_path / "o")], env=environment, stderr=subprocess.DEVNULL
    )
    progress = tmp_path / "o" / ".progress" / "asr.pt"
    deadline = time.monotonic() + PATIENCE
    while not progress.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert progress.exists() and not (tmp_path / "o" / "asr.json").exists()

    assert main([*arguments, str(tmp_path / "o")]) == 0
    assert "going on after step" in capsys.readouterr().err and not progress.exists()
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    resumed, whole = (json.loads((tmp_path / n / "asr.json").read_text()) for n in ("o", "whole"))
    assert resumed["grid"] == whole["grid"] and resumed["value"] == whole["value"]


def test_jobs_give_the_same_records_and_failures(corpus, tmp_path, capsys):
    data = damaged(corpus, tmp_path / "data", _bad_wave)
    arguments = [*FAST, "--data", data, "--steps", 4, "--tasks", "ks,sid", "--cache", tmp_path / "features"]
    assert evaluate(*arguments, "--out", tmp_path / "one") == 1
    one = json.loads(capsys.readouterr().out)
    assert evaluate(*arguments, "--out", tmp_path / "two", "--jobs", 2) == 1
    captured = capsys.readouterr()
    assert {**json.loads(captured.out), "out": one["out"]} == one and list(one["failed"]) == ["ks"]
    assert "bad.wav" in error_line(captured.err) and "sid: done" in captured.err and "step 4/4" not in captured.err
    assert "sid: step 4/4" in (tmp_path / "two" / "sid.log").read_text()
    first, second = (json.loads((tmp_path / folder / "sid.json").read_text()) for folder in ("one", "two"))
    assert first.keys() == second.keys()
    for key in ("value", "interval_95", "grid", "layer_weights", "table_digest", "upstream_digest"):
        assert first[key] == second[key], key


def test_only_the_whole_published_corpus_is_called_official():
    class Plain:
        limit = None

    rows = [{"split": s} for s, n in (("train", 28_539), ("dev", 2_703), ("test", 2_620)) for _ in range(n)]
    assert _kind(get("asr"), pd.DataFrame(rows), "folder", Plain) == "official"
    assert _kind(get("asr"), pd.DataFrame(rows[1:]), "folder", Plain) != "official"
    assert _kind(get("asr"), pd.DataFrame(rows), "mini", Plain) == "mini"


def test_windows_of_one_file(tmp_path):
    """Rows may be stretches of one recording: start and samples decide what is heard."""
    import numpy as np

    from eval.features.encode import Window, waveform

    soundfile.write(tmp_path / "a.wav", np.linspace(0, 0.5, 1000), 16_000, subtype="FLOAT")
    wave = waveform(Window(str(tmp_path / "a.wav"), 100, 50))
    assert len(wave) == 50 and wave[0] == pytest.approx(100 * 0.5 / 999, abs=1e-6)


def test_own_data_takes_the_short_schedule_unless_told(corpus, tmp_path, capsys):
    arguments = ["--upstream", "tiny_corpus:upstream", "--data", corpus, "--tasks", "ks", "--steps", 4, "--overwrite"]
    for extra, wanted in ([], "mini"), (["--schedule", "superb"], "superb"):
        assert evaluate(*arguments, *extra, "--out", tmp_path / "out") == 0
        assert json.loads((tmp_path / "out" / "ks.json").read_text())["schedule"] == wanted
        assert ("own data, hence the short schedule" in capsys.readouterr().err) == (wanted == "mini")
