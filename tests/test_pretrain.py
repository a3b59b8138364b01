"""Pretraining end to end on a handful of clips: rounds, a rerun, and a kill that changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from star_upstream import strict
from star_upstream.encoder import size
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.mini import leaks, pretrain, study

ENCODER = {
    "frontend": "mel", "mel_bins": 20, "conv_layers": [[16, 3, 1], [16, 3, 2]], "width": 16, "layers": 2, "heads": 2,
    "head_width": 8, "ffn": 32, "position_kernel": 8, "position_groups": 2, "dropout": 0.1, "attention_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i in range(12):
        seconds = 1.0 + 0.2 * i
        pitch = np.repeat(random.uniform(100, 2000, int(seconds * 5) + 1), 3200)[: int(16000 * seconds)]
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * random.standard_normal(len(pitch))
        soundfile.write(folder / f"{i}.wav", wave, 16000)
    return folder


def arguments(clips, folder, **changes):
    values = {
        "encoder": ENCODER,
        "rounds": [{"features": "mfcc", "units": 6, "updates": 7}, {"features": "layer1", "units": 8, "updates": 5}],
        "batch_seconds": 3.0, "crop_seconds": 1.5, "valid_clips": 3, "warmup": 2, "log_every": 1, "save_every": 2,
        "valid_every": 3, "precision": "32",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return [str(clips), "--out", str(folder / "run"), "--recipe", str(folder / "r.yaml")]


def rows(folder, number=1):
    """The log without the time that passed."""
    lines = (folder / "run" / f"round{number}" / "log.csv").read_text().splitlines()
    place = lines[0].split(",").index("cpu_seconds")
    return [[cell for i, cell in enumerate(line.split(",")) if i != place] for line in lines]


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """A run of two rounds from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain.main(arguments(clips, folder))
    return folder


def test_two_rounds_make_an_encoder_that_says_how(whole, clips):
    made = json.loads((whole / "run" / "done.json").read_text())["encoder"]
    encoder, provenance = checkpoint.load(made), checkpoint.describe(made)["provenance"]
    assert encoder.config.layers == 2 and encoder.config.frontend == "mel"
    assert (provenance["round"], provenance["clips"]) == (2, 9) and provenance["recipe"]["rounds"][1]["units"] == 8
    table = np.load(whole / "run" / "round2" / "units.npz")
    assert 1 < len(np.unique(table["units"])) <= 8
    assert table["lengths"].tolist() == sorted(encoder.config.frames(soundfile.info(f).frames) for f in clips.iterdir())


def test_the_log_has_rates_losses_and_what_the_held_out_clips_say(whole):
    head, *lines = rows(whole)
    assert [line[0] for line in lines] == [str(n) for n in range(1, 8)]
    # warm-up over 2 updates, then a fall that would reach 0 after update 7
    assert np.allclose(
        [float(line[head.index("rate")]) for line in lines], np.array([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2]) * 1e-3
    )
    validated = [bool(line[head.index("valid_masked")]) for line in lines]
    assert validated == [False, False, True, False, False, True, True]
    for line in lines:
        loss, masked, unmasked = (float(line[head.index(name)]) for name in ("loss", "masked", "unmasked"))
        assert loss == pytest.approx(masked + 0.5 * unmasked, rel=1e-4)


def test_a_finished_run_is_left_as_it_is(whole, clips):
    before = {f: f.stat().st_mtime_ns for f in (whole / "run").rglob("*") if f.is_file() and f.name != "done.json"}
    pretrain.main(arguments(clips, whole))
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_a_later_round_goes_on_from_the_weights_of_the_one_before_unless_fresh(whole, clips, tmp_path):
    recipe = pretrain.read_recipe(whole / "r.yaml")
    before = checkpoint.load(whole / "run" / "round1" / "encoder")
    for fresh in (False, True):
        round_ = pretrain.Round("layer1", 8, 5, fresh=fresh)
        begun = pretrain.Training(recipe, round_, 2, before, tmp_path).model.encoder.state_dict()
        assert all(torch.equal(begun[name], tensor) for name, tensor in before.state_dict().items()) != fresh


