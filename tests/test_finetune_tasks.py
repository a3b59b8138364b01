"""Fine-tuning beyond keywords and trials: heads for intents, emotions and known speakers; the file in s3prl; two
processes."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_corpus
import tiny_finetune
import tiny_slu
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import PATIENCE

import star_upstream
from eval.features import upstreams
from star_upstream import audio, cli
from star_upstream.data import tasks
from star_upstream.encoder import Encoder
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, sources
from star_upstream.training import finetune, finetune_table, grid, recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe
from star_upstream.training.run_folder import read_log

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "keyword": {"data": "ks", "batch": 8},
    "intent": {"data": "ic", "batch": 8},
    "emotion": {"data": "er", "batch": 8, "pooling": "attentive", "valid_share": 0.2},
    "identity": {"data": "sid", "loss": "additive_angular", "batch": 8, "embedding": 8, "crop_seconds": 0.4},
}


def load(source, overrides=()):
    return recipe.load(source, overrides, FinetuneRecipe)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for i, tiny in enumerate((tiny_slu, tiny_corpus)):
        shutil.copytree(tiny.make(folder / f"part{i}"), folder / "data", dirs_exist_ok=True)
    encoder = tiny_finetune.make(folder / "speakers") / "encoder"
    where = {"workers": 0, "root": str(folder / "data")}
    values = {**tiny_finetune.QUICK, "encoder": str(encoder), "tasks": TASKS, "data": where}
    (folder / "four.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def four(world):
    """One run with a head for each of four tasks."""
    options = ["training.updates=60", "training.validate_every=30"]
    return finetune.run(load(world / "four.yaml", options), world / "four"), world / "four"


def wave(world, task, **where):
    """The first utterance of the task's table with these values."""
    rows = pd.read_csv(world / "data" / "manifests" / f"{task}.tsv", sep="\t")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return torch.from_numpy(audio.read(world / "data" / rows["path"].iloc[0]))


# other tasks


def test_every_task_is_learnt_and_scored(four):
    result, folder = four
    scores = result["tasks"]
    assert list(scores) == list(TASKS) and all(score["metric"] == "accuracy" for score in scores.values())
    counts = {name: (score["data"], score["items"], score["classes"]) for name, score in scores.items()}
    # of emotions fold 1 is the test; intents are action, object and location at once
    assert counts == {
        "keyword": ("ks", 12, 3),
        "intent": ("ic", 32, 8),
        "emotion": ("er", 12, 3),
        "identity": ("sid", 8, 2),
    }
    least = {"keyword": 80, "intent": 40, "emotion": 80, "identity": 80}
    assert not {name: score["value"] for name, score in scores.items() if score["value"] < least[name]}
    log = read_log(folder)
    assert log["update"].max() == 4 * 60 and all(log[f"valid/{name}/accuracy"].notna().sum() == 2 for name in TASKS)


def test_the_file_answers_for_every_task(world, four):
    model = star_upstream.load(four[1] / "best.safetensors")
    shares = model.classify("intent", wave(world, "ic", split="test", action="on", object="heat", location="kitchen"))
    assert len(shares) == 8 and "on|heat|kitchen" in shares and sum(shares.values()) == pytest.approx(1.0)
    for emotion in tiny_slu.EMOTIONS:
        assert next(iter(model.classify("emotion", wave(world, "er", fold=1, label=emotion)))) == emotion
    anna = wave(world, "sid", split="test", speaker="anna")
    assert next(iter(model.classify("identity", anna))) == "anna" and model.speaker_embedding(
        anna, "identity"
    ).shape == (8,)
    assert model.keyword(wave(world, "ks", split="test", label="up")) == "up"
    with pytest.raises(StarError, match="has the heads keyword, intent, emotion, identity, not 'speaker'"):
        model.speaker_embedding(anna)


def test_what_the_file_says_is_what_the_result_counts(world, four):
    model = star_upstream.load(four[1] / "best.safetensors")
    rows = pd.read_csv(world / "data" / "manifests" / "ic.tsv", sep="\t", keep_default_na=False)
    hits = []
    for row in rows[rows["split"] == "test"].itertuples():
        shares = model.classify("intent", torch.from_numpy(audio.read(world / "data" / row.path)))
        hits.append(next(iter(shares)) == f"{row.action}|{row.object}|{row.location}")
    assert 100 * sum(hits) / len(hits) == pytest.approx(four[0]["tasks"]["intent"]["value"])


