"""effects: the waveforms that SoX gives."""

import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from star_upstream.effects import apply_effects_tensor
from star_upstream.errors import StarError

TRIM = [["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]]


def effects(wave, chain, rate=16_000):
    return apply_effects_tensor(torch.as_tensor(wave, dtype=torch.float32), rate, chain)


def loud_and_silent(*pieces):
    """A slow ramp, all samples different, times 1 or 0 in turn."""
    total = sum(n for n, _ in pieces)
    ramp = 0.3 + np.arange(1, total + 1) / 1e6
    return (ramp * np.concatenate([np.full(n, float(on)) for n, on in pieces])).astype(np.float32)


def test_gain_channels_rate():
    wave_CN = torch.tensor([[0.2, 0.8], [0.4, -0.8]])
    assert torch.allclose(effects(wave_CN, [["channels", "1"]])[0], torch.tensor([[0.3, 0.0]]))
    assert torch.allclose(effects(wave_CN[:1], [["gain", "6.0206"]])[0], torch.tensor([[0.4, 1.0]]), atol=1e-5)
    wave_CN, rate = effects(torch.zeros(1, 8000), [["rate", "16000"]], 8_000)
    assert rate == 16_000 and wave_CN.shape == (1, 16_000)


@pytest.mark.parametrize(
    "effect",
    [["reverb"], ["silence", "1", "0.1", "0.1%"], ["channels", "3"], ["silence", "1", "0.1", "5", "-1", "0.1", "5"]],
)
def test_other_effects_are_refused(effect):
    with pytest.raises(StarError, match="sox effect"):
        effects(torch.zeros(1, 100), [effect])


def test_silence_keeps_what_sox_keeps():
    # Positions read off SoX 14.4.2: the window of 320 samples stays loud for 319 more, then 1600 are held and dropped.
    wave = loud_and_silent((8000, 1), (8000, 0), (1500, 1), (4000, 0), (1600, 1), (5000, 0), (1601, 1), (100, 0))
    kept = [(0, 8318), (16000, 17818), (21500, 23418), (28100, 29800)]
    out = effects(wave[None], TRIM)[0][0].numpy()
    assert np.array_equal(out, np.concatenate([wave[a : b + 1] for a, b in kept]))
    short = loud_and_silent((8000, 1), (1900, 0), (8000, 1))
    assert np.array_equal(effects(short[None], TRIM)[0][0].numpy(), short)
    assert effects(torch.zeros(1, 16_000), TRIM)[0].shape == (1, 0)
    assert effects(torch.zeros(1, 0), TRIM)[0].shape == (1, 0)


@pytest.mark.skipif(shutil.which("sox") is None, reason="needs the sox program")
def test_silence_against_the_sox_program(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(5):
        wave = rng.standard_normal(60_000) * np.repeat(rng.choice([0.0, 3e-4, 1e-3, 2e-3, 0.1], 30), 2000)
        soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="PCM_32")
        subprocess.run(["sox", "-D", tmp_path / "a.wav", "-b", "32", tmp_path / "b.wav", *TRIM[0]], check=True)
        wave, expected = (soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("a.wav", "b.wav"))
        assert np.allclose(effects(wave[None], TRIM)[0][0].numpy(), expected, atol=1e-6)
