"""compat: s3prl imports and reads audio; s3prl's loader has SoX's effects."""

import logging
import subprocess
import sys

import numpy as np
import soundfile
import torch

from star_upstream import compat


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


def test_only_the_espnet_message_is_silenced(caplog):
    compat.apply()
    logger = logging.getLogger("s3prl.upstream.espnet_hubert.expert")
    logger.warning("ESPnet is not installed, cannot use espnet_hubert upstream")
    logger.warning("another")
    assert caplog.messages == ["another"]