def test_the_table_has_a_column_for_every_task(four, tmp_path):
    text = finetune_table.write([four[1]], tmp_path)
    heads = " | ".join(f"{name} accuracy %" for name in ("keyword", "intent", "emotion", "identity"))
    assert f"| model | parameters | setting | {heads} |" in text
    (row,) = [line for line in text.splitlines() if "| 0.02 M |" in line]
    assert row.count("[") == 4 and "minDCF" not in text.split("Published")[0]
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert sum(line.startswith("ours,") for line in lines) == 4
    assert list(json.loads((tmp_path / "table.json").read_text())["rows"][0]["tasks"]) == list(TASKS)


def test_a_run_goes_on_with_its_tasks_in_their_order(world):
    loaded = load(world / "four.yaml")
    turned = dataclasses.replace(loaded, tasks=dict(reversed(loaded.tasks.items())))
    assert loaded.difference(loaded) == ""
    found = turned.difference(loaded)
    assert found.startswith("tasks take turns as keyword, intent, emotion, identity there and as identity, emotion")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (
            "intent",
            lambda t: t[(t["split"] != "train") | (t["action"] != "on")],
            "action 'on' is in dev but not in train",
        ),
        # every part of it is known, the whole is not
        (
            "intent",
            lambda t: t[
                (t["split"] == "test") | (t["action"] != "on") | (t["object"] != "heat") | (t["location"] != "none")
            ],
            "tasks.intent: 'on|heat|none' \\(utterance 'ic[0-9]+'\\) is in test but not in train, "
            "so it cannot be learnt",
        ),
        (
            "identity",
            lambda t: t.assign(speaker=t["speaker"].mask(t["id"] == "sid38", "zoe")),
            "speaker 'zoe' is in test but not in train",
        ),
        (
            "emotion",
            lambda t: t.assign(label=t["label"].mask((t["fold"] == 1) & (t["label"] == "sad"), "calm")),
            "label 'calm' is in fold 1 alone",
        ),
    ],
)
def test_a_class_that_is_only_tested_is_refused(world, tmp_path, task, change, message):
    name = TASKS[task]["data"]
    (tmp_path / "manifests").mkdir()
    (tmp_path / "wav").symlink_to(world / "data" / "wav")
    table_ = pd.read_csv(world / "data" / "manifests" / f"{name}.tsv", sep="\t", keep_default_na=False)
    change(table_).to_csv(tmp_path / "manifests" / f"{name}.tsv", sep="\t", index=False)
    with pytest.raises(StarError, match=message):
        tasks.load({task: load(world / "four.yaml").tasks[task]}, str(tmp_path))


# the file as an upstream


