"""Fine-tuning end to end on tones: it learns, leaves a frozen encoder alone, resumes exactly, and its file answers
anywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_finetune import QUICK, make
from tiny_runs import killed

import star_upstream
from star_upstream import audio, cli, jobs
from star_upstream.data import tasks
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, sources
from star_upstream.training import finetune, finetune_table, grid, recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe
from star_upstream.training.run_folder import read_log

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    root = make(folder / "data")
    values = {**QUICK, "encoder": str(root / "encoder"), "data": {**QUICK["data"], "root": str(root)}}
    (folder / "quick.yaml").write_text(yaml.safe_dump(values))
    return folder


def load(source, overrides=()):
    return recipe.load(source, overrides, FinetuneRecipe)


def run(world, name, *overrides):
    return finetune.run(load(world / "quick.yaml", overrides), world / name), world / name


@pytest.fixture(scope="module")
def joint(world):
    return run(
        world,
        "joint",
        "training.updates=60",
        "training.validate_every=20",
        "tasks.speaker.margin=1",
        "tasks.speaker.embedding=16",
    )


def encoder_of(folder, name="last"):
    return {k: v for k, v in load_file(folder / f"{name}.safetensors").items() if k.startswith("encoder.")}


def start_of(world, name="encoder"):
    return {f"encoder.{k}": v for k, v in load_file(world / "data" / name / "model.safetensors").items()}


def test_both_tasks_are_learnt_and_the_result_says_all(world, joint):
    result, folder = joint
    assert result == json.loads((folder / "result.json").read_text()) == json.loads((folder / "done.json").read_text())
    keyword, speaker = result["tasks"]["keyword"], result["tasks"]["speaker"]
    assert keyword["value"] >= 80.0 and keyword["items"] == 12 and keyword["classes"] == 3
    assert speaker["value"] <= 25.0 and speaker["items"] == 66 and speaker["training_speakers"] == 4
    assert result["setting"] == "multi-task, fine-tuned" and result["seed"] == 0 and len(result["encoder_sha256"]) == 64
    log = read_log(folder)
    # an optimizer step a task and iteration, both in every row of the log
    assert (
        log["update"].max() == 120
        and log["train/keyword/loss"].notna().sum() == log["train/speaker/loss"].notna().sum() == 60
    )
    assert log["train/keyword/accuracy"].max() <= 100.0 and log["valid/error"].notna().sum() == 3
    assert (folder / "loss.png").is_file() and load(folder / "recipe.yaml").tasks["speaker"].embedding == 16
    assert all(not torch.equal(v, start_of(world)[k]) for k, v in encoder_of(folder).items() if v.dim() > 1)


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_error(joint):
    _, folder = joint
    log = read_log(folder).dropna(subset=["valid/error"])
    best = checkpoint.describe(folder / "best.safetensors")["provenance"]
    assert best["validation"]["error"] == pytest.approx(log["valid/error"].min(), abs=1e-3)
    assert best["iterations"] == log["update"].iloc[int(log["valid/error"].to_numpy().argmin())] / 2


def test_a_finished_run_is_left_alone(world, joint, capsys):
    result, folder = joint
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}
    again, _ = run(
        world,
        "joint",
        "training.updates=60",
        "training.validate_every=20",
        "tasks.speaker.margin=1",
        "tasks.speaker.embedding=16",
    )
    assert again == result and {f: f.stat().st_mtime_ns for f in before} == before
    with pytest.raises(StarError, match="another recipe \\(training.updates is 60 there and 12 here\\)"):
        run(world, "joint", "training.validate_every=20", "tasks.speaker.margin=1", "tasks.speaker.embedding=16")


@pytest.mark.parametrize("keep", ["true", "false"])
def test_a_frozen_encoder_is_untouched(world, keep):
    result, folder = run(world, f"frozen-{keep}", "frozen=true", f"data.keep_states={keep}")
    for name in ("last", "best"):
        weights = encoder_of(folder, name)
        assert weights.keys() == start_of(world).keys() and all(
            torch.equal(v, start_of(world)[k]) for k, v in weights.items()
        )
    assert result["setting"] == "multi-task, frozen" and not (folder / ".cache").exists()
    heads = {k for k in load_file(folder / "last.safetensors") if k.startswith("heads.")}
    assert heads == {
        "heads.keyword.loss.linear.weight",
        "heads.keyword.loss.linear.bias",
        "heads.speaker.project.weight",
        "heads.speaker.project.bias",
    }


def test_a_frozen_encoder_stays_in_eval_mode(world):
    model = finetune._model(
        load(world / "quick.yaml", ["frozen=true"]), sources.load(world / "data" / "encoder"), _tasks(world)
    )
    model.train()
    assert model.heads.training and not model.encoder.training and not any(m.training for m in model.encoder.modules())
    waves = torch.randn(2, 4000)
    assert (
        torch.equal(model("keyword", waves), model("keyword", waves))
        and not model.states("keyword", waves, None)[0][0].requires_grad
    )


def _tasks(world):
    return tasks.load(load(world / "quick.yaml").tasks, str(world / "data"))


def test_frozen_heads_learn_the_same_alone_and_together(world):
    # nothing is shared that learns, so a task's head must not notice the other task
    _, both = run(world, "both", "frozen=true", "select=last")
    _, alone = run(world, "alone", "frozen=true", "select=last", "tasks=keyword")
    together, single = load_file(both / "last.safetensors"), load_file(alone / "last.safetensors")
    for name in ("heads.keyword.loss.linear.weight", "heads.keyword.loss.linear.bias"):
        assert torch.equal(together[name], single[name])


def test_prediction_heads_are_read_and_tuned(world):
    inputs = [f"tasks.{task}.input={kind}" for task, kind in (("keyword", "predictions"), ("speaker", "all"))]
    _, folder = run(
        world,
        "student",
        f"encoder={world / 'data' / 'student'}",
        *inputs,
        "alternate=sum",
        "tasks.keyword.pooling=attentive",
    )
    tuned, start = encoder_of(folder), start_of(world, "student")
    assert all(not torch.equal(tuned[k], v) for k, v in start.items() if "predictions" in k)
    assert load_file(folder / "last.safetensors")["heads.speaker.mix"].shape == (4,)
    assert read_log(folder)["update"].max() == 12  # one step for both
    assert star_upstream.load(folder / "best.safetensors").speaker_embedding(torch.randn(8000)).shape == (8,)


# interruption


def log_without_clock(folder):
    return read_log(folder).drop(columns=["seconds", "audio_seconds_per_second"])


def test_killed_and_resumed_equals_unbroken(world):
    options = ["training.updates=40", "training.save_every=3", "training.validate_every=10"]
    _, whole = run(world, "whole", *options)
    broken = world / "killed"
    killed(["finetune", world / "quick.yaml", *options], broken, rows=17)
    assert (broken / "state.pt").is_file()
    finetune.run(load(world / "quick.yaml", options), broken)
    assert log_without_clock(broken).equals(log_without_clock(whole))
    for name in ("last", "best"):
        assert all(
            torch.equal(v, load_file(whole / f"{name}.safetensors")[k])
            for k, v in load_file(broken / f"{name}.safetensors").items()
        )
    assert len(json.loads((broken / "environment.json").read_text())["starts"]) == 2


def test_changed_data_is_noticed(world, tmp_path):
    root = shutil.copytree(world / "data", tmp_path / "data")
    options = [f"data.root={root}", f"encoder={root / 'encoder'}"]
    finetune.run(load(world / "quick.yaml", options), tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    table_ = (root / "manifests" / "ks.tsv").read_text().splitlines()
    (root / "manifests" / "ks.tsv").write_text("\n".join(table_[:1] + table_[2:]) + "\n")
    with pytest.raises(StarError, match="was started with another data than there is now"):
        finetune.run(load(world / "quick.yaml", options), tmp_path / "run")


# the file


def test_the_file_answers_in_another_folder(world, joint, tmp_path):
    shutil.copy(joint[1] / "best.safetensors", tmp_path / "model.safetensors")
    wav = world / "data" / "wav" / "test-no-0.wav"
    code = (
        "import json, sys, soundfile, torch, star_upstream\n"
        "model = star_upstream.load('model.safetensors')\n"
        "wav = torch.from_numpy(soundfile.read(sys.argv[1], dtype='float32')[0])\n"
        "print(json.dumps([model.keyword(wav), model.speaker_embedding(wav).tolist(), sorted(m for m in sys.modules "
        "if 'lightning' in m)[:1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wav)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    label, vector, lightning = json.loads(done.stdout)
    model, wave = star_upstream.load(joint[1] / "best.safetensors"), torch.from_numpy(audio.read(wav))
    assert label == model.keyword(wave) == "no" and not lightning
    assert torch.allclose(torch.tensor(vector), model.speaker_embedding(wave)) and torch.tensor(
        vector
    ).norm().item() == pytest.approx(1.0)
    shares = model.classify("keyword", wave)
    assert list(shares) == sorted(shares, key=shares.get, reverse=True) and sum(shares.values()) == pytest.approx(1.0)


def test_the_file_is_an_encoder_like_any_other(joint):
    path = joint[1] / "best.safetensors"
    encoder, expert = sources.load(path), star_upstream.load(path)
    wave = torch.randn(6000)
    with torch.no_grad():
        states = expert([wave])["hidden_states"]
        assert len(states) == 3 and torch.allclose(states[-1], encoder(wave[None]).states[-1], atol=1e-5)
    assert checkpoint.is_checkpoint(path) and checkpoint.describe(path)["provenance"]["made_by"] == "star finetune"
    # it names no training speaker
    assert "anna" not in path.read_bytes()[:100_000].decode("latin1")
    assert sum(p.numel() for p in expert.parameters()) == sum(p.numel() for p in encoder.parameters())


def test_questions_that_a_model_cannot_answer(world, joint):
    model, wave = star_upstream.load(joint[1] / "best.safetensors"), torch.randn(6000)
    with pytest.raises(StarError, match="has the heads keyword, speaker, not 'emotion'"):
        model.classify("emotion", wave)
    with pytest.raises(StarError, match="speaker: that head answers with a vector"):
        model.classify("speaker", wave)
    with pytest.raises(StarError, match="expected a 1-D"):
        model.keyword(torch.randn(1, 6000))
    with pytest.raises(StarError, match="has no heads, not 'keyword'; star finetune makes"):
        star_upstream.load(world / "data" / "encoder").keyword(wave)


def test_a_damaged_file_is_named(joint, tmp_path):
    whole = (joint[1] / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StarError, match="cut.safetensors"):
        star_upstream.load(tmp_path / "cut.safetensors")


# many runs


def in_place(work, names, at_once, log):
    for name in names:
        yield jobs.Ended(name, work(name), "", log(name))


def test_the_grid_makes_the_table_and_goes_on(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "side_by_side", in_place)
    models = {"small": str(world / "data" / "student")}
    options = ["training.updates=4", "training.validate_every=4"]
    text = grid.run(str(world / "quick.yaml"), options, models, [0], tmp_path / "grid")
    lines = [line for line in text.splitlines() if line.startswith("| small")]
    settings = ["single task", "single task, frozen", "multi-task, fine-tuned", "multi-task, frozen"]
    assert [line.split(" | ")[2] for line in lines] == settings and all(line.count("[") == 2 for line in lines)
    assert "DistilledHuBERT | 27 M | multi-task, frozen | 91.27 | 12.67" in text and finetune_table.NOTE in text
    csv = (tmp_path / "grid" / "table.csv").read_text().splitlines()
    assert len(csv) == 1 + 8 + 18 and (tmp_path / "grid" / "table.md").read_text() == text
    assert not (tmp_path / "grid" / "cache").exists()

    shutil.rmtree(tmp_path / "grid" / "small-frozen-multi-s0")
    capsys.readouterr()
    assert grid.run(str(world / "quick.yaml"), options, models, [0], tmp_path / "grid") == text
    assert "6 runs, 5 finished before" in capsys.readouterr().err

    cli.main(
        ["finetune", "--table", str(tmp_path / "grid" / "small-frozen-multi-s0"), "--out", str(tmp_path / "table")]
    )
    assert "| small |" in capsys.readouterr().out and (tmp_path / "table" / "table.csv").is_file()
    with pytest.raises(SystemExit):
        cli.main(["finetune", "--table", str(world)])
    assert "a finished run of star finetune has one" in capsys.readouterr().err


def test_seeds_are_averaged(world, tmp_path):
    folders = [
        run(world, f"seed{seed}", f"training.seed={seed}", "training.updates=4", "training.validate_every=4")[1]
        for seed in (0, 1)
    ]
    (row,) = finetune_table.collect(folders)
    values = [json.loads((f / "result.json").read_text())["tasks"]["speaker"]["value"] for f in folders]
    assert row["tasks"]["speaker"]["value"] == pytest.approx(sum(values) / 2) and row["tasks"]["speaker"]["seeds"] == [
        0,
        1,
    ]
    with pytest.raises(StarError, match="another run of seed 0"):
        finetune_table.collect([folders[0], shutil.copytree(folders[0], tmp_path / "copy")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune"], "name a recipe (multitask_hubert, multitask_mini, multitask_wav2vec)"),
        (["finetune", "multitask_mini"], "--out: name the run's folder"),
        (["finetune", "multitask_mni", "--dry-run"], "did you mean 'multitask_mini'"),
        (["finetune", "multitask_mini", "--out", "{tmp}/run"], "data.root: name the folder that holds the corpora"),
        (["finetune", "multitask_mini", "data=/no/such", "--out", "{tmp}/run"], "/no/such: no such folder"),
        (["finetune", "multitask_mini", "--table", "x"], "--table takes finished runs alone"),
        (["finetune", "multitask_mini", "frozen=true", "--grid", "a=b", "--out", "{tmp}/grid"], "--grid sets encoder"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([word.format(tmp=tmp_path) for word in words])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in error and "\n" not in error
