"""compat: s3prl imports and reads audio; the sox effects give what SoX gives."""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from star_upstream import compat
from star_upstream.errors import StarError

TRIM = [["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]]


def effects(wave, chain, rate=16_000):
    return compat.apply_effects_tensor(torch.as_tensor(wave, dtype=torch.float32), rate, chain)


def loud_and_silent(*pieces):
    """A slow ramp, all samples different, times 1 or 0 in turn."""
    total = sum(n for n, _ in pieces)
    ramp = 0.3 + np.arange(1, total + 1) / 1e6
    return (ramp * np.concatenate([np.full(n, float(on)) for n, on in pieces])).astype(np.float32)


def test_importing_changes_nothing_and_legacy_names_refuse_use():
    code = """
import torchaudio, huggingface_hub
before = set(dir(torchaudio)), set(dir(huggingface_hub))
from star_upstream import compat
assert before == (set(dir(torchaudio)), set(dir(huggingface_hub)))
compat.apply_legacy_runner()
from star_upstream.errors import StarError
try:
    huggingface_hub.HfFolder()
except StarError as error:
    assert "huggingface_hub" in str(error)
assert compat.apply() is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_apply_twice_patches_once_and_the_problems_import():
    first = compat.apply()
    assert compat.apply() == first
    from s3prl.problem import SuperbASR, SuperbIC, SuperbKS, SuperbSD, SuperbSID

    assert SuperbKS().default_config()["build_downstream"]["hidden_size"] == 256
    assert all(p().default_config() for p in (SuperbASR, SuperbIC, SuperbSD, SuperbSID))


def test_fbank_runs_through_s3prl():
    compat.apply()
    from s3prl.nn import S3PRLUpstream

    states, lengths = S3PRLUpstream("fbank")(torch.randn(2, 16_000), torch.tensor([16_000, 8_000]))
    assert len(states) == 1 and states[0].shape == (2, 100, 240) and lengths[0].tolist() == [100, 50]


def test_files_go_round(tmp_path):
    compat.apply()
    import torchaudio

    wave_CN = torch.rand(2, 1000) - 0.5
    torchaudio.save(str(tmp_path / "a.wav"), wave_CN, 8_000)
    info = torchaudio.info(str(tmp_path / "a.wav"))
    assert (info.sample_rate, info.num_frames, info.num_channels) == (8_000, 1000, 2)
    back_CN, rate = torchaudio.load(str(tmp_path / "a.wav"))
    assert rate == 8_000 and torch.equal(back_CN, wave_CN)
    part_CN, _ = compat._load(tmp_path / "a.wav", frame_offset=10, num_frames=5)
    assert torch.equal(part_CN, wave_CN[:, 10:15])


def test_recipe_effects_through_s3prls_loader(tmp_path):
    compat.apply()
    from s3prl.dataio.dataset import LoadAudio

    soundfile.write(tmp_path / "a.wav", np.full(1600, 0.5), 16_000)
    loader = LoadAudio([str(tmp_path / "a.wav")], sox_effects=[["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]])
    assert torch.allclose(loader[0]["wav"], torch.full((1600,), 0.5 * 10 ** (-3 / 20)), atol=1e-4)


def test_gain_channels_rate():
    wave_CN = torch.tensor([[0.2, 0.8], [0.4, -0.8]])
    assert torch.allclose(effects(wave_CN, [["channels", "1"]])[0], torch.tensor([[0.3, 0.0]]))
    assert torch.allclose(effects(wave_CN[:1], [["gain", "6.0206"]])[0], torch.tensor([[0.4, 1.0]]), atol=1e-5)
    wave_CN, rate = effects(torch.zeros(1, 8000), [["rate", "16000"]], 8_000)
    assert rate == 16_000 and wave_CN.shape == (1, 16_000)


@pytest.mark.parametrize(
    "effect", [["reverb"], ["silence", "1", "0.1", "0.1%"], ["channels", "3"], ["silence", "1", "0.1", "5", "-1", "0.1", "5"]]
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


def test_only_the_espnet_message_is_silenced(caplog):
    compat.apply()
    logger = logging.getLogger("s3prl.upstream.espnet_hubert.expert")
    logger.warning("ESPnet is not installed, cannot use espnet_hubert upstream")
    logger.warning("another")
    assert caplog.messages == ["another"]
