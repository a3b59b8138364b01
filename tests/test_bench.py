"""bench and parity: both sides take the same steps, a difference is seen, projections are sums, and the commands run."""

import json
from dataclasses import replace

import pytest
import tiny_corpus
import torch

from eval import tasks
from eval.__main__ import main
from eval.bench import generated, measure, official, parity, upstreams
from eval.bench.check import agreement
from eval.bench.ours import Ours, table_of
from eval.bench.theirs import Theirs, tables
from eval.store import Store
from star_upstream import corpora
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def upstream():
    return upstreams.get("tiny_random")


def sides(name, upstream, folder, changes=None, seconds=1.0):
    task = tasks.get(name)
    schedule = replace(task.schedules["superb"], batch=2)
    root = generated.make(folder / "data", name, 8, seconds=seconds)
    table = table_of(task, root, upstream.stride)
    ours = Ours(task, table, schedule, upstream, Store(folder / "store", 1.0))
    head = {"build_downstream": schedule.head} if schedule.head else {}
    return ours, Theirs(name, table, upstream.expert, getattr(ours.probe, "tokenizer", None), {**head, **(changes or {})})


@pytest.mark.parametrize("name", ["ks", "ic", "pr", "sd"])
def test_both_sides_take_the_same_steps(name, upstream, tmp_path):
    found = agreement(*sides(name, upstream, tmp_path), steps=4)
    assert found.good and found.worst < 1e-5 and found.weights < 1e-2
    assert found.accumulate == tasks.get(name).schedules["superb"].accumulate
    assert found.worst_as_kept < 1e-2


def test_another_learning_rate_is_seen(upstream, tmp_path):
    found = agreement(*sides("ks", upstream, tmp_path, {"build_optimizer": {"conf": {"lr": 3e-4}}}), steps=4)
    assert not found.good and found.weights > 0.5


def test_their_batches_are_timed_one_by_one(upstream, tmp_path):
    ours, theirs = sides("ks", upstream, tmp_path)
    batches = ours.batches(3)
    times = theirs.train(batches, 3, 1)
    assert len(times) == len(theirs.losses) == 3 and all(t > 0 for t in times)
    assert theirs.evaluate(ours.probe.split["dev"][:3], theirs.batch_of_evaluation) > 0
    features, seconds, audio = ours.encode(batches[0])
    assert seconds > 0 and audio == pytest.approx(len(set(batches[0])) * 1.0)
    losses, steps, _ = ours.train(features, batches[:1], 5, 2)
    assert (len(losses), len(steps)) == (10, 5) and ours.probe.schedule is ours.schedule
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
    task = tasks.get("ks")
    import pandas as pd

    table = pd.DataFrame({
        "id": list("abcd"), "path": ["x.wav", "y.wav", "y.wav", "z.wav"], "start": [0, 0, 16_000, 0], "samples": [9, 16_000, 8_000, 5],
        "split": ["train", "dev", "train", "test"], "label": list("uvuv"),
    })  # fmt: skip
    csvs, places = tables(task.name, table)
    assert places == {"train": {0: 0, 2: 1}, "dev": {1: 0}, "test": {3: 0}}
    cut = csvs[0].iloc[1]
    assert (int(cut["start_sec"] * 16_000), int((cut["end_sec"] - cut["start_sec"]) * 16_000)) == (16_000, 8_000)
    assert csvs[0]["start_sec"].isna().tolist() == [True, False]


def test_projection_is_the_sum_of_its_parts():
    schedule = replace(tasks.get("er").schedules["superb"], steps=1000, accumulate=2, eval_every=100)
    hours = official.Hours(train=4.0, dev=1.0, test=2.0, whole=7.0, folds=5)
    found = official.project(hours, schedule, 3.6, 0.36, encode=360, their_look=720, our_look=36, bytes_an_hour=2e9)
    assert found.theirs_training == pytest.approx(5 * 1000 * 2 * 3.6 / 3600) and found.ours_training == pytest.approx(0.5)
    assert found.theirs_evaluating == pytest.approx(5 * 12 * 0.2) and found.ours_evaluating == pytest.approx(5 * 12 * 0.01)
    assert found.ours_encoding == pytest.approx(0.7) and found.features_gb == pytest.approx(14.0)
    assert found.ratio == pytest.approx((10 + 12) / (0.7 + 0.5 + 0.6))


