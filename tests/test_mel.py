"""The log-mel front end: its energies against torchaudio's, its frames against HuBERT's, and what a caller may rely
on."""

import math

import numpy as np
import pytest
import torch
import torchaudio

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig, size
from star_upstream.encoder.mel import FLOOR, LogMel, mel_filters
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint

SMALL = {
    "frontend": "mel", "mel_bins": 20, "conv_layers": [[24, 3, 1], [32, 3, 2]], "conv_bias": True, "width": 32,
    "layers": 2, "heads": 2, "head_width": 16, "ffn": 48, "position_kernel": 16, "position_groups": 4, "dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip


def config(**changes) -> EncoderConfig:
    return strict.build(EncoderConfig, SMALL | changes)


def noise(*lengths: int) -> torch.Tensor:
    waves = torch.zeros(len(lengths), max(lengths))
    for i, length in enumerate(lengths):
        waves[i, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(i))
    return waves


def test_filters_and_energies_are_torchaudios():
    torch.testing.assert_close(
        mel_filters(80), torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 80, 16000), atol=1e-5, rtol=0.0
    )
    waves = noise(6000)
    theirs = torchaudio.transforms.MelSpectrogram(n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False)
    # torchaudio centres the window in the 512 points of the transform, which changes phases alone: 56 samples more at
    # both ends
    reference = (theirs(torch.nn.functional.pad(waves, (56, 56))) + FLOOR).log()
    reference = (reference - reference.mean()) / reference.std(correction=0)
    torch.testing.assert_close(LogMel(80)(waves, None), reference, atol=2e-4, rtol=0.0)


def test_as_many_frames_as_huberts_for_every_length():
    hubert, mel = EncoderConfig(), config()
    assert (mel.stride, mel.receptive_field) == (320, 400) == (hubert.stride, hubert.receptive_field)
    lengths = torch.tensor([0, 1, 399, 400, 401, 559, 560, 719, 720, 721, *range(15_000, 16_001, 7), 480_000])
    assert torch.equal(mel.frames(lengths), hubert.frames(lengths))
    encoder = Encoder(mel).eval()
    for length in (1, 400, 559, 719, 720, 5000, 16000):
        output = encoder(noise(length))
        assert output.states[-1].shape[1] == int(output.lengths_B) == hubert.frames(length) == mel.frames(length)


@torch.no_grad()
def test_a_frame_is_centred_where_huberts_is():
    # a click at the middle of HuBERT's frame t, sample 320 t + 200, changes frame t most, and its neighbours by as much
    # as each other
    encoder = Encoder(config(conv_layers=[[8, 1, 1], [32, 1, 2]], position_kernel=1)).eval()
    quiet = 1e-4 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    for frame in (7, 20, 41):
        clicked = quiet.clone()
        clicked[0, 320 * frame + 200] += 0.5
        change = encoder.frontend.mel(clicked, None) - encoder.frontend.mel(quiet, None)
        energy = (change - change.median()).square().sum((0, 1))[::2]
        assert int(energy.argmax()) == frame and energy[frame] > 10 * energy[[frame - 1, frame + 1]].max()


MERGED = {"time_reduction": 2, "upsampling": "last", "hidden_states": "last"}
VARIANTS = [{}, {"conv_norm": "layer"}, {"conv_layers": [[24, 5, 1], [24, 3, 1], [32, 3, 2]]}, MERGED]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_an_utterance_gives_the_same_states_alone_and_in_a_batch(changes):
    encoder = Encoder(config(**changes)).eval()
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    lengths = torch.tensor([16000, 12345, 5019, 720, 400, 150])
    waves = noise(*lengths.tolist())
    together = encoder(waves, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = encoder(waves[i : i + 1, :length])
        for mine, theirs in zip(together.states, alone.states):
            torch.testing.assert_close(mine[i, : theirs.shape[1]], theirs[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_level_of_a_recording_changes_nothing_and_silence_is_finite():
    encoder, wave = Encoder(config()).eval(), noise(8000)
    loud, quiet = encoder(wave), encoder(wave / 4)
    torch.testing.assert_close(loud.states[-1], quiet.states[-1], atol=5e-3, rtol=0.0)
    assert encoder(torch.zeros(1, 8000)).states[-1].isfinite().all()


def test_gradients_reach_every_parameter_and_bf16_keeps_the_energies_in_fp32():
    encoder, waves = Encoder(config()), noise(8000, 8000)
    encoder(waves).states[-1].square().mean().backward()
    front = list(encoder.frontend.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in front)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.frontend.mel(waves, None).dtype == torch.float32
    torch.testing.assert_close(
        encoder.frontend.mel.bfloat16()(waves, None).float(), LogMel(20)(waves, None), atol=0.0, rtol=0.01
    )


def test_it_is_saved_without_its_constants_and_has_its_own_digest(tmp_path):
    encoder = Encoder(config()).eval()
    assert not any("window" in name or "filters" in name for name in encoder.state_dict())
    checkpoint.save(tmp_path / "m", encoder, {})
    again = checkpoint.load(tmp_path / "m")
    assert torch.equal(again(noise(4000)).states[-1], encoder(noise(4000)).states[-1])
    assert checkpoint.digest(again) == checkpoint.digest(encoder)


def test_size_and_cost_by_hand():
    small = config(layers=0, heads=0, ffn=0)
    # mel scale and offset; two convolutions with bias; group norm; LayerNorm and projection; positional convolution;
    # norm
    parts = [2 * 20, 24 * 20 * 3 + 24, 32 * 24 * 3 + 32, 2 * 24, 2 * 32, 32 * 32 + 32, 32 * 8 * 16 + 16 + 32, 2 * 32]
    assert size.parameters(small) == sum(parts)
    # 1 s: 98 log-mel frames, then 98 and 49
    assert size.macs(small, 16000) == 98 * 3 * 24 * 20 + 49 * 3 * 32 * 24 + 49 * 32 * 32 + 50 * 32 * 8 * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conv_layers": [[24, 3, 1], [32, 2, 2]]},
            "conv_layers[1]: kernels over log-mel frames must be odd (frontend: mel), got [32, 2, 2]",
        ),
        ({"conv_layers": EncoderConfig().conv_layers}, "conv_layers[0]: kernels over log-mel frames must be odd"),
        ({"frontend": "mels"}, "frontend: expected 'waveform' or 'light' or 'mel', got 'mels'"),
        ({"mel_bins": 0}, "mel_bins: must be 1 or more, got 0"),
    ],
)
def test_impossible_configurations_are_named(changes, message):
    with pytest.raises(StarError) as error:
        config(**changes)
    assert message in str(error.value)


def test_log_mel_of_a_tone_peaks_at_its_bin():
    tone = torch.from_numpy(np.sin(2 * math.pi * 1000 * np.arange(16000) / 16000)).float()[None]
    edges = 700 * (10 ** (np.linspace(0, 1, 82) * math.log10(1 + 8000 / 700)) - 1)
    assert int(LogMel(80)(tone, None)[0].mean(-1).argmax()) == int(np.abs(edges[1:-1] - 1000).argmin())
