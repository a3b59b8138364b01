"""An eleventh task and its corpus, from a package of somebody else: one file each, no fork."""

import csv
import json
import sys

import numpy as np
import pytest
import soundfile
from tiny_corpus import tone

from eval import tasks
from eval.__main__ import main
from star_upstream.data import corpora
from star_upstream.data.corpora import manifest
from star_upstream.errors import StarError

CORPUS = '''
"""Tones, high or low, in TONES/<split>-<pitch>-<number>.wav."""
from pathlib import Path
import pandas as pd, soundfile
from star_upstream.data.corpora.manifest import Table

NAME, LICENCE, FOLDERS = "Tones", "none", ("TONES",)
COUNTS = {"tone": {"train": 8, "dev": 4, "test": 4}}
TABLES = {"tone": Table(("pitch",), classes=("pitch",))}

def read(folder, task):
    files = sorted(folder.glob("*.wav"))
    parts = [file.stem.split("-") for file in files]
    return pd.DataFrame({"id": [f.stem for f in files], "path": [str(f) for f in files], "split": [p[0] for p in parts],
                         "pitch": [p[1] for p in parts], "samples": [soundfile.info(f).frames for f in files]})
'''
TASK = """
from eval.heads.probe import Metric, Schedule, Task, UtteranceClassification

class Pitch(UtteranceClassification):
    problem = "SuperbSID"

    def further(self, predictions, rows):
        value, counts = 100 - self.value(predictions, rows), self.counts(predictions, rows)
        return [(value / 100, counts * [-0.01, 1] + [0.01, 0])]

SCHEDULE = Schedule(steps=30, batch=4, accumulate=1, lr=1e-2, eval_every=10, head={"hidden_size": 8})
TASK = Task(
    name="tone", title="Pitch of a tone", version=1, corpus="Tones", splits="by name",
    metrics=(Metric("tone_acc", "Pitch Acc", "%", "max"), Metric("tone_cost", "Pitch cost", "", "min")),
    features="means", target="pitch", probe=Pitch, schedules={"mini": SCHEDULE},
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is installed, as far as Python's metadata say."""
    home = tmp_path / "site"
    (home / "tones-1.0.dist-info").mkdir(parents=True)
    (home / "tones_corpus.py").write_text(CORPUS)
    (home / "tones_task.py").write_text(TASK)
    (home / "tones-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tones\nVersion: 1.0\n")
    (home / "tones-1.0.dist-info" / "entry_points.txt").write_text(
        "[star_upstream.tasks]\ntone = tones_task:TASK\n[star_upstream.corpora]\ntones = tones_corpus\n"
    )
    monkeypatch.syspath_prepend(home)
    corpora._find_installed.cache_clear()
    for name in ("tones_corpus", "tones_task"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield home
    corpora._find_installed.cache_clear()
    tasks._REGISTERED.clear()
    for table in (corpora.BY_TASK, manifest.TABLES):
        table.pop("tone", None)


@pytest.fixture
def data(tmp_path):
    folder, rng = tmp_path / "data" / "TONES", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        for pitch, hertz in (("low", 400.0), ("high", 1800.0)):
            for number in range(count):
                soundfile.write(folder / f"{split}-{pitch}-{number}.wav", tone(hertz, 0.5, rng), 16_000)
    return folder.parent


def test_a_task_and_a_corpus_of_another_package_are_run_and_reported(package, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    assert (
        main(
            [
                "run",
                "--upstream",
                "tiny_corpus:upstream",
                "--tasks",
                "tone",
                "--data",
                str(data),
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "o" / "tone.json").read_text())
    assert record["value"] == 100.0 and record["metric"] == "tone_acc" and record["further_metrics"][0]["value"] == 0.0
    assert record["corpus"] == "official" and record["rows"] == {
        "used": 16,
        "corpus": 16,
    }  # the counts are those of COUNTS
    assert tasks.names()[-1] == "tone" and tasks.parse("all")[-1].title == "Pitch of a tone"
    capsys.readouterr()

    assert main(["report", str(tmp_path / "o"), "--out", str(tmp_path / "table")]) == 0
    assert "| Pitch Acc ↑ | Pitch cost ↓ |" in capsys.readouterr().out
    assert "Pitch Acc" in (tmp_path / "table.html").read_text()
    (first, second) = csv.DictReader((tmp_path / "table.csv").open())
    assert (first["metric"], first["unit"], second["direction"]) == ("tone_acc", "%", "min")

    assert main(["data", "--root", str(data), "--json"]) == 1  # the ten others are not there
    found = json.loads(capsys.readouterr().out)["tone"]
    assert (found["corpus"], found["error"]) == ("Tones", None)


def test_a_broken_package_is_named(package, data, capsys):
    (package / "tones_corpus.py").write_text("import nowhere_at_all\n")
    assert main(["data", "--root", str(data)]) == 2
    said = "corpus 'tones': tones_corpus cannot be loaded (No module named 'nowhere_at_all'); mend it"
    assert said in capsys.readouterr().err
    (package / "tones_task.py").write_text("TASK = 1 / 0\n")
    with pytest.raises(StarError, match="task 'tone': tones_task:TASK cannot be loaded .division by zero."):
        tasks.get("tone")


def test_a_record_says_what_the_report_needs_where_the_package_is_not_installed(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    record = {
        "task": "tone",
        "title": "Pitch of a tone",
        "metric": "tone_acc",
        "metric_title": "Pitch Acc",
        "value": 50.0,
        "unit": "%",
        "direction": "max",
        "interval_95": [40.0, 60.0],
        "corpus": "mine",
        "schedule": "mini",
        "upstream": "fbank",
        "upstream_digest": "d",
        "parameters": 0,
    }
    (tmp_path / "a" / "tone.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "a")]) == 0
    assert "| Pitch Acc ↑ |" in capsys.readouterr().out


def test_names_and_metrics_of_others_are_not_taken(package):
    import dataclasses

    import tones_corpus

    tone_task = tasks.get("tone")
    tasks.register(tone_task)  # the same: nothing to do
    with pytest.raises(StarError, match="task 'ks': is there already"):
        tasks.register(dataclasses.replace(tone_task, name="ks"))
    with pytest.raises(StarError, match="metric 'tone_acc' is another task's"):
        tasks.register(dataclasses.replace(tone_task, name="tune"))
    with pytest.raises(StarError, match=r"unknown task 'tome'; did you mean 'tone'\?"):
        tasks.get("tome")

    corpora.register(tones_corpus)
    other = type("Other", (), {**vars(tones_corpus), "NAME": "Other"})
    with pytest.raises(StarError, match="tone: two corpora serve it, Tones and Other"):
        corpora.register(other)
    with pytest.raises(StarError, match="Other: tune is no task of this package, so its columns must be in TABLES"):
        corpora.register(
            type("Other", (), {**vars(tones_corpus), "NAME": "Other", "COUNTS": {"tune": {}}, "TABLES": {}})
        )
    with pytest.raises(StarError, match="has no LICENCE"):
        corpora.register(type("Other", (), {"NAME": "x", "FOLDERS": (), "COUNTS": {}, "read": None}))