def test_official_hours_add_up():
    for name, hours in official.OFFICIAL.items():
        assert name in measure.all_tasks()
        if name != "asv":  # its dev is its test
            assert hours.train + hours.dev + hours.test == pytest.approx(hours.whole, rel=0.01)


def test_the_command_measures_resumes_and_projects(tmp_path, capsys):
    command = ["bench", "--tasks", "ks", "--upstream", "tiny_random", "--check-steps", "2", "--repeats", "1", "--out", str(tmp_path / "b.md")]
    assert main(command) == 0
    out = json.loads(capsys.readouterr().out)
    assert not out["differing"]
    record = json.loads((tmp_path / "b.json").read_text())["upstreams"]["tiny_random"]["ks"]
    assert out["ratios"]["tiny_random/ks"] == record["projected_hours"]["ratio"] > 0
    assert record["batch"] == 32 and len(record["ours_steps"]) == 50 and record["steps"] == 200_000
    page = (tmp_path / "b.md").read_text()
    assert "tasks ks --upstream tiny_random" in page and "| ks | 32 x 1 |" in page
    assert main(command) == 0
    assert "already in" in capsys.readouterr().err
    assert main([*command, "--repeats", "2"]) == 2
    assert "sizes differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench", "--tasks", "qbe"], "no problem for 'qbe'"),
        (["bench", "--upstream", "hubert_bas_random"], "hubert_base_random"),
        (["bench", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["bench", "--out", "results/bench.txt"], "must end in .md"),
        (["parity", "--data", "mini", "--tasks", "sd"], "not for 'sd'"),
        (["parity", "--data", "/nowhere", "--limit", "0"], "--limit 0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_parity_of_a_whole_run(tmp_path, capsys, monkeypatch):
    """Tones that both sides tell apart: s3prl's own run and ours end with the same score, by s3prl's metric and by ours."""
    data = tiny_corpus.make(tmp_path / "data")
    monkeypatch.setattr(upstreams, "get", lambda name: _tones())
    code = main(["parity", "--data", str(data), "--tasks", "ks", "--steps", "60", "--lr", "1e-2", "--out", str(tmp_path / "p.md")])
    (run,) = json.loads((tmp_path / "p.json").read_text())["runs"]
    assert run["theirs"]["value"] == pytest.approx(100 * run["theirs_own_result"]["accuracy"])
    assert run["theirs"]["value"] == run["ours"]["value"] == 100.0 and run["same_answers"] == 1.0
    assert code == 0 and run["items"] == 12
    assert main(["parity", "--data", str(tmp_path), "--out", str(tmp_path / "p.md")]) == 2  # of other data
    assert "another --out" in capsys.readouterr().err
    assert "| ks (ks_acc, %) | 0 | 60 |" in (tmp_path / "p.md").read_text()


def _tones():
    from eval.upstreams import Upstream

    return Upstream("tones", tiny_corpus.upstream(), "tones")


def test_a_difference_beyond_noise_is_said(tmp_path, monkeypatch, upstream):
    data = tiny_corpus.make(tmp_path / "data")
    monkeypatch.setattr(parity, "_theirs", lambda ours, table, seed, same_batches: (["yes"] * 12, {}, 0.0))
    options = parity.Options(tmp_path / "p.md", str(data), "ks", "tiny_random", 40, 1e-2)
    record = parity.compare(tasks.get("ks"), _tones(), data, options, 0)
    assert record["theirs"]["value"] == pytest.approx(100 / 3) and not record["within_noise"]


def test_random_shapes_are_the_same_every_time():
    first, second = upstreams.get("tiny_random"), upstreams.get("tiny_random")
    assert first.digest == second.digest and first.padded
    with pytest.raises(StarError, match="unknown shape"):
        upstreams.get("tiny_rnadom_random")
    assert torch.equal(first.encode([torch.ones(4000).numpy()])[0], second.encode([torch.ones(4000).numpy()])[0])
