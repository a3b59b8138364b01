"""A run in two stages: it prunes to its target, cuts, distils on, and resumes exactly in either stage."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import PATIENCE, Clock, killed, log, start, write_audio

import star_upstream
from star_upstream import cli
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.pruning.config import PruningConfig
from star_upstream.pruning.gates import GatedEncoder
from star_upstream.training import config, distill, loop, optimizer, prune, recipe, run_folder, student
from star_upstream.training.start import find_clips

TEACHER = {
    "conv_layers": [[12, 10, 5], [16, 3, 4], [16, 3, 4], [24, 2, 4]],
    "position_kernel": 16,
    "position_groups": 4,
    "layers": 3,
    "width": 32,
    "heads": 8,
    "head_width": 4,
    "ffn": 96,
    "dropout": 0.05,
}
TARGET = 0.5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    os.environ["STAR_CACHE"] = str(folder / "cache")
    write_audio(folder / "audio")
    torch.manual_seed(0)
    checkpoint.save(folder / "teacher", Encoder(EncoderConfig(**TEACHER)), {})
    yield folder
    del os.environ["STAR_CACHE"]


def make(world, name: str = "recipe.yaml", **overrides):
    values = {
        "teacher": str(world / "teacher"),
        "student": "teacher",
        "student_changes": {"hidden_states": "features"},
        "loss": {"skill": {"number": 2, "seconds": 5.0}},
        "data": {
            "train": [str(world / "audio")],
            "valid_share": 0.2,
            "min_seconds": 0.4,
            "max_seconds": 2.0,
            "batch_seconds": 4.0,
            "crop": "shortest-random",
            "workers": 0,
        },
        "training": {
            "updates": 120,
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "clip": 10.0,
            "schedule": "linear",
            "log_every": 1,
            "validate_every": 24,
            "save_every": 7,
            "accelerator": "cpu",
        },
        "pruning": {
            "target": TARGET,
            "target_warmup": 0.2,
            "gate_learning_rate": 0.2,
            "multiplier_learning_rate": 0.02,
            "quadratic_start": 100.0,
            "second": {"updates": 60, "learning_rate": 2e-3, "warmup": 0.1},
        },
    }
    configs = {"training": config.TrainingConfig, "pruning": PruningConfig, "data": config.DataConfig}
    for key, value in overrides.items():
        section = next((name for name, config in configs.items() if key in config.__dataclass_fields__), None)
        (values[section] if section else values)[key] = value
    (world / name).write_text(yaml.safe_dump(values))
    return world / name


@pytest.fixture(scope="module")
def unbroken(world):
    file = make(world, "unbroken.yaml")
    prune.run(recipe.load(file), world / "unbroken")
    return file, world / "unbroken"


def parameters(folder) -> int:
    return sum(p.numel() for p in checkpoint.load(folder).parameters())


def test_the_target_is_met_and_the_loss_falls_again(world, unbroken):
    _, run = unbroken
    first, second = log(run / "stage1"), log(run)
    train = [row for row in first if row["train/loss"]]
    assert len(train) == 120 and sum(bool(row["train/loss"]) for row in second) == 60

    sparsity = [float(row["pruning/sparsity"]) for row in train]
    # FFN units start half closed
    assert sparsity[0] == pytest.approx(0.08, abs=0.01) and sparsity[-1] == pytest.approx(TARGET, abs=0.01)
    assert [float(row["pruning/target"]) for row in (train[0], train[11], train[30])] == pytest.approx(
        [0.5 / 24 * 0.5, 11.5 / 24 * 0.5, 0.5]
    )
    result = json.loads((run / "done.json").read_text())["pruning"]
    before, after = result["parameters"]
    assert (before, after) == (
        parameters(world / "teacher"),
        parameters(run / "stage1" / "cut"),
    ) and after == parameters(run / "best")
    assert 1 - after / before == pytest.approx(TARGET, abs=0.01) and result["sparsity"] == pytest.approx(
        1 - after / before, abs=1e-6
    )
    assert float(train[-1]["pruning/expected_parameters"]) == pytest.approx(after, rel=0.02)

    valid = [float(row["valid/loss"]) for row in second if row["valid/loss"]]
    losses = [float(row["train/loss"]) for row in second if row["train/loss"]]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.01 and valid[-1] < float(first[-1]["valid/loss"])
    assert np.mean([float(row["train/loss"]) for row in train[-10:]]) < float(train[0]["train/loss"]) - 0.1


def test_the_result_is_an_ordinary_checkpoint(world, unbroken):
    file, run = unbroken
    wave_BN = torch.randn(1, 8000)
    upstream = star_upstream.load(run / "best")
    with torch.no_grad():
        assert len(upstream(list(wave_BN))["hidden_states"]) == 4
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run / "best", world / "teacher")]
    assert sizes[0] < 0.6 * sizes[1]
    provenance = checkpoint.describe(run / "best")["provenance"]
    assert provenance["pruning"]["target"] == TARGET and provenance["pruning"]["stage1_updates"] == 120
    assert provenance["updates"] in (24, 48, 60)
    groups = json.loads((run / "measured.json").read_text())["skill"]["groups"]
    assert sorted(layer for group in groups for layer in group) == [0, 1, 2, 3]
    assert provenance["recipe"]["loss"]["skill"]["groups"] == groups
    assert recipe.load(run / "recipe.yaml") == recipe.load(file)
    gated, encoder = prune.load_gated(run / "stage1" / "gated"), checkpoint.load(run / "stage1" / "cut")
    with torch.no_grad():
        for own, other in zip(gated(wave_BN).states, encoder(wave_BN).states, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_gated_cut_and_rounded_side_by_side(world, unbroken, tmp_path, capsys):
    _, run = unbroken
    cli.main(["cut", str(run / "stage1" / "gated"), str(tmp_path / "rounded"), "--round", "8"])
    result = json.loads(capsys.readouterr().out)
    rounded = checkpoint.load(tmp_path / "rounded")
    sizes = [*(n for n, _, _ in rounded.config.conv_layers), *rounded.config.ffn]
    assert all(n % 8 == 0 or n == 12 for n in sizes) and result["sparsity"] == pytest.approx(TARGET, abs=0.03)
    cli.main(["cut", str(run / "stage1" / "gated"), str(tmp_path / "smaller"), "--sparsity", "0.7"])
    assert json.loads(capsys.readouterr().out)["sparsity"] == pytest.approx(0.7, abs=0.01)

    sources = [
        str(folder)
        for folder in (world / "teacher", run / "stage1" / "gated", run / "stage1" / "cut", tmp_path / "rounded")
    ]
    cli.main(["profile", *sources, "--time", "--seconds", "1", "--repeats", "2", "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == sources and (found["threads"], found["repeats"], found["seconds"]) == (1, 2, 1.0)
    whole, gated, cut, _ = found["models"].values()
    assert (
        whole["speedup"] == 1.0
        and cut["parameters"] < 0.51 * gated["parameters"]
        and cut["bytes"] < 0.6 * whole["bytes"]
    )
    assert all(row["median_s"] > 0 for row in found["models"].values())
    cli.main(["profile", *sources])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *sources] and "speedup" not in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["cut", "{run}/stage1/cut", "{new}"],
            "no gates.json; the gated student of a pruned run is in RUN/stage1/gated",
        ),
        (["cut", "{run}/stage1/gated", "{run}/stage1/cut"], "is not empty and was not made by star cut"),
        (["cut", "{run}/stage1/gated", "{new}", "--sparsity", "0.99"], "0.99 cannot be reached"),
        (
            ["cut", "{run}/stage1/gated", "{new}", "--round", "0"],
            "gates.round_channels: must be 1 or more",
        ),
        (["profile", "{run}/best", "{run}/best", "--time"], "a model is named twice"),
        (["profile", "{run}/best", "--time", "--seconds", "0.001"], "seconds must be enough for one frame"),
    ],
)
def test_wrong_words_are_one_line(unbroken, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main([word.format(run=unbroken[1], new=tmp_path / "new") for word in words])
    assert stop.value.code == 2 and not (tmp_path / "new").exists()
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_losss_maps_learn_and_go_on_in_stage_2(unbroken):
    _, run = unbroken
    ends = [run_folder.RunFolder(folder).load_state()["model"] for folder in (run / "stage1", run)]
    maps = [{k: v for k, v in state.items() if k.startswith("loss.") and k.endswith("weight")} for state in ends]
    assert maps[0] and maps[0].keys() == maps[1].keys()
    carried = torch.load(run / "stage1" / "loss.pt", weights_only=True)
    for name, weight in maps[0].items():
        assert not torch.equal(weight, torch.eye(32)) and not torch.equal(weight, maps[1][name])
        assert torch.equal(weight, carried[name.removeprefix("loss.")])


def test_the_channels_scale_is_frozen_in_stage_2(unbroken):
    _, run = unbroken
    scales = [checkpoint.load(run / name).frontend.scale for name in ("stage1/cut", "last", "best")]
    assert torch.equal(scales[0], scales[1]) and torch.equal(scales[0], scales[2])
    moved = [checkpoint.load(run / name).frontend.norm.weight for name in ("stage1/cut", "last")]
    assert not torch.equal(*moved)


def test_killed_in_either_stage_and_resumed_equals_unbroken(world, unbroken):
    file, run = unbroken
    broken = world / "killed"
    killed(["distill", file], broken, rows=30, log="stage1/log.csv")
    assert (
        14 <= run_folder.RunFolder(broken / "stage1").load_state()["update"] < 120
        and not (broken / "stage1" / "cut").exists()
    )
    killed(["distill", file], broken, rows=15)
    assert 7 <= run_folder.RunFolder(broken).load_state()["update"] < 60
    prune.run(recipe.load(file), broken)
    assert_equal(broken, run)
    starts = json.loads((broken / "environment.json").read_text())["starts"]
    assert [(s["part"], s["resumed_at"] > 0) for s in starts] == [
        ("stage 1", False), ("stage 1", True), ("stage 2", False), ("stage 2", True),
    ]  # fmt: skip


def test_killed_between_the_stages_equals_unbroken(world, unbroken):
    file, run = unbroken
    between = world / "between"
    shutil.copytree(run, between)
    for name in ("best", "last", "stage1/cut"):
        shutil.rmtree(between / name)
    for name in ("done.json", "state.pt", "log.csv", "stage1/loss.pt"):
        (between / name).unlink()
    prune.run(recipe.load(file), between)
    assert_equal(between, run)


def assert_equal(run, other):
    assert log(run / "stage1") == log(other / "stage1") and log(run) == log(other)
    for name in ("stage1/cut", "last", "best"):
        assert (run / name / "model.safetensors").read_bytes() == (other / name / "model.safetensors").read_bytes()


def test_two_processes_go_through_both_stages(world):
    """With a loss that leaves the last layer out."""
    second = {"updates": 3, "learning_rate": 1e-3}
    file = make(
        world,
        "two.yaml",
        devices=2,
        updates=5,
        validate_every=3,
        target=0.3,
        second=second,
        loss={"hint": {"teacher_layers": [0, 2]}},
    )
    process = start(["distill", file], world / "two")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["updates"] == 3 and "far from 0.3" in err.decode()
    assert 1 - parameters(world / "two" / "best") / parameters(world / "teacher") == pytest.approx(0.3, abs=0.01)


def test_multiplier_groups_ascend_and_rates_follow_the_schedule(world, tmp_path):
    loaded = recipe.load(make(world, updates=3))
    teacher = checkpoint.load(world / "teacher")
    clips, *_ = find_clips(loaded.data)
    sections = {"skill": {"groups": [[0, 1], [2, 3]]}}
    provenance = {"teacher": {"sha256": ""}}
    loaded = recipe.load(make(world, updates=3, loss=sections))
    folder, gated = (
        run_folder.RunFolder(tmp_path),
        GatedEncoder(student.make_student(loaded, teacher), loaded.pruning.gates),
    )
    training = prune.GatedDistillation(loaded, gated, distill.Teacher(teacher), folder, clips, provenance)
    groups = training.groups()
    in_groups = [p for group in groups for p in group["params"]]
    assert {id(p) for p in in_groups} == {id(p) for p in training.model.parameters()}
    assert len(in_groups) == len(set(map(id, in_groups)))
    gates, multipliers = groups[2:]
    assert {id(p) for p in gates["params"]} == {id(p) for p in gated.gates.parameters()}
    assert multipliers["maximize"] and "maximize" not in gates and gates["weight_decay"] == 0.0
    loop.fit(training, folder)
    share = (2 + 0.5) / 3
    rates = [group["lr"] for group in folder.load_state()["optimizer"]["param_groups"]]
    assert rates[0] == rates[1] == optimizer.rate(share, loaded.training)
    assert rates[2:] == pytest.approx([rates[0] * 0.2 / 2e-3, rates[0] * 0.02 / 2e-3])
    assert training.model.constraint.linear.item() < 0 and training.model.constraint.quadratic.item() > 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target": 0.99}, "pruning.target: 0.99 cannot be reached: without everything that has a gate, 0.881"),
        ({"teacher": "layer_normed"}, "pruning.gates.conv_channels: .*set it to false"),
    ],
)
def test_what_cannot_be_pruned_does_not_occupy_the_folder(world, tmp_path, overrides, message):
    if "teacher" in overrides:
        overrides["teacher"] = str(tmp_path / "teacher")
        checkpoint.save(tmp_path / "teacher", Encoder(EncoderConfig(**TEACHER, conv_norm="layer")), {})
    with pytest.raises(StarError, match=message):
        prune.run(recipe.load(make(world, "refused.yaml", **overrides)), tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").glob("[!.]*")} <= {"measured.json"}


def test_a_changed_teacher_is_refused_in_stage_2(world, unbroken, tmp_path):
    _, run = unbroken
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    teacher = checkpoint.load(world / "teacher")
    teacher.norm.bias.data += 1
    other = tmp_path / "teacher"
    checkpoint.save(other, teacher, {})
    text = (tmp_path / "run" / "recipe.yaml").read_text().replace(str(world / "teacher"), str(other))
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    with pytest.raises(StarError, match="was started with another teacher"):
        prune.run(recipe.load(tmp_path / "run" / "recipe.yaml"), tmp_path / "run")


def test_minutes_in_both_stages(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "clock", Clock(0.05))
    file = make(world, "minutes.yaml", updates=None, minutes=0.05, second={"minutes": 0.03}, validate_every=10_000)
    provenance = checkpoint.describe(prune.run(recipe.load(file), tmp_path))["provenance"]
    assert math.isfinite(provenance["validation_loss"])
    # each stage by itself
    assert re.fullmatch(
        r"stage 1: \d+ updates in 0.05 minutes, and a run needs .*", provenance["pruning"]["too_few_updates"]
    )
    assert re.fullmatch(r"\d+ updates in 0.03 minutes, and a run needs .*", provenance["too_few_updates"])
    assert capsys.readouterr().err.count("at least to learn from") == 2


def test_stage_two_may_go_on_in_the_order_of_the_audio(world):
    """A run of both stages and a plain one of as many updates hear the same waveforms in the same order, by their
    logs."""
    loss = {"hint": {"teacher_layers": [0, 3]}}
    second = {"updates": 9, "learning_rate": 1e-3, "warmup": 0.1}
    quick = {"loss": loss, "validate_every": 100, "accumulate": 2}
    heard = {}
    for name in ("again", "onward"):
        file = make(world, f"{name}.yaml", updates=5, second=second, second_data=name, **quick)
        prune.run(recipe.load(file), world / name)
        heard[name] = [row["audio_crc32"] for part in ("stage1", ".") for row in log(world / name / part)]
    file = make(world, "plain.yaml", updates=14, pruning=None, **quick)
    distill.run(recipe.load(file), world / "plain")
    plain = [row["audio_crc32"] for row in log(world / "plain")]
    crcs = {name: [crc for crc in found if crc] for name, found in {**heard, "plain": plain}.items()}
    assert crcs["onward"] == crcs["plain"] and len(set(crcs["plain"])) == 14
    assert crcs["again"][:5] == crcs["plain"][:5] and crcs["again"][5:] == crcs["plain"][:9]
