"""Distillation end to end on a tiny teacher: it learns, it resumes exactly, and it stops where it must."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import PATIENCE, ROOT, Clock, killed, log, start, voice, write_audio

from star_upstream import cores
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.training import distill, loop, optimizer, recipe, run_folder, student
from star_upstream.training.config import DataConfig, Initialisation, TrainingConfig
from star_upstream.training.start import find_clips

CONVS = [[8, 10, 5], [16, 3, 4], [16, 3, 4], [24, 2, 4]]
SMALL = {"conv_layers": CONVS, "position_kernel": 16, "position_groups": 4, "layers": 2, "heads": 2}
TEACHER = {**SMALL, "width": 32, "head_width": 16, "ffn": 48}
STUDENT = {**SMALL, "width": 24, "projection": False, "head_width": 12, "ffn": 32, "hidden_states": "layers"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a teacher and audio, and the environment that keeps caches there."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["STAR_CACHE"] = str(folder / "cache")
    write_audio(folder / "audio")
    torch.manual_seed(0)
    checkpoint.save(folder / "teacher", Encoder(EncoderConfig(**TEACHER)), {})
    yield folder
    del os.environ["STAR_CACHE"]


def make(world: Path, name: str = "recipe.yaml", **overrides) -> Path:
    """A recipe file; ``overrides`` go into its sections by key."""
    values = {
        "teacher": str(world / "teacher"),
        "student": dict(STUDENT),
        "loss": {"star": {}},
        "data": {
            "train": [str(world / "audio")],
            "valid_share": 0.2,
            "min_seconds": 0.4,
            "max_seconds": 2.0,
            "batch_seconds": 4.0,
        },
        "training": {"updates": 24, "log_every": 1, "validate_every": 8, "save_every": 3, "accelerator": "cpu"},
    }
    fields = {"data": DataConfig.__dataclass_fields__, "training": TrainingConfig.__dataclass_fields__}
    for key, value in overrides.items():
        section = next((name for name in fields if key in fields[name]), None)
        (values[section] if section else values)[key] = value
    (world / name).write_text(yaml.safe_dump(values))
    return world / name


# the whole


@pytest.fixture(scope="module")
def unbroken(world):
    """A run with dropout and accumulation, from start to end."""
    student = {**STUDENT, "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "feature_dropout": 0.05}
    options = {
        "accumulate": 2,
        "updates": 100,
        "learning_rate": 5e-3,
        "validate_every": 20,
        "save_every": 7,
        "workers": 1,
    }
    file = make(world, "unbroken.yaml", student=student, **options)
    distill.run(recipe.load(file), world / "unbroken")
    return file, world / "unbroken"


def test_a_run_learns_and_leaves_its_marks(world, unbroken):
    file, run = unbroken
    valid = [float(row["valid/loss"]) for row in log(run) if row["valid/loss"]]
    train = [float(row["train/loss"]) for row in log(run) if row["train/loss"]]
    assert len(valid) == 5 and len(train) == 100
    assert np.mean(train[-20:]) < 0.5 * np.mean(train[:3]) and min(valid) < 0.7 * np.mean(train[:3])

    best = checkpoint.describe(run / "best")["provenance"]
    assert (
        best["validation_loss"]
        == pytest.approx(min(valid))
        == json.loads((run / "done.json").read_text())["validation_loss"]
    )
    assert best["teacher"]["sha256"] == checkpoint.digest(checkpoint.load(world / "teacher"))
    assert best["clips"] == {"train": 24, "valid": 6} and best["recipe"]["data"]["train"] == ["audio"]
    assert checkpoint.describe(run / "last")["provenance"]["updates"] == 100
    assert recipe.load(run / "recipe.yaml") == recipe.load(file)
    started = json.loads((run / "environment.json").read_text())["starts"]
    assert len(started) == 1 and started[0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG" and list((run / "tensorboard").glob("events*"))
    parts = run_folder.RunFolder(run).read_clips()
    assert not set(parts["train"]) & set(parts["valid"]) and len(parts["train"]) == 24


def test_a_finished_run_is_left_alone(unbroken, capsys):
    file, run = unbroken
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file() and f.name != ".lock"}
    assert distill.run(recipe.load(file), run) == run / "best"
    assert {f: f.stat().st_mtime_ns for f in before} == before and "finished before" in capsys.readouterr().err


def test_killed_and_resumed_equals_unbroken(world, unbroken):
    file, run = unbroken
    broken = world / "killed"
    killed(["distill", file], broken, rows=46)
    state = run_folder.RunFolder(broken).load_state()
    assert 40 <= state["update"] < 100 and not state["finished"] and state["position"][0] > 0
    distill.run(recipe.load(file), broken)
    assert log(broken) == log(run)
    for name in ("last", "best"):
        assert (broken / name / "model.safetensors").read_bytes() == (run / name / "model.safetensors").read_bytes()


def test_two_processes_killed_and_resumed_equal_unbroken(world):
    file = make(world, "two.yaml", student={**STUDENT, "dropout": 0.1}, devices=2, log_every=3, save_every=4, workers=0)
    runs = {name: world / f"two-{name}" for name in ("unbroken", "killed")}
    killed(["distill", file], runs["killed"], rows=6)
    for run in runs.values():
        process = start(["distill", file], run)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err.decode()
        assert json.loads(out)["checkpoint"] == str(run / "best")
    assert len(json.loads((runs["killed"] / "environment.json").read_text())["starts"]) == 2
    assert log(runs["killed"]) == log(runs["unbroken"]) and len(log(runs["killed"])) == 8 + 3
    weights = [load_file(run / "last" / "model.safetensors") for run in runs.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    process = start(["distill", file, "training.shard_teacher=true"], world / "two-sharded")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    for whole, sharded in zip(log(runs["unbroken"]), log(world / "two-sharded"), strict=True):
        for name in ("train/loss", "valid/loss"):
            assert float(whole[name] or 0) == pytest.approx(float(sharded[name] or 0), rel=1e-6)


def test_the_last_checkpoint_can_be_the_result_and_an_older_state_is_refused(world, tmp_path, capsys):
    file = make(
        world,
        "last.yaml",
        updates=4,
        validate_every=1,
        learning_rate=0.3,
        select="last",
        choices={"why": "a test"},
        workers=0,
    )
    run = tmp_path / "run"
    assert distill.run(recipe.load(file), run) == run / "last"
    done = json.loads((run / "done.json").read_text())
    assert (done["checkpoint"], done["updates"]) == ("last", 4)
    assert checkpoint.describe(run / "last")["provenance"]["recipe"]["choices"] == {"why": "a test"}
    # what is only told may change
    assert distill.run(recipe.load(file, ["choices.why=another", "about=x"]), run) == run / "last"
    with pytest.raises(StarError, match="select is 'last' there and 'valid' here"):
        distill.run(recipe.load(file, ["select=valid"]), run)

    (run / "done.json").unlink()
    state = torch.load(run / "state.pt", weights_only=True)
    assert state.pop("version") == run_folder.STATE_VERSION
    torch.save(state, run / "state.pt")
    with pytest.raises(
        StarError,
        match="state.pt: is the state of an older version of the training loop, .*"
        "finish the run with the star_upstream that began it",
    ):
        distill.run(recipe.load(file), run)
    torch.save({**state, "version": run_folder.STATE_VERSION + 1}, run / "state.pt")
    with pytest.raises(StarError, match=f"is the state of version {run_folder.STATE_VERSION + 1} of"):
        distill.run(recipe.load(file), run)


def test_a_teacher_is_shared_by_several_processes_alone(world, tmp_path):
    with pytest.raises(StarError, match="shard_teacher: one process has nobody to share with; raise devices or nodes"):
        TrainingConfig(updates=1, shard_teacher=True)
    with pytest.raises(StarError, match="set precision to bf16-mixed or 32"):
        TrainingConfig(updates=1, devices=2, shard_teacher=True, precision="auto")


BUDGET = {"updates": None, "minutes": 0.02, "validate_every": 10_000, "crop": "shortest", "workers": 0}


def test_a_budget_in_minutes_ends_with_a_validation(world, monkeypatch, capsys):
    monkeypatch.setattr(loop, "clock", Clock(0.005))
    distill.run(recipe.load(make(world, "budget.yaml", **BUDGET)), world / "budget")
    rows = log(world / "budget")
    assert rows[-1]["valid/loss"] and float(rows[-2]["learning_rate"]) < 2e-5 and len(rows) > 60
    assert "too_few_updates" not in checkpoint.describe(world / "budget" / "best")["provenance"]
    assert (
        "too_few_updates" not in json.loads((world / "budget" / "done.json").read_text())
        and "least" not in capsys.readouterr().err
    )


@pytest.mark.parametrize("validate_every, name", [(10_000, "at the end"), (1, "before the end")])
def test_a_budget_that_bought_too_little_says_so(world, monkeypatch, capsys, validate_every, name):
    monkeypatch.setattr(loop, "clock", Clock(0.1))
    run, worse = world / f"short, best {name}", list(range(100))
    file = make(world, "short.yaml", **{**BUDGET, "validate_every": validate_every})
    with monkeypatch.context() as patch:
        if validate_every == 1:  # only the first validation is the best
            patch.setattr(distill.Distillation, "judge", lambda self, row: (row, worse.pop(0)))
        distill.run(recipe.load(file), run)
    updates = int(log(run)[-1]["update"])
    said = f"{updates} updates in 0.02 minutes, and a run needs 60 at least to learn from"
    assert 1 < updates < 10 and f"{run}: {said}; give it more minutes" in capsys.readouterr().err
    for place in ("last", "best"):
        assert checkpoint.describe(run / place)["provenance"]["too_few_updates"] == said
    assert json.loads((run / "done.json").read_text())["too_few_updates"] == said
    assert checkpoint.describe(run / "best")["provenance"]["updates"] == (1 if validate_every == 1 else updates)


@pytest.mark.parametrize(("warmup", "needed"), [(0.05, 60), (0.3, 50), (0.0, 50), (0.01, 300)])
def test_updates_that_a_run_needs(warmup, needed):
    assert optimizer.enough(TrainingConfig(minutes=1.0, warmup=warmup)) == needed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_before_the_first_row_of_the_log(world, tmp_path, monkeypatch, capsys):
    options = {"updates": 3, "log_every": 1000, "validate_every": 1000, "workers": 0}
    distill.run(recipe.load(make(world, "quiet.yaml", **options)), tmp_path / "file")
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r" *\d+%  update 1  [\d.e+]+ s of audio a second", line) for line in lines), lines
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Terminal())
    distill.run(recipe.load(make(world, "quiet.yaml", **options)), tmp_path / "terminal")
    shown = sys.stderr.getvalue()
    assert "waiting for the first update" in shown and re.search(r"update 3 .* s of audio a second", shown)


def test_threads_and_workers_are_no_more_than_cores(world, tmp_path, monkeypatch):
    seen, before, loader = set(), torch.get_num_threads(), distill.Distillation.loader
    monkeypatch.setattr(
        distill.Distillation,
        "loader",
        lambda self, part, batches, workers: (
            seen.add((torch.get_num_threads(), workers)) or loader(self, part, batches, workers)
        ),
    )
    distill.run(recipe.load(make(world, "many.yaml", updates=2, workers=50)), tmp_path / "run")
    ((threads, workers),) = seen
    assert threads + workers <= max(1, cores.available()) and torch.get_num_threads() == before


# what stops a run


def test_another_recipe_in_the_folder_is_refused(unbroken, tmp_path):
    file, run = unbroken
    with pytest.raises(StarError, match="training.seed is 0 there and 1 here"):
        distill.run(recipe.load(file, ["training.seed=1"]), run)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StarError, match="is not empty and was not made by star distill"):
        distill.run(recipe.load(file), tmp_path)


def test_a_failed_start_does_not_occupy_the_folder(world, tmp_path):
    file = make(world)
    with pytest.raises(StarError, match="no such folder or manifest"):
        distill.run(recipe.load(file, ["data.train=/no/such"]), tmp_path / "run")
    with pytest.raises(StarError, match="star.layer_map"):
        distill.run(recipe.load(file, ["student.layers=1", "student.heads=2", "student.ffn=32"]), tmp_path / "run")
    distill.run(recipe.load(file, ["training.updates=1"]), tmp_path / "run")


def test_not_a_number_stops_the_run_and_names_the_files(world, tmp_path):
    teacher = checkpoint.load(world / "teacher")
    teacher.layers[1].ffn_norm.bias.data[3] = 3e38  # a number, whose square is none
    checkpoint.save(tmp_path / "teacher", teacher, {})
    with pytest.raises(StarError, match=r"the loss is (nan|inf) at update 0; files of the batch: .*/audio/\d\d.wav, "):
        distill.run(recipe.load(make(world, teacher=str(tmp_path / "teacher"))), tmp_path / "run")


def test_files_that_decode_to_nothing_are_listed_and_limited(world, tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(8):
        soundfile.write(tmp_path / "audio" / f"{i}.wav", voice(1.0, np.random.default_rng(i)) * (i != 3), 16_000)
    options = {"train": [str(tmp_path / "audio")], "valid": [str(world / "audio")], "workers": 1, "updates": 10}
    distill.run(recipe.load(make(world, max_bad_share=0.2, **options)), tmp_path / "run")
    skipped = (tmp_path / "run" / "skipped.tsv").read_text().splitlines()
    assert skipped == ["path\treason", f"{tmp_path / 'audio' / '3.wav'}\tsilent from end to end, or not finite"]
    with pytest.raises(StarError, match=r"1 of 38 files cannot be used, above the limit of 1.0% .*3.wav: silent"):
        distill.run(recipe.load(make(world, max_bad_share=0.01, **options)), tmp_path / "strict")


def test_a_folder_in_use_is_refused(world, tmp_path):
    code = (
        "import sys; from star_upstream.training.run_folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1]); folder.claim(None); print('claimed', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"claimed\n"
        with pytest.raises(StarError, match="another process is training there"):
            distill.run(recipe.load(make(world)), tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert run_folder.RunFolder(tmp_path).claim(None) == "new"


# the parts


def test_too_few_clips_to_hold_one_out_says_what_else_was_there(tmp_path):
    for name, seconds in (("a", 1.2), ("b", 0.3), ("c", 0.2)):
        soundfile.write(
            tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)), 16_000
        )
    (tmp_path / "d.flac").write_bytes(b"no audio")
    data = DataConfig(train=(str(tmp_path),), min_seconds=1.0, max_bad_share=0.5)
    with pytest.raises(
        StarError, match=r"1 usable clips \(3 left out, 2 of them shorter than data.min_seconds\), too few"
    ):
        find_clips(data)


def test_teacher_is_neither_trained_nor_saved(world, tmp_path):
    teacher = checkpoint.load(world / "teacher")
    before = checkpoint.digest(teacher)
    loaded = recipe.load(make(world, updates=2))
    clips, *_ = find_clips(loaded.data)
    folder, provenance = run_folder.RunFolder(tmp_path), {"teacher": {"sha256": before}}
    training = distill.Distillation(
        loaded, student.make_student(loaded, teacher), distill.Teacher(teacher), folder, clips, provenance
    )
    names = {name for name, _ in training.model.named_parameters()}
    assert (
        names
        == {f"student.{name}" for name, _ in training.student.named_parameters()}
        == set(training.model.state_dict())
    )
    assert loop.fit(training, folder).updates == 2
    assert not teacher.training and checkpoint.digest(teacher) == before


def test_the_logged_learning_rate_follows_the_schedule(unbroken):
    file, run = unbroken
    config = recipe.load(file).training
    rates = [float(row["learning_rate"]) for row in log(run) if row["learning_rate"]]
    assert rates == [optimizer.rate((i + 0.5) / 100, config) for i in range(100)]


def test_student_starts_from_named_teacher_parts():
    config = EncoderConfig(**{**TEACHER, "layers": 3})
    teacher, small = Encoder(config), Encoder(EncoderConfig(**{**TEACHER, "layers": 2}))
    random_bias = small.layers[0].ffn_in.weight.clone()
    student.initialise(small, teacher, Initialisation(frontend=True))
    assert torch.equal(small.frontend.convs[1].weight, teacher.frontend.convs[1].weight)
    assert torch.equal(small.position.direction, teacher.position.direction)
    assert torch.equal(small.layers[0].ffn_in.weight, random_bias)
    teacher.norm.weight.data += 1
    bare = Encoder(EncoderConfig(**{**TEACHER, "projection_norm": False}))
    student.initialise(bare, teacher, Initialisation(frontend=True, norm=False))
    assert torch.equal(
        bare.frontend.projection.weight, teacher.frontend.projection.weight
    ) and bare.norm.weight.unique().tolist() == [1.0]
    student.initialise(bare, teacher, Initialisation(frontend=True))
    assert torch.equal(bare.norm.weight, teacher.norm.weight)
    student.initialise(small, teacher, Initialisation(layers=(1, 3)))
    assert torch.equal(small.layers[0].ffn_in.weight, teacher.layers[0].ffn_in.weight)
    assert torch.equal(small.layers[1].ffn_in.weight, teacher.layers[2].ffn_in.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Initialisation(layers=(1,)), "expected 2 numbers from 1 to 2"),
        (Initialisation(layers=(0, 1)), "expected 2 numbers from 1 to 2"),
        (Initialisation(layers=(1, 2)), "layers.0.attention.query.weight has not the teacher's shape"),
        (Initialisation(frontend=True), "frontend.projection.* has not the teacher's shape"),
    ],
)
def test_parts_that_do_not_fit_are_named(config, message):
    with pytest.raises(StarError, match=message):
        student.initialise(Encoder(EncoderConfig(**STUDENT)), Encoder(EncoderConfig(**TEACHER)), config)
