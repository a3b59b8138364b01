"""The front ends side by side: where their frames lie, what the light one costs, and statistics that run."""

import pytest
import torch

from star_upstream import strict
from star_upstream.encoder import HUBERT_CONVS, Encoder, EncoderConfig, size
from star_upstream.encoder.frontend import PRIOR, normalize_running
from star_upstream.encoder.mel import PRIOR as MEL_PRIOR
from star_upstream.encoder.mel import LogMel
from star_upstream.errors import StarError

SMALL = {
    "width": 32, "layers": 2, "heads": 2, "head_width": 16, "ffn": 48, "position_kernel": 16, "position_groups": 4,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
CONVS = {
    "light": [[8, 40, 20], [16, 7, 4], [32, 4, 4]],
    "mel": [[24, 3, 1], [32, 3, 2]],
    "waveform": [[8, 10, 5], [8, 8, 8], [32, 11, 8]],
}
LENGTHS = (9000, 5019, 720, 150)


def config(frontend="light", **changes) -> EncoderConfig:
    return strict.build(EncoderConfig, {"frontend": frontend, "conv_layers": CONVS[frontend], **SMALL, **changes})


def waves(*lengths: int) -> torch.Tensor:
    found = torch.zeros(len(lengths), max(lengths))
    for i, length in enumerate(lengths):
        found[i, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(i)) + 0.02
    return found


def centre(config: EncoderConfig, frame: int) -> float:
    """The sample around which what frame ``frame`` depends on lies: the mean over random weights and inputs."""
    found = []
    for seed in range(6):
        torch.manual_seed(seed)
        encoder = Encoder(config).eval()
        waves_BN = (0.1 * torch.randn(1, 16_000)).requires_grad_()
        features_BTD, _ = encoder.features(waves_BN)
        (features_BTD[0, frame] * torch.randn(features_BTD.shape[-1])).sum().backward()
        weight_N = waves_BN.grad[0, 320 * frame - 800 : 320 * frame + 1200].square()
        found.append((weight_N * torch.arange(-800.0, 1200.0)).sum() / weight_N.sum())
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("frontend", ["light", "mel"])
def test_frames_lie_on_huberts(frontend):
    """Within an eighth of a frame of the middle of HuBERT's 400 samples (docs/streaming.md states the mean)."""
    offset = centre(config(frontend, conv_norm="layer"), 20) - 199.5
    assert abs(offset) < 40, offset
    hubert, own = EncoderConfig(), EncoderConfig(frontend=frontend)
    assert (own.receptive_field, own.stride) == (hubert.receptive_field, hubert.stride) == (400, 320)
    lengths = torch.tensor([0, 1, 399, 400, 719, 720, 721, *range(15_000, 16_001, 7)])
    assert torch.equal(own.frames(lengths), hubert.frames(lengths))


def test_the_convolutions_of_a_front_end_that_names_none():
    assert EncoderConfig().conv_layers == HUBERT_CONVS
    assert EncoderConfig(frontend="light").conv_layers == ((64, 40, 20), (128, 7, 4), (512, 4, 4))
    assert Encoder(EncoderConfig(frontend="mel", layers=1)).frontend.convs[0].in_channels == 80


def test_size_and_cost_of_the_light_one_by_hand():
    small = config(layers=0, heads=0, ffn=0)
    parts = [8 * 40, 16 * 8 * 7, 32 * 16 * 4, 2 * 8, 2 * 32, 32 * 32 + 32, 32 * 8 * 16 + 16 + 32, 2 * 32]
    assert size.parameters(small) == sum(parts)
    # 1 s: 799 and 199 steps, then 49 frames
    front = 799 * 40 * 8 + 199 * 7 * 16 * 8 + 49 * 4 * 32 * 16
    assert size.macs(small, 16_000) == front + 49 * 32 * 32 + 50 * 32 * 8 * 16


VARIANTS = [
    {}, {"conv_norm": "layer"}, {"statistics": "running"}, {"frontend": "mel", "statistics": "running"},
    {"frontend": "mel", "statistics": "running", "conv_norm": "layer", "normalize_waveform": True},
    {"frontend": "waveform", "statistics": "running", "normalize_waveform": True},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_an_utterance_gives_the_same_states_alone_and_in_a_batch(changes):
    torch.manual_seed(0)
    encoder = Encoder(config(**changes)).eval()
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    together = encoder(waves(*LENGTHS), torch.tensor(LENGTHS))
    for i, length in enumerate(LENGTHS):
        alone = encoder(waves(*LENGTHS)[i : i + 1, :length])
        for mine, theirs in zip(together.states, alone.states):
            assert theirs.isfinite().all() and theirs.shape[1] == encoder.config.frames(length)
            torch.testing.assert_close(mine[i, : theirs.shape[1]], theirs[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS[2:], ids=str)
@torch.no_grad()
def test_running_statistics_know_nothing_of_what_comes(changes):
    torch.manual_seed(0)
    encoder, whole_BN = Encoder(config(**changes)).eval(), waves(9000)
    before, _ = encoder.features(whole_BN[:, :5000])
    after, _ = encoder.features(torch.cat([whole_BN[:, :5000], 3 + whole_BN[:, 5000:]], 1))
    known = encoder.config.frames(5000) - 2  # over log-mel frames the last ones see zeros for what comes
    torch.testing.assert_close(before[:, :known], after[:, :known], atol=1e-5, rtol=1e-5)
    assert (before[:, -1] - encoder.features(whole_BN)[0][:, known + 1]).abs().max() < 3


@torch.no_grad()
def test_running_statistics_by_hand():
    wave_BN = waves(500)
    found_BN, moments_3B1 = normalize_running(
        wave_BN, None, torch.tensor([0.0, 0.0, 0.0]).double()[:, None, None], 1e-5
    )
    for n in (0, 1, 7, 499):
        part_N = wave_BN[0, : n + 1].double()
        expected = (part_N[-1] - part_N.mean()) / (part_N.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(found_BN[0, n].double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        moments_3B1[:, 0, 0],
        torch.stack([torch.tensor(500.0).double(), wave_BN.sum().double(), wave_BN.double().square().sum()]),
    )

    mel = LogMel(20, running=True)
    energies_BCM = mel.energies(waves(16_000)).double()
    count, mean, deviation = MEL_PRIOR
    for m in (0, 40, 97):
        part_CM = energies_BCM[0, :, : m + 1]
        total = count * 20 + part_CM.numel()
        average = (count * 20 * mean + part_CM.sum()) / total
        variance = (count * 20 * (mean**2 + deviation**2) + part_CM.square().sum()) / total - average**2
        expected_C = (part_CM[:, -1] - average) / (variance + 1e-5).sqrt()
        torch.testing.assert_close(mel(waves(16_000), None)[0, :, m].double(), expected_C, atol=1e-4, rtol=1e-4)
    assert PRIOR[0] == 8000 and mel(torch.zeros(1, 16_000), None).abs().max() < 4


def test_gradients_pass_through_running_statistics():
    encoder = Encoder(config("mel", statistics="running", conv_norm="group"))
    encoder(waves(4000, 4000)).states[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.frontend.parameters())


@pytest.mark.parametrize("count", [1, 4])
def test_a_light_front_end_has_two_or_three_convolutions(count):
    with pytest.raises(StarError, match=f"conv_layers: frontend 'light' has two or three convolutions, got {count}"):
        config(conv_layers=[[8, 4, 4]] * count)
