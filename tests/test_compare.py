"""star compare: recipes at one size on the same audio, killed and resumed, scored and tested against each other."""

import csv
import io
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import submitit
import tiny_corpus
import torch
import yaml
from test_cluster import kill_who_holds
from tiny_runs import PATIENCE, killed, log, write_audio

from star_upstream import cli, compare, compare_jobs
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.training import grid, recipe, run_folder, scale

CONVS = [[8, 10, 5], [16, 3, 4], [16, 3, 4], [24, 2, 4]]
SMALL = {"conv_layers": CONVS, "position_kernel": 16, "position_groups": 4, "layers": 2, "heads": 2}
TEACHER = {**SMALL, "width": 32, "head_width": 16, "ffn": 48}
STUDENT = {**SMALL, "width": 24, "projection": False, "head_width": 12, "ffn": 32, "hidden_states": "layers"}
LIMITS = {"valid_share": 0.2, "min_seconds": 0.4, "max_seconds": 2.0, "batch_seconds": 4.0, "workers": 0}
SIZE = 11_000


def write(folder, name, **sections):
    values = {
        "teacher": str(folder / "teacher"),
        "student": STUDENT,
        "loss": {"star": {}},
        "data": LIMITS,
        "training": {"updates": 50, "accelerator": "cpu", "learning_rate": 2e-3},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**values, **sections}))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A teacher, audio, a corpus to score on, and two recipes of different data sections, of which one prunes."""
    folder = tmp_path_factory.mktemp("world")
    write_audio(folder / "audio")
    tiny_corpus.make(folder / "tones")
    torch.manual_seed(0)
    checkpoint.save(folder / "teacher", Encoder(EncoderConfig(**TEACHER)), {})
    write(folder, "width")
    write(
        folder, "pruned", student="teacher", loss={"hint": {"teacher_layers": [0, 2], "maps": "shared"}}, select="last",
        data={**LIMITS, "batch_seconds": 2.5, "crop": "shortest-random"},
        training={"updates": 20, "accelerator": "cpu", "learning_rate": 1e-3, "accumulate": 2},
        pruning={"second": {"updates": 10, "learning_rate": 5e-4}},
    )  # fmt: skip
    return folder


def plain(world, *more):
    scoring = ["--tasks", "ks", "--data", world / "tones", "--steps", 4, "--cache", world / "cache"]
    size = ["--teacher", world / "teacher", "--parameters", SIZE, "--updates", 6]
    recipes = [world / "width.yaml", world / "pruned.yaml", f"data.train={world / 'audio'}"]
    return [*map(str, ["compare", *recipes, *size, *scoring, *more])]


def words(world, *more):
    return plain(world, "--search-rates", "1e-9,2e-2", *more)


@pytest.fixture(scope="module")
def compared(world):
    """Killed in the middle of its second run, then the same command again."""
    out = world / "out"
    killed(words(world), out, 1, "runs/pruned-s0/log.csv")
    before = (out / "runs" / "width-s0" / "done.json").stat().st_mtime_ns
    assert not (out / "scores" / "pruned-s0").exists()
    cli.main([*words(world), "--out", str(out)])
    assert (out / "runs" / "width-s0" / "done.json").stat().st_mtime_ns == before
    return out


def test_sizes_updates_and_audio_are_equal(compared):
    found = json.loads((compared / "table.json").read_text())
    sizes = {row["recipe"]: row["parameters"] for row in found["rows"]}
    for name, result in (("width", "best"), ("pruned", "last")):
        built = sum(p.numel() for p in checkpoint.load(compared / "runs" / f"{name}-s0" / result).parameters())
        assert sizes[name] == built == pytest.approx(SIZE, rel=scale.TOLERANCE)
    plain = [row for row in log(compared / "runs" / "width-s0") if row["audio_crc32"]]
    stages = [
        row for part in ("stage1", ".") for row in log(compared / "runs" / "pruned-s0" / part) if row["audio_crc32"]
    ]
    assert [row["audio_crc32"] for row in plain] == [row["audio_crc32"] for row in stages] and len(plain) == 6
    assert found["same_audio"] and found["audio"]["0"]["width"][0] == 6
    recipes = [recipe.load(compared / "recipes" / f"{name}.yaml") for name in ("width", "pruned")]
    assert recipes[0].data == recipes[1].data and recipes[1].pruning.second.updates == 2


def test_table_and_page_hold_scores_costs_and_tests(compared):
    rows = list(csv.DictReader(io.StringIO((compared / "table.csv").read_text())))
    assert [(row["recipe"], row["metric"]) for row in rows] == [("width", "ks_acc"), ("pruned", "ks_acc")]
    record = json.loads((compared / "scores" / "pruned-s0" / "ks.json").read_text())
    assert float(rows[1]["value"]) == record["value"] and rows[0]["p"] == "" and 0 <= float(rows[1]["p_holm"]) <= 1
    assert float(rows[1]["difference"]) == pytest.approx(float(rows[1]["value"]) - float(rows[0]["value"]))
    assert all(
        float(row[key]) > 0 for row in rows for key in ("macs_g", "training_seconds", "audio_hours", "forward_ms")
    )
    page = (compared / "page.html").read_text()
    assert "Differences from width" in page and "student.ffn 32 → " in page and "data:image/svg+xml" in page
    assert "pruning.second_data again → onward" in page and "training.accumulate 2 → 1" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_again_does_nothing_and_other_settings_are_refused(world, compared, capsys):
    def files():
        return {
            p: p.stat().st_mtime_ns
            for part in ("runs", "scores", "recipes")
            for p in (compared / part).rglob("*")
            if p.name in ("done.json", "state.pt", "ks.json", "log.csv")
        }

    before = files()
    for more, message in (
        (["--updates", "8"], "updates is 6 there and 8 here"),
        (["training.learning_rate=1e-2"], "recipes.width.training.learning_rate is 0.002 there and 0.01 here"),
        (["--steps", "5"], "eval.steps is 4 there and 5 here"),
        (["--seeds", "0"], "--seeds: must be 1 or more"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*words(world), *more, "--out", str(compared)])
        assert message in capsys.readouterr().err
    assert files() == before
    there = json.loads((compared / "comparison.json").read_text())
    del there["identity"]["recipes"]["width"]["training"]["shard_teacher"]  # as of a version that had no such setting
    (compared / "comparison.json").write_text(json.dumps(there))
    cli.main([*words(world), "--out", str(compared)])
    assert files() == before
    write(world, "other")
    with pytest.raises(SystemExit):
        cli.main([word.replace("pruned.yaml", "other.yaml") for word in words(world)] + ["--out", str(compared)])
    assert "compares pruned too" in capsys.readouterr().err


def test_a_comparison_goes_on_elsewhere_without_weights(world, compared, tmp_path, capsys):
    """Its small files are enough to set another recipe beside the others, with the data at another place; what has no
    weights is not scored on more."""
    out, there = tmp_path / "out", tmp_path / "there"
    shutil.copytree(compared, out, ignore=shutil.ignore_patterns("*.safetensors", "state.pt", "data.tsv", "last.*"))
    there.mkdir()
    for name in ("audio", "tones", "teacher"):
        shutil.copytree(world / name, there / name)
    for file in ("comparison.json", *(f"recipes/{name}.yaml" for name in ("width", "pruned"))):
        (out / file).write_text((out / file).read_text().replace(str(world), "/not/here"))
    write(there, "third", training={"updates": 50, "accelerator": "cpu", "learning_rate": 1e-3})
    again = [word.replace(str(world), str(there)) for word in words(world)]
    for name in ("width", "pruned"):
        again = [str(world / f"{name}.yaml") if word.endswith(f"{name}.yaml") else word for word in again]
    again.insert(3, str(there / "third.yaml"))
    cli.main([*again, "--out", str(out)])
    said = capsys.readouterr().err
    assert "2 runs without weights stay as they were scored" in said
    before, found = (json.loads((folder / "table.json").read_text()) for folder in (compared, out))
    assert found["same_audio"] and [row["recipe"] for row in found["rows"]] == ["width", "pruned", "third"]
    assert all(row["forward_ms"] > 0 for row in found["rows"])  # a time needs no weights
    for old, new in zip(before["rows"], found["rows"]):
        assert old["scores"]["ks_acc"]["value"] == new["scores"]["ks_acc"]["value"]
    with pytest.raises(SystemExit):
        cli.main([word.replace("ks", "ks,sid") if word == "ks" else word for word in again] + ["--out", str(out)])
    assert "width-s0: its weights are not there to be scored" in capsys.readouterr().err


def test_another_teacher_of_the_same_name_is_refused(world, compared, tmp_path, capsys):
    out = shutil.copytree(compared, tmp_path / "out")
    there = json.loads((out / "comparison.json").read_text())
    there["identity"]["teacher"] = "0" * 64
    (out / "comparison.json").write_text(json.dumps(there))
    with pytest.raises(SystemExit):
        cli.main([*words(world), "--out", str(out)])
    assert "holds another comparison (teacher is '0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--parameters", "40000"], "pruned: 40,000 parameters: not below the teacher's"),
        (["training.seed=3"], "star compare sets this itself"),
        (["data.train=/nowhere/at/all"], "/nowhere/at/all"),
        (["--search-rates", "1e-3"], "two different learning rates"),
        (["--search-updates", "1"], "--search-updates: is of --search-rates, and 2 or more"),
        (["--tasks", "kss"], "unknown task 'kss'"),
        (["--tasks", "er"], "no data for er"),
        (["--data", "/no/such"], "/no/such: no such folder"),
        (["--steps", "0"], "--steps 0"),
        (["--lr-grid", "0"], "above 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(world, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        cli.main([*words(world), *more, "--out", str(tmp_path / "new")])
    assert stop.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "new" / "runs").exists()


def test_the_search_takes_each_recipes_best_rate(compared):
    """Equal in size for all, with a seed that is not compared."""
    tried = {
        file.stem: json.loads(file.read_text())["validation_loss"] for file in (compared / "search").glob("*.json")
    }
    assert set(tried) == {f"{name}-rate{rate}" for name in ("width", "pruned") for rate in ("1e-09", "0.02")}
    assert tried["width-rate0.02"] < tried["width-rate1e-09"]
    run = recipe.load(compared / "runs" / "width-s0" / "recipe.yaml").training
    assert run.learning_rate == 0.02 and run.seed == 0
    assert recipe.load(compared / "search" / "width-rate0.02" / "recipe.yaml").training.seed == 1000
    second = recipe.load(compared / "search" / "pruned-rate0.02" / "recipe.yaml").pruning.second
    assert second.learning_rate == pytest.approx(0.01), "half of the first stage's, as in the recipe"
    assert "Learning rates" in (compared / "table.md").read_text()


def test_a_search_that_was_cut_off_goes_on_with_its_settings_alone(world, tmp_path, monkeypatch, capsys):
    def cut(*_):
        raise StarError("cut off")

    for settings, message in (
        (words(world), "cut off"),
        (words(world, "--search-updates", "3"), "search_updates is None"),
    ):
        monkeypatch.setattr(compare, "each", cut)
        with pytest.raises(SystemExit):
            cli.main([*settings, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_a_signal_ends_the_whole_comparison(world, tmp_path, monkeypatch):
    """A distillation by itself ends with status 0."""

    def stopped(*_):
        raise SystemExit(0)

    monkeypatch.setattr(grid, "run_recipe", stopped)
    with pytest.raises(StarError, match="stopped by a signal; the same command goes on"):
        grid.train("distill", world / "width.yaml", [f"data.train={world / 'audio'}"], tmp_path / "run")


def test_a_rate_that_diverges_is_an_outcome(world, tmp_path):
    file = world / "width.yaml"
    values = [f"data.train={world / 'audio'}", "training.updates=4", "training.validate_every=1"]
    wild = compare.recipes.load(file, [*values, "training.learning_rate=1e30", "training.warmup=0"])
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "wild.yaml").write_text(recipe.dump(wild))
    assert compare_jobs.trial(tmp_path, "wild") == "done"
    assert json.loads((tmp_path / "search" / "wild.json").read_text())["validation_loss"] is None


def held(out, scoring, cells, name):
    """A job that stops for good at the first line of its second recipe's log, while there is a file to say by whom."""
    log, hold = run_folder.RunFolder.log, Path(os.environ["HOLD"])

    def holding(self, row):
        log(self, row)
        if self.path.name == "pruned-s0" and hold.is_file():
            hold.write_text(f"{os.getpid()}\n")
            time.sleep(PATIENCE)

    run_folder.RunFolder.log = holding
    return compare_jobs.cell(out, scoring, cells, name)


