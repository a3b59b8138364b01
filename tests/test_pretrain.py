"""The script that made the mini teacher: units, masks, and both rounds end to end on a handful of clips."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml

from star_upstream import checkpoint
from star_upstream.encoder import EncoderConfig
from star_upstream.errors import StarError
from star_upstream.mini import pretrain

ENCODER = {
    "conv_layers": [[8, 10, 5], [8, 8, 8], [16, 8, 8]], "projection": False, "width": 16, "layers": 2, "heads": 2, "head_width": 8, "ffn": 32,
    "position_kernel": 8, "position_groups": 2, "dropout": 0.0, "attention_dropout": 0.0,
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


def recipe_file(path, **changes):
    values = {
        "encoder": ENCODER,
        "rounds": [{"features": "mfcc", "units": 6, "minutes": 0.03}, {"features": "layer1", "units": 8, "minutes": 0.03}],
        "batch_seconds": 8.0,
    }
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def test_mfcc_has_the_encoders_frames(clips):
    config = EncoderConfig(**{**ENCODER, "conv_layers": tuple(map(tuple, ENCODER["conv_layers"]))})
    for file in sorted(clips.iterdir()):
        table = pretrain.mfcc(str(file), config)
        assert table.shape == (config.frames(soundfile.info(file).frames), 39)
        assert np.abs(table.astype(np.float32).mean(0)).max() < 0.01


def test_masks_cover_spans_and_are_drawn_anew():
    recipe = pretrain.Pretraining(EncoderConfig(), ())
    first, again, other = (pretrain.draw_mask((50, 200), recipe, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # a frame stays unmasked when none of the 10 places before it starts a span: 1 - (1 - 0.065)^10 is 49 %
    assert 0.42 < first.float().mean() < 0.56
    assert first.any(1).all()
    runs = np.diff(np.flatnonzero(np.diff(np.pad(first.numpy().astype(int), ((0, 0), (1, 1)))[0])))[::2]
    assert min(runs[:-1]) >= recipe.mask_span


def test_two_rounds_and_a_rerun(clips, tmp_path, capsys):
    arguments = [str(clips), "--out", str(tmp_path / "run"), "--recipe", str(recipe_file(tmp_path / "r.yaml"))]
    pretrain.main(arguments)
    made = json.loads(capsys.readouterr().out)["encoder"]
    encoder = checkpoint.load(made)
    assert encoder.config.layers == 2 and checkpoint.describe(made)["provenance"]["round"] == 2
    units = np.load(tmp_path / "run" / "round2" / "units.npz")
    assert 1 < len(np.unique(units["units"])) <= 8
    assert units["lengths"].tolist() == sorted(encoder.config.frames(soundfile.info(f).frames) for f in clips.iterdir())
    before = (tmp_path / "run" / "round1" / "state.pt").stat().st_mtime_ns
    pretrain.main(arguments)
    assert json.loads(capsys.readouterr().out)["encoder"] == made
    assert (tmp_path / "run" / "round1" / "state.pt").stat().st_mtime_ns == before


def test_an_unfinished_round_goes_on(clips, tmp_path, capsys):
    recipe = recipe_file(tmp_path / "r.yaml", rounds=[{"features": "mfcc", "units": 6, "minutes": 0.02}])
    arguments = [str(clips), "--out", str(tmp_path / "run"), "--recipe", str(recipe)]
    pretrain.main(arguments)
    first = torch.load(tmp_path / "run" / "round1" / "state.pt", weights_only=True)
    # as after a kill: the state is there, the finished encoder is not, and the budget has not run out
    for file in (tmp_path / "run" / "round1" / "encoder").iterdir():
        file.unlink()
    (tmp_path / "run" / "round1" / "encoder").rmdir()
    recipe_file(recipe, rounds=[{"features": "mfcc", "units": 6, "minutes": (first["spent"] + 1.0) / 60}])
    pretrain.main(arguments)
    second = torch.load(tmp_path / "run" / "round1" / "state.pt", weights_only=True)
    assert second["updates"] > first["updates"] and second["spent"] > first["spent"]


def test_the_shipped_recipe_is_strict(clips, tmp_path):
    with pytest.raises(StarError, match="r.yaml.mask_spam: unknown key; did you mean 'mask_span'"):
        pretrain.main([str(clips), "--out", str(tmp_path), "--recipe", str(recipe_file(tmp_path / "r.yaml", mask_spam=3))])
