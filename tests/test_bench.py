"""results/bench/speed.py: both sides are timed on the same batches, projections are sums, and the command runs."""

import json
from dataclasses import replace

import generated
import measure
import models
import official
import pandas as pd
import pytest
import speed
import torch
from ours import Ours, table_of
from problem import Theirs, tables

from eval import tasks
from eval.features.store import Store
from star_upstream.data import corpora
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def upstream():
    return models.get("tiny_random")


def sides(name, upstream, folder):
    task = tasks.get(name)
    schedule = replace(task.schedules["superb"], batch=2)
    root = generated.make(folder / "data", name, 8, seconds=1.0)
    table = table_of(task, root, upstream.stride)
    ours = Ours(task, table, schedule, upstream, Store(folder / "store", 1.0))
    head = {"build_downstream": schedule.head} if schedule.head else {}
    return ours, Theirs(name, table, upstream.expert, getattr(ours.probe, "tokenizer", None), head)


@pytest.mark.parametrize("name", ["ks", "pr", "sd"])
def test_batches_of_both_sides_are_timed_one_by_one(name, upstream, tmp_path):
    ours, theirs = sides(name, upstream, tmp_path)
    batches = ours.batches(3)
    times = theirs.train(batches, 3, 1)
    assert len(times) == 3 and all(t > 0 for t in times)
    assert theirs.evaluate(ours.probe.split["dev"][:3], theirs.batch_of_evaluation) > 0
    features, seconds, audio = ours.encode([row for batch in batches for row in batch])
    distinct = sorted({row for batch in batches for row in batch})
    assert seconds > 0 and audio == pytest.approx(ours.probe.table["samples"].iloc[distinct].sum() / 16_000)
    steps, head = ours.train(features, batches[:1], 5, 2)
    assert len(steps) == 5 and min(steps) > 0
    assert ours.probe.schedule is ours.schedule and ours.probe.schedule.steps > 5
    assert any(p.abs().sum() for p in head.parameters())
    theirs.close()


@pytest.mark.parametrize("name", ["sid", "asv", "sf", "er"])
def test_generated_corpora_have_the_official_classes(name, tmp_path):
    table = corpora.load(name, generated.make(tmp_path, name, 40, seconds=0.5))
    counts = {"sid": ("speaker", 1251), "asv": ("speaker", 1211), "sf": ("slots", 39), "er": ("label", 4)}
    column, number = counts[name]
    rows = table if name == "er" else table[table["split"] == "train"]
    values = {v for row in rows[column] for v in (row.split() if name == "sf" else [row])} - {"O"}
    assert len(values) == number
    lengths = table["samples"].unique() / 16_000
    assert lengths.mean() == pytest.approx(0.5, rel=0.3)


def test_tables_say_where_a_row_is():
    table = pd.DataFrame(
        {
            "id": list("abcd"),
            "path": ["x.wav", "y.wav", "y.wav", "z.wav"],
            "start": [0, 0, 16_000, 0],
            "samples": [9, 16_000, 8_000, 5],
            "split": ["train", "dev", "train", "test"],
            "label": list("uvuv"),
        }
    )
    csvs, places = tables("ks", table)
    assert places == {"train": {0: 0, 2: 1}, "dev": {1: 0}, "test": {3: 0}}
    cut = csvs[0].iloc[1]
    assert (int(cut["start_sec"] * 16_000), int((cut["end_sec"] - cut["start_sec"]) * 16_000)) == (16_000, 8_000)
    assert csvs[0]["start_sec"].isna().tolist() == [True, False]


def test_projection_is_the_sum_of_its_parts():
    schedule = replace(tasks.get("er").schedules["superb"], steps=1000, accumulate=2, eval_every=100)
    hours = official.Hours(train=4.0, dev=1.0, test=2.0, whole=7.0, folds=5)
    found = official.project(hours, schedule, 3.6, 0.36, encode=360, their_look=720, our_look=36, bytes_an_hour=2e9)
    assert found.theirs_training == pytest.approx(5 * 1000 * 2 * 3.6 / 3600)
    assert found.ours_training == pytest.approx(0.5)
    assert found.theirs_evaluating == pytest.approx(5 * 12 * 0.2)
    assert found.ours_evaluating == pytest.approx(5 * 12 * 0.01)
    assert found.ours_encoding == pytest.approx(0.7) and found.features_gb == pytest.approx(14.0)
    assert found.ratio == pytest.approx((10 + 12) / (0.7 + 0.5 + 0.6))


def test_official_hours_add_up():
    for name, hours in official.OFFICIAL.items():
        assert name in measure.all_tasks()
        if name != "asv":  # its dev is its test
            assert hours.train + hours.dev + hours.test == pytest.approx(hours.whole, rel=0.01)


def test_the_command_measures_resumes_and_projects(tmp_path, capsys):
    command = ["--tasks", "ks", "--upstream", "tiny_random", "--repeats", "1", "--out", str(tmp_path / "b.md")]
    assert speed.main(command) == 0
    out = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "b.json").read_text())["upstreams"]["tiny_random"]["ks"]
    assert out["ratios"]["tiny_random/ks"] == record["projected_hours"]["ratio"] > 0
    assert record["batch"] == 32 and len(record["ours_steps"]) == 50 and record["steps"] == 200_000
    page = (tmp_path / "b.md").read_text()
    assert "`python results/bench/speed.py --tasks ks --upstream tiny_random" in page and "| ks | 32 x 1 |" in page
    assert speed.main(command) == 0
    assert "already in" in capsys.readouterr().err
    assert speed.main([*command, "--repeats", "2"]) == 2
    assert "sizes differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "qbe"], "no problem for 'qbe'"),
        (["--upstream", "hubert_bas_random"], "hubert_base_random"),
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--out", "results/bench.txt"], "must end in .md"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert speed.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_random_shapes_are_the_same_every_time():
    first, second = models.get("tiny_random"), models.get("tiny_random")
    assert first.digest == second.digest and first.padded
    with pytest.raises(StarError, match="unknown shape"):
        models.get("tiny_rnadom_random")
    assert torch.equal(first.encode([torch.ones(4000).numpy()])[0], second.encode([torch.ones(4000).numpy()])[0])