def test_a_round_takes_units_from_any_model_with_the_same_frames(clips, tmp_path):
    rounds = [{"features": "layer3", "units": 6, "updates": 2, "fresh": True}]
    pretrain.main(arguments(clips, tmp_path, begin="star_mini", rounds=rounds))
    assert checkpoint.load(tmp_path / "run" / "round1" / "encoder").config.width == 16
    for changes, message in (
        ({"rounds": [{**rounds[0], "fresh": False}]}, "the model before has another shape .*fresh: true"),
        ({"rounds": [{**rounds[0], "features": "layer9"}]}, "layer9 of a model with 8 layers"),
        (
            {"encoder": {**ENCODER, "conv_layers": [[16, 3, 1], [16, 3, 1]]}},
            "320 samples apart, this one's 160; units need equal ones",
        ),
    ):
        with pytest.raises(StarError, match=message):
            pretrain.main(arguments(clips, tmp_path / "other", **{"begin": "star_mini", "rounds": rounds, **changes}))


def test_after_a_kill_the_run_has_the_same_losses_and_weights(whole, clips, tmp_path):
    command = [sys.executable, "-m", "star_upstream.mini.pretrain", *arguments(clips, tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "run" / "round1" / "log.csv", time.monotonic() + 240
    while not (log.is_file() and len(log.read_text().splitlines()) > 4) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pretrain.main(arguments(clips, tmp_path))
    for number in (1, 2):
        assert rows(tmp_path, number) == rows(whole, number)
        mine, theirs = (
            checkpoint.load(f / "run" / f"round{number}" / "encoder").state_dict() for f in (tmp_path, whole)
        )
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_batches_made_ahead_are_the_same(whole, clips, tmp_path):
    pretrain.main(arguments(clips, tmp_path, workers=1, rounds=[{"features": "mfcc", "units": 6, "updates": 7}]))
    assert rows(tmp_path) == rows(whole)


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed"])
def test_the_precision_is_settled_once_and_kept(clips, tmp_path, precision):
    pretrain.main(
        arguments(clips, tmp_path, precision=precision, rounds=[{"features": "mfcc", "units": 6, "updates": 2}])
    )
    state = torch.load(tmp_path / "run" / "round1" / "state.pt", weights_only=True)
    assert state["precision"] in (["32", "bf16-mixed"] if precision == "auto" else [precision])
    head, *lines = rows(tmp_path)
    assert all(np.isfinite(float(line[head.index("loss")])) for line in lines)


def test_another_recipe_does_not_go_on_with_a_run(clips, tmp_path):
    first = arguments(clips, tmp_path, rounds=[{"features": "mfcc", "units": 6, "updates": 4}])
    pretrain.main(first)
    encoder = tmp_path / "run" / "round1" / "encoder"
    for file in encoder.iterdir():
        file.unlink()
    encoder.rmdir()
    with pytest.raises(
        StarError, match="began with another recipe: learning_rate is 0.001 there and 0.002 here; restore it"
    ):
        pretrain.main([*first, "learning_rate=2.0e-3"])


def test_a_study_trains_each_variant_and_keeps_what_it_measured(clips, tmp_path, capsys):
    arguments(clips, tmp_path, valid_clips=3)
    lines = "".join(
        f"{file}\t{soundfile.info(file).frames}\t{split}\tAA B\n"
        for split in ("train", "dev")
        for file in sorted(clips.iterdir())
    )
    (tmp_path / "pr.tsv").write_text("path\tsamples\tsplit\tphones\n" + lines)
    values = {
        "cpu_seconds": 0.01,
        "base": {"warmup": 1, "save_every": 100},
        "variants": {"plain": {}, "wider": {"encoder.ffn": 48}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    recipe, plan = str(tmp_path / "r.yaml"), str(tmp_path / "study.yaml")
    call = [
        str(clips),
        "--phones",
        str(tmp_path / "pr.tsv"),
        "--out",
        str(tmp_path / "s"),
        "--recipe",
        recipe,
        "--study",
        plan,
    ]
    study.main(call)
    first = capsys.readouterr().out
    assert first.count("\n") == 4 and "| plain | 0.0 | 12 |" in first and "| wider |" in first
    assert not list((tmp_path / "s").rglob("state.pt"))
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "s").rglob("*.json")}
    study.main(call)
    assert capsys.readouterr().out == first and {f: f.stat().st_mtime_ns for f in before} == before
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "cpu_seconds": 0.02}))
    with pytest.raises(StarError, match="was measured otherwise: cpu_seconds is 0.01 there and 0.02 here"):
        study.main(call)