def test_s3prl_gets_the_encoders_states(four):
    path = four[1] / "best.safetensors"
    encoder = sources.load(path)
    assert "star_local" in star_upstream.register()
    from s3prl.nn import S3PRLUpstream

    with torch.random.fork_rng():  # s3prl seeds the global generators when it builds an upstream
        model = S3PRLUpstream("star_local", path_or_url=str(path)).eval()
    x = torch.randn(2, 9000)
    with torch.no_grad():
        states, lengths = model(x, torch.tensor([9000, 9000]))
        own = encoder.exposed(encoder(x))
    stride, frames = encoder.config.stride, own[0].shape[1]
    assert (model.num_layers, model.hidden_sizes, model.downsample_rates) == (3, [32] * 3, [stride] * 3)
    # s3prl counts ceil(9000 / stride) frames and fills up with the last one
    assert lengths[0].tolist() == [-(-9000 // stride)] * 2
    assert all(torch.allclose(theirs[:, :frames], ours, atol=1e-5) for theirs, ours in zip(states, own, strict=True))
    # the fine-tuned one, not the one it began with
    start = sources.load(load(four[1] / "recipe.yaml").encoder)
    assert not torch.allclose(states[-1][:, :frames], start(x).states[-1], atol=1e-2)


def test_eval_gets_the_encoders_states(four):
    path = four[1] / "best.safetensors"
    encoder, loaded = sources.load(path), upstreams.load(str(path))
    assert loaded.digest == checkpoint.digest(encoder) and loaded.parameters == sum(
        p.numel() for p in encoder.parameters()
    )
    assert (loaded.layers, loaded.width, loaded.stride, loaded.padded) == (3, 32, encoder.config.stride, True)
    waves = [torch.randn(n) for n in (9000, 4000)]
    for wave_, states_LTD in zip(waves, loaded.encode([w.numpy() for w in waves])):
        with torch.no_grad():
            own_LTD = torch.stack([state_BTD[0] for state_BTD in encoder.exposed(encoder(wave_[None]))])
        frames = round(len(wave_) / encoder.config.stride)  # s3prl's rule; the encoder may have one more
        assert states_LTD.shape[1] == min(frames, own_LTD.shape[1])
        assert torch.allclose(states_LTD, own_LTD[:, : states_LTD.shape[1]], atol=1e-5)


# several processes


TWICE = """
import sys
from star_upstream.training import finetune, recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe

for alternate in ("step", "sum"):
    asked = recipe.load(sys.argv[1], ["training.devices=2", f"alternate={alternate}"], FinetuneRecipe)
    finetune.run(asked, f"two-{alternate}")
"""


def test_two_processes_learn_what_one_learns_from_both_their_batches(world):
    # a head, the prediction heads, or both have no part in a batch of the other task
    source, folder = tiny_finetune.QUICK, world / "processes"
    folder.mkdir()
    drawn = sources.load(world / "speakers" / "student")
    # dropout differs from process to process
    encoder = Encoder(dataclasses.replace(drawn.config, dropout=0.0, attention_dropout=0.0))
    encoder.load_state_dict(drawn.state_dict())
    checkpoint.save(folder / "encoder", encoder, {})
    tasks = {**source["tasks"], "keyword": {**source["tasks"]["keyword"], "input": "predictions"}}
    # with this eps what is rounded otherwise stays as small as it is
    training = {**source["training"], "updates": 4, "validate_every": 2, "eps": 1e-2}
    values = {"encoder": str(folder / "encoder"), "tasks": tasks, "training": training}
    values["data"] = {"workers": 0, "root": str(world / "speakers")}
    (folder / "quick.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "twice.py").write_text(TWICE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "twice.py", "quick.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    for alternate in ("step", "sum"):
        loaded = load(folder / "quick.yaml", ["training.accumulate=2", f"alternate={alternate}"])
        one = finetune.run(loaded, folder / f"one-{alternate}")
        two = json.loads((folder / f"two-{alternate}" / "done.json").read_text())
        assert two["tasks"] == one["tasks"] and two["iterations"] == one["iterations"]
        weights = [load_file(folder / f"{name}-{alternate}" / "last.safetensors") for name in ("one", "two")]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
        logs = [read_log(folder / f"{name}-{alternate}") for name in ("one", "two")]
        columns = [c for c in logs[0] if c.startswith(("train/", "valid/")) or c == "update"]
        pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], atol=1e-3, rtol=1e-3)


def test_a_run_of_a_grid_is_a_command_of_its_own(world, tmp_path, monkeypatch, capsys):
    from lightning_fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd

    # by this command Lightning starts the second process; the grid's own would start the grid again
    monkeypatch.setattr(sys, "argv", ["star", "finetune", "four.yaml", "--grid", "a=b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec("pytest"))
    words = []
    monkeypatch.setattr(finetune, "run", lambda *_: words.extend(_basic_subprocess_cmd()))
    plan = {"mine": ["training.devices=2", "tasks=intent"]}
    assert grid._one(str(world / "four.yaml"), plan, tmp_path, "mine") == "done"
    assert words[:3] == [sys.executable, "-m", "star_upstream.__main__"] and words[-2:] == [
        "--out",
        str(tmp_path / "mine"),
    ]
    cli.main([*words[3:], "--dry-run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["devices"] == 2 and list(shown["tasks"]) == ["intent"]