def test_a_killed_job_of_an_array_is_named_and_alone_submitted_again(world, tmp_path, monkeypatch, capsys):
    out, hold = tmp_path / "out", tmp_path / "hold"
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)
    monkeypatch.setattr(compare, "cell", held)
    monkeypatch.setenv("HOLD", str(hold))
    hold.touch()
    given = [*plain(world), "--launcher", "submitit", "--cluster", "local", "--out", str(out)]
    killer = threading.Thread(target=kill_who_holds, args=(hold,))
    killer.start()
    with pytest.raises(SystemExit) as stop:
        cli.main(given)
    killer.join()
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "1 of 2 runs failed; the first: pruned-s0: job" in told
    assert "submitted, a job each: width-s0, pruned-s0; what they say is in" in told
    log = Path(re.search(r"ended without a result.*, see (\S+);", told)[1])
    assert log.is_relative_to(out / "jobs") and log.stat().st_size
    assert (out / "scores" / "width-s0" / "ks.json").is_file() and not (out / "scores" / "pruned-s0").exists()
    rows = len((out / "runs" / "pruned-s0" / "stage1" / "log.csv").read_text().splitlines())

    hold.unlink()
    cli.main(given)
    assert "submitted, a job each: pruned-s0;" in capsys.readouterr().err and rows > 1
    found = json.loads((out / "table.json").read_text())
    assert found["same_audio"] and [row["recipe"] for row in found["rows"]] == ["width", "pruned"]
    cli.main(given)
    told = capsys.readouterr().err
    assert "submitted" not in told and told.count("ks: already done") == 2


def test_nodes_and_sbatchs_parameters_are_refused_where_they_mean_nothing(world, tmp_path, capsys):
    for more, message in (
        (["--slurm", "mem=1G"], "are for --launcher submitit"),
        (["--launcher", "submitit", "training.nodes=2", "training.batches_per_update=2"], "is on one machine"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*plain(world), "--out", str(tmp_path / "new"), *more])
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
