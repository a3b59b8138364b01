"""Pretraining end to end on a handful of clips: rounds, a rerun, a kill that changes nothing, a teacher's units."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny_pretrain import ENCODER, write_recipe, write_steps
from tiny_runs import PATIENCE, killed, log, start

from star_upstream import cli
from star_upstream.encoder import EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.training import pretrain, recipe
from star_upstream.training.pretrain_recipe import PretrainRecipe, Round
from star_upstream.training.run_folder import RunFolder

ONE = [{"features": "mfcc", "units": 6}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_steps(folder / "clips")
    return folder


def load(world, file, *overrides, **changes):
    return recipe.load(write_recipe(file, **changes), [f"data.train={world / 'clips'}", *overrides], PretrainRecipe)


@pytest.fixture(scope="module")
def whole(world):
    """A run of two rounds from beginning to end."""
    made = pretrain.run(load(world, world / "whole.yaml"), world / "whole")
    assert made == world / "whole" / "round2" / "encoder"
    return world / "whole"


def test_two_rounds_make_an_encoder_that_says_how(whole, world):
    result = json.loads((whole / "done.json").read_text())
    encoder, provenance = (f(whole / result["checkpoint"]) for f in (checkpoint.load, checkpoint.describe))
    provenance = provenance["provenance"]
    assert encoder.config.layers == 2 and encoder.config.frontend == "mel"
    assert (provenance["round"], provenance["updates"], provenance["made_by"]) == (2, 6, "star pretrain")
    assert provenance["clips"] == {"train": 9, "valid": 3} and provenance["recipe"]["data"]["train"] == ["clips"]
    assert provenance["precision"] == 32 and 0 < provenance["audio_hours"] == result["audio_hours"]
    table = np.load(whole / "round2" / "units.npz")
    assert 1 < len(np.unique(table["units"])) <= 8
    lengths = sorted(encoder.config.frames(soundfile.info(f).frames) for f in (world / "clips").iterdir())
    assert sorted(table["lengths"].tolist()) == lengths
    assert all((whole / f"round{n}" / "loss.png").is_file() for n in (1, 2))
    starts = json.loads((whole / "environment.json").read_text())["starts"]
    assert [start["part"] for start in starts] == ["round 1", "round 2"]


def test_the_log_has_rates_losses_and_what_the_held_out_clips_say(whole):
    for number, updates in ((1, 8), (2, 6)):
        rows = log(whole / f"round{number}")
        trained = [row for row in rows if row["train/loss"]]
        assert [row["update"] for row in trained] == [str(n) for n in range(1, updates + 1)]
        assert [row["update"] for row in rows if row["valid/masked"]] == ["3", "6", "8"][: 4 - number]
        rates = [float(row["learning_rate"]) for row in trained]
        share = (np.arange(updates) + 0.5) / updates  # a rise over a quarter of the round, then a fall to 0
        assert rates == pytest.approx(list(1e-3 * np.minimum(share / 0.25, (1 - share) / 0.75)))
        for row in trained:
            loss, masked, unmasked = (float(row[f"train/{name}"]) for name in ("loss", "masked", "unmasked"))
            assert loss == pytest.approx(masked + 0.5 * unmasked, rel=1e-4)


def test_a_finished_run_is_left_as_it_is(whole, world, capsys):
    before = {f: f.stat().st_mtime_ns for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}
    assert pretrain.run(load(world, world / "whole.yaml"), whole) == whole / "round2" / "encoder"
    assert {f: f.stat().st_mtime_ns for f in before} == before and "finished before" in capsys.readouterr().err


def fresh(world, before, **changes):
    """The encoder with which a second round begins."""
    rounds = [*ONE, {"features": "layer1", "units": 8, **changes}]
    asked = load(world, world / "fresh.yaml", rounds=rounds)
    found = pretrain.Start(asked, world / "fresh", "star pretrain")
    units = {part: [np.zeros(9, np.int16)] * len(clips) for part, clips in found.clips.items()}
    return pretrain.Pretraining(asked, 2, before, found.folder, found.clips, units, {}).encoder.state_dict()


def test_a_later_round_goes_on_from_the_weights_of_the_one_before_unless_fresh(whole, world):
    before = checkpoint.load(whole / "round1" / "encoder")
    for new in (False, True):
        begun = fresh(world, before, fresh=new)
        assert all(torch.equal(begun[name], tensor) for name, tensor in before.state_dict().items()) != new


def test_a_student_learns_units_of_any_teacher_with_the_same_frames(world, tmp_path):
    """The teacher is HuBERT-like, the student is not of its shape."""
    rounds = [{"features": "layer3", "units": 6, "fresh": True}]
    student = {
        "conv_layers": [[8, 10, 5], [16, 3, 4], [16, 8, 4], [24, 6, 4]], "projection": False, "width": 24, "layers": 2,
        "heads": 2, "head_width": 12, "ffn": 32, "position_kernel": 8, "position_groups": 2,
    }  # fmt: skip
    assert (
        EncoderConfig(**student).receptive_field != checkpoint.load("star_upstream/mini/teacher").config.receptive_field
    )
    asked = load(world, tmp_path / "r.yaml", teacher="star_mini_teacher", encoder=student, rounds=rounds)
    made = pretrain.run(asked, tmp_path / "run")
    encoder, provenance = checkpoint.load(made), checkpoint.describe(made)["provenance"]
    assert encoder.config.width == 24 and provenance["teacher"]["source"] == "star_mini_teacher"
    for changes, message in (
        ({"rounds": [{**rounds[0], "fresh": False}]}, "the model before has another shape .*fresh: true"),
        ({"rounds": [{**rounds[0], "features": "layer9"}]}, "layer9 of a model with 8 layers"),
        (
            {"encoder": {**ENCODER, "conv_layers": [[16, 3, 1], [16, 3, 1]]}},
            "320 samples apart, this one's 160; units need equal ones",
        ),
    ):
        asked = load(
            world, tmp_path / "o.yaml", teacher="star_mini_teacher", **{"encoder": student, "rounds": rounds, **changes}
        )
        with pytest.raises(StarError, match=message):
            pretrain.run(asked, tmp_path / "other")
    assert not (tmp_path / "other" / "recipe.yaml").exists()


def test_an_encoder_of_the_teachers_shape_goes_on_from_its_weights_or_takes_parts(whole, world, tmp_path):
    teacher = str(whole / "round1" / "encoder")
    asked = load(
        world,
        tmp_path / "r.yaml",
        teacher=teacher,
        encoder="teacher",
        rounds=[{"features": "layer1", "units": 5}],
        training={"updates": 1, "learning_rate": 1e-9},
    )
    made, before = checkpoint.load(pretrain.run(asked, tmp_path / "run")), checkpoint.load(teacher)
    assert all(torch.allclose(made.state_dict()[n], x, atol=1e-6) for n, x in before.state_dict().items())
    parts = {"updates": 1, "learning_rate": 1e-9, "initialise_from_teacher": {"frontend": True}}
    rounds = [{"features": "layer1", "units": 5, "fresh": True}]
    asked = load(world, tmp_path / "p.yaml", teacher=teacher, encoder="teacher", rounds=rounds, training=parts)
    made = checkpoint.load(pretrain.run(asked, tmp_path / "parts")).state_dict()
    equal = {name for name, x in before.state_dict().items() if torch.allclose(made[name], x, atol=1e-6)}
    assert "frontend.convs.0.weight" in equal and "layers.0.ffn_in.weight" not in equal


def same(one, other):
    for number in (1, 2):
        assert log(one / f"round{number}") == log(other / f"round{number}")
        files = [run / f"round{number}" / "encoder" / "model.safetensors" for run in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_after_a_kill_in_either_round_the_run_has_the_same_losses_and_weights(whole, world, tmp_path):
    words = ["pretrain", world / "whole.yaml", f"data.train={world / 'clips'}"]
    killed(words, tmp_path / "run", rows=4, log="round1/log.csv")
    assert RunFolder(tmp_path / "run" / "round1").load_state()["update"] >= 2
    killed(words, tmp_path / "run", rows=3, log="round2/log.csv")
    pretrain.run(load(world, world / "whole.yaml"), tmp_path / "run")
    same(tmp_path / "run", whole)


def test_batches_made_ahead_are_the_same(whole, world, tmp_path):
    asked = load(world, tmp_path / "r.yaml", data={"workers": 1})
    pretrain.run(asked, tmp_path / "run")
    same(tmp_path / "run", whole)


def test_two_processes_go_through_both_rounds_and_over_a_kill(world, tmp_path):
    file = write_recipe(tmp_path / "two.yaml", training={"devices": 2})
    words = ["pretrain", file, f"data.train={world / 'clips'}"]
    killed(words, tmp_path / "killed", rows=4, log="round1/log.csv")
    for name in ("unbroken", "killed"):
        process = start(words, tmp_path / name)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err.decode()
        assert json.loads(out)["checkpoint"] == str(tmp_path / name / "round2" / "encoder")
    same(tmp_path / "killed", tmp_path / "unbroken")


def test_a_validation_may_come_before_the_first_line_of_the_log(world, tmp_path):
    asked = load(world, tmp_path / "r.yaml", "training.log_every=50", rounds=ONE)
    made = checkpoint.describe(pretrain.run(asked, tmp_path / "run"))["provenance"]
    assert made["audio_hours"] > 0 and made["validation_loss"] > 0


def test_other_units_or_another_recipe_do_not_go_on_with_a_run(world, tmp_path):
    asked = load(world, tmp_path / "r.yaml", rounds=ONE)
    pretrain.run(asked, tmp_path / "run")
    for name in ("done.json", "round1/done.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(StarError, match=r"another recipe \(training.learning_rate is 0.001 there and 0.002 here\)"):
        pretrain.run(load(world, tmp_path / "r.yaml", "training.learning_rate=2e-3", rounds=ONE), tmp_path / "run")
    file = tmp_path / "run" / "round1" / "units.npz"
    table = dict(np.load(file))
    np.savez(file, **{**table, "units": 5 - table["units"]})
    with pytest.raises(StarError, match="was started with other units than there are now"):
        pretrain.run(asked, tmp_path / "run")


def test_a_pretraining_within_minutes_that_bought_too_few_updates_says_so(world, tmp_path, monkeypatch, capsys):
    from tiny_runs import Clock

    from star_upstream.training import loop

    monkeypatch.setattr(loop, "clock", Clock(0.2))
    asked = load(
        world, tmp_path / "r.yaml", rounds=[{**ONE[0], "share": 0.5}], training={"updates": None, "minutes": 0.1}
    )
    made = pretrain.run(asked, tmp_path / "run")
    assert "updates in 0.05 minutes, and a run needs 50 at least" in capsys.readouterr().err
    assert "needs 50" in checkpoint.describe(made)["provenance"]["too_few_updates"]


def test_the_command_prints_its_result_and_the_recipe(world, tmp_path, capsys):
    file = str(write_recipe(tmp_path / "r.yaml", rounds=ONE, training={"updates": 2}))
    cli.main(["pretrain", file, f"data.train={world / 'clips'}", "--out", str(tmp_path / "run")])
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(tmp_path / "run" / "round1" / "encoder") and result["updates"] == 2
    cli.main(
        [
            "pretrain",
            "hubert_mini",
            "teacher=star_mini_teacher",
            "rounds=[{features: layer6, units: 1000, fresh: true}]",
            "--dry-run",
        ]
    )
    (tmp_path / "dry.yaml").write_text(capsys.readouterr().out)
    assert recipe.load(tmp_path / "dry.yaml", (), PretrainRecipe).rounds == (Round("layer6", 1000, fresh=True),)


@pytest.mark.parametrize("name", recipe.names(PretrainRecipe))
def test_every_shipped_recipe_is_whole(name, tmp_path):
    loaded = recipe.load(name, (), PretrainRecipe)
    assert loaded.about and not loaded.data.train and loaded.encoder.stride == 320
    (tmp_path / "copy.yaml").write_text(recipe.dump(loaded), encoding="utf-8")
    assert recipe.load(tmp_path / "copy.yaml", (), PretrainRecipe) == loaded


def test_the_shipped_rounds_are_as_long_as_their_shares():
    assert [recipe.load("hubert_mini", (), PretrainRecipe).round_training(n).updates for n in (1, 2, 3)] == [
        2500,
        6000,
        20000,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": {"spam": 3}}, "mask.spam: unknown key; did you mean 'span'"),
        ({"rounds": [{"features": "layers", "units": 6}]}, "features: expected mfcc or layerN, got 'layers'"),
        ({"rounds": [{"features": "layer1", "units": 6}]}, "teacher: name a model, .* round 1 takes units of layer1"),
        ({"encoder": "teacher"}, "teacher: name a model"),
        ({"rounds": [{"features": "mfcc", "units": 1}]}, "units: expected 2 to 32767, got 1"),
        ({"rounds": [{"features": "mfcc", "units": 6, "share": 0.0}]}, "share: must be above 0"),
        ({"rounds": []}, "rounds: name at least one"),
        ({"data": {"crop": "none"}}, "data.crop: expected 'shortest-random', got 'none'"),
        ({"data": {"min_seconds": 0.01}}, "data.min_seconds: 0.01 is too short for one frame"),
        ({"training": {"initialise_from_teacher": {"frontend": True}}}, "only for a fresh first round with a teacher"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_any_work(world, tmp_path, changes, message):
    with pytest.raises(StarError, match=message):
        pretrain.run(load(world, tmp_path / "r.yaml", **changes), tmp_path / "run")
    assert not list(tmp_path.rglob("units.npz")) and not list(tmp_path.rglob("recipe.yaml"))


def test_units_that_can_be_heard_are_learnt(world, tmp_path):
    """Pitch steps are easy: masked frames of held-out clips are told far better than by the most frequent unit."""
    asked = load(
        world,
        tmp_path / "r.yaml",
        encoder={**ENCODER, "width": 32, "head_width": 16, "ffn": 64, "dropout": 0.0},
        rounds=[{"features": "mfcc", "units": 4}],
        training={"updates": 100, "learning_rate": 1e-2, "validate_every": 100},
        augment={"speeds": [1.0], "overlap": 0.0, "noise": 0.0},
        mask={"start": 0.02, "span": 4},
    )
    written = checkpoint.describe(pretrain.run(asked, tmp_path / "run"))["provenance"]
    found = np.load(tmp_path / "run" / "round1" / "units.npz")["units"]
    assert written["validation_accuracy"] > 0.1 + np.bincount(found).max() / len(found)
