"""Units: features framed as the encoder frames, layers as each clip has them alone, clusters found again."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny_clips
import torch
from tiny_clips import CONFIG

from star_upstream import units
from star_upstream.data.clips import Clip, scan
from star_upstream.encoder import Encoder
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny_clips.make(tmp_path_factory.mktemp("clips"))


def test_mfcc_has_the_encoders_frames(clips):
    for clip in clips:
        table = units.mfcc(clip, CONFIG)
        assert table.shape == (CONFIG.frames(clip.samples), 39)
        assert np.abs(table.astype(np.float32).mean(0)).max() < 0.01


def test_layers_are_those_of_each_clip_alone(clips):
    torch.manual_seed(0)
    encoder = Encoder(CONFIG).eval()
    first, second = units.layers(clips, encoder, [0, 2], seconds=4.0)
    for clip, zero, two in zip(clips, first, second):
        wave = torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0])[None]
        with torch.no_grad():
            states = encoder(wave).states
        np.testing.assert_allclose(zero, states[0][0], atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(two, states[2][0], atol=2e-3, rtol=2e-3)


def test_a_clip_without_sound_has_units_and_one_cut_short_is_named(clips, tmp_path):
    """Pretraining takes its crops from silent clips too."""
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    given, encoder = [*clips, *scan([tmp_path]).clips], Encoder(CONFIG).eval()
    (found,) = units.layers(given, encoder, [1])
    assert found[-1].shape == (CONFIG.frames(16000), CONFIG.width) and np.isfinite(found[-1]).all()
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    with pytest.raises(StarError, match="silent.wav: has no units: 8000 samples when decoded"):
        units.layers(given, encoder, [1])


def test_clusters_are_found_and_kept(tmp_path):
    random = np.random.default_rng(0)
    labels = [random.integers(0, 4, n) for n in (50, 80, 30)]
    centres = 10.0 * np.eye(4, 6)
    made = [centres[line] + 0.1 * random.standard_normal((len(line), 6)) for line in labels]
    clips = [Clip(str(i), 320 * len(line)) for i, line in enumerate(labels)]
    asked = []

    def features(wanted):
        """In another order than they are asked for."""
        asked.append(len(wanted))
        yield from [(i, made[int(clip.path)]) for i, clip in enumerate(wanted)][::-1]

    found = units.cluster(clips, features, 4, seed=0)
    assert asked == [3, 3]
    table = pd.crosstab(np.concatenate(labels), np.concatenate(found)).to_numpy()
    assert (np.sort(table, 1)[:, :3] == 0).all()
    units.write(tmp_path / "u.npz", found)
    assert all(np.array_equal(a, b) for a, b in zip(units.read(tmp_path / "u.npz", [50, 80, 30]), found, strict=True))
    with pytest.raises(StarError, match="holds the units of other audio"):
        units.read(tmp_path / "u.npz", [50, 80, 31])
    with pytest.raises(StarError, match="200 of 160 frames; lower the number of units"):
        units.cluster(clips, features, 200, seed=0)


def test_kmeans_is_fitted_on_clips_drawn_from_all(monkeypatch):
    monkeypatch.setattr(units, "FITTED", 2.0)
    clips, heard = [Clip(str(i), 16000) for i in range(20)], []

    def features(wanted):
        heard.append([int(clip.path) for clip in wanted])
        yield from ((i, np.full((50, 2), float(clip.path))) for i, clip in enumerate(wanted))

    first = units.cluster(clips, features, 2, seed=0)
    again = units.cluster(clips, features, 2, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again)) and [len(h) for h in heard] == [2, 20, 2, 20]
    assert heard[0] == heard[2] != [0, 1]


def test_units_of_a_model_with_other_edges_are_fitted():
    assert units.fit_frames(np.array([1, 2, 3]), 2).tolist() == [1, 2]
    assert units.fit_frames(np.array([1, 2, 3]), 4).tolist() == [1, 2, 3, 3]