def test_the_shipped_recipe_and_study_can_be_read():
    folder = Path(pretrain.__file__).parent
    recipe = pretrain.read_recipe(folder / "pretrain.yaml")
    assert 8e6 < size.parameters(recipe.encoder) < 16e6 and recipe.encoder.stride == 320
    plan = strict.build(study.Study, yaml.safe_load((folder / "study.yaml").read_text()), "study.yaml")
    plain = yaml.safe_load((folder / "pretrain.yaml").read_text())
    for title, changes in plan.variants.items():
        assert (
            strict.build(pretrain.Pretraining, pretrain.merge(plain, {**plan.base, **changes}), title).encoder.stride
            == 320
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": {"spam": 3}}, "r.yaml.mask.spam: unknown key; did you mean 'span'"),
        (
            {"rounds": [{"features": "layers", "units": 6, "updates": 4}]},
            "features: expected mfcc or layerN, got 'layers'",
        ),
        ({"rounds": [{"features": "layer1", "units": 6, "updates": 4}]}, "round 1: layer1 of which model"),
        ({"save_every": 3, "log_every": 2}, "save_every must be a multiple of log_every"),
        ({"rounds": []}, "rounds: name at least one"),
        ({"valid_clips": 12}, "valid_clips: 12 of 12 clips leave none"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_any_work(clips, tmp_path, changes, message):
    with pytest.raises(StarError, match=message):
        pretrain.main(arguments(clips, tmp_path, **changes))
    assert not list(tmp_path.rglob("units.npz"))


def test_leaks_are_found_by_path_by_bytes_and_by_what_is_heard(clips, tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    random = np.random.default_rng(1)
    wave = random.standard_normal(16000) * np.repeat(random.uniform(0.01, 0.2, 50), 320)
    other = random.standard_normal(16000) * np.repeat(random.uniform(0.01, 0.2, 50), 320)
    soundfile.write(audio / "a.wav", wave, 16000)
    soundfile.write(audio / "copy.wav", wave, 16000)
    soundfile.write(audio / "coded.ogg", np.roll(wave, 7), 16000, subtype="VORBIS")
    soundfile.write(audio / "other.wav", other, 16000)
    with pytest.raises(StarError, match="none.tsv: cannot be read as a manifest"):
        leaks.compare(tmp_path / "none.tsv", tmp_path)
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    head = "path\tsamples\tsplit\n"
    (manifests / "unlabelled.tsv").write_text("path\tsamples\naudio/a.wav\t16000\naudio/other.wav\t16000\n")
    (manifests / "ks.tsv").write_text(
        head + "audio/other.wav\t16000\ttrain\naudio/copy.wav\t16000\ttest\naudio/coded.ogg\t16000\ttest\n"
    )
    result = leaks.compare(manifests / "unlabelled.tsv", manifests)
    assert (result["pretraining"], result["tested"]) == (2, 2)
    assert result["in both"]["by bytes"] == [("audio/a.wav", "audio/copy.wav")] and not result["in both"]["by path"]
    assert result["in both"]["by what is heard"] == [
        ("audio/a.wav", "audio/coded.ogg"),
        ("audio/a.wav", "audio/copy.wav"),
    ]
    (manifests / "ks.tsv").write_text(head + "audio/other.wav\t16000\ttest\n")
    assert leaks.main([str(manifests / "unlabelled.tsv"), str(manifests)]) == 1
    assert json.loads(capsys.readouterr().out)["in both"]["by path"] == [["audio/other.wav", "audio/other.wav"]]
    (manifests / "unlabelled.tsv").write_text("path\tsamples\naudio/a.wav\t16000\n")
    assert leaks.main([str(manifests / "unlabelled.tsv"), str(manifests)]) == 0
