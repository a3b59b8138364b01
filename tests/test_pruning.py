"""Gates, expected size and cut: the cut model is the gated one, and the closed form is its size."""

import dataclasses
import math

import pytest
import torch

from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.encoder import size as encoder_size
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.pruning.config import GateConfig
from star_upstream.pruning.cut import cut
from star_upstream.pruning.gates import GatedEncoder, HardConcrete
from star_upstream.pruning.size import Kept, Size
from star_upstream.training import recipe

HUBERT = EncoderConfig(
    conv_layers=((8, 10, 5), (12, 3, 2), (10, 3, 2)),
    width=24,
    position_kernel=6,
    position_groups=4,
    layers=3,
    heads=3,
    head_width=8,
    ffn=20,
)
WAVLM = dataclasses.replace(HUBERT, relative_position=RelativePosition(buckets=8, max_distance=16, total_heads=3))
MODELS = {
    "hubert": HUBERT,
    "wav2vec_pre_norm": dataclasses.replace(HUBERT, norm="pre", conv_bias=True, normalize_waveform=True),
    "wavlm": WAVLM,
    "wavlm_pre_norm": dataclasses.replace(WAVLM, norm="pre"),
    "pruned_before": dataclasses.replace(
        WAVLM,
        heads=(2, 0, 3),
        ffn=(20, 7, 0),
        feature_scale=True,
        relative_position=dataclasses.replace(WAVLM.relative_position, kept_heads=((0, 2), (), (1, 0, 2))),
    ),
    "no_projection": dataclasses.replace(HUBERT, conv_layers=((8, 10, 5), (12, 3, 2), (24, 3, 2)), projection=False),
    "no_projection_norm": dataclasses.replace(HUBERT, projection_norm=False, output_projection=5),
    "reuse": dataclasses.replace(HUBERT, reuse_attention=(False, True, False)),
    "log_mel": dataclasses.replace(
        HUBERT, frontend="mel", mel_bins=10, conv_layers=((8, 3, 1), (12, 3, 2)), conv_bias=True
    ),
}
ALL = GateConfig(attention_layers=True, ffn_layers=True)


def gated(name: str, options: GateConfig | None = None, seed: int = 0) -> GatedEncoder:
    config, generator = MODELS[name], torch.Generator().manual_seed(seed)
    if options is None:
        options = dataclasses.replace(ALL, heads=name != "reuse", attention_layers=name != "reuse")
    torch.manual_seed(seed)
    encoder = Encoder(config)
    with torch.no_grad():  # biases and norms that are not 0 and 1, so that a wrong one shows
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model = GatedEncoder(encoder, options)
    spread(model, 2.0, seed)
    return model


def spread(model: GatedEncoder, scale: float, seed: int) -> None:
    """Random locations: some gates surely closed, some open, some between."""
    generator = torch.Generator().manual_seed(seed)
    for gate in model.gates.values():
        gate.location_n.data = scale * torch.randn(gate.count, generator=generator)


def pattern(model: GatedEncoder, seed: int) -> None:
    """Every gate surely 0 or surely 1; each convolution keeps a channel."""
    generator = torch.Generator().manual_seed(seed)
    for name, gate in model.gates.items():
        open_n = torch.rand(gate.count, generator=generator) < 0.5
        open_n[0] |= name.startswith("conv")
        gate.location_n.data = torch.where(open_n, 100.0, -100.0)


def count(encoder: torch.nn.Module) -> int:
    return sum(p.numel() for p in encoder.parameters())


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    lengths_B = torch.tensor([900, 640, 333])
    waves_BN = torch.randn(3, 900, generator=torch.Generator().manual_seed(1))
    return waves_BN * (torch.arange(900) < lengths_B[:, None]), lengths_B


def assert_same_states(model: GatedEncoder, encoder: Encoder, lengths_B: torch.Tensor | None = None) -> None:
    waves_BN, _ = waves()
    with torch.no_grad():
        ours, theirs = model.eval()(waves_BN, lengths_B), encoder(waves_BN, lengths_B)
    frames = ours.lengths_B.tolist() if lengths_B is not None else [ours.features_BTD.shape[1]] * 3
    pairs = [(ours.features_BTD, theirs.features_BTD), *zip(ours.states, theirs.states, strict=True)]
    for own_BTD, other_BTD in pairs:
        for i, n in enumerate(frames):
            torch.testing.assert_close(own_BTD[i, :n], other_BTD[i, :n], rtol=1e-5, atol=1e-5)


# cut


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_gated_equals_cut(name, seed):
    model = gated(name, seed=seed)
    encoder = cut(model)
    assert count(encoder) < count(model.encoder)
    assert_same_states(model, encoder)
    assert_same_states(model, encoder, waves()[1])


@pytest.mark.parametrize("name", ["hubert", "wav2vec_pre_norm", "wavlm", "wavlm_pre_norm"])
def test_gated_equals_cut_where_heads_or_units_all_vanish(name):
    model = gated(name, GateConfig())
    model.gates["heads_1"].location_n.data.fill_(-50)
    model.gates["units_2"].location_n.data.fill_(-50)
    model.gates["conv_1"].location_n.data.copy_(torch.linspace(-40, -30, 12))
    encoder = cut(model)
    assert encoder.layers[1].attention is None and encoder.layers[2].ffn_in is None
    assert encoder.config.conv_layers[1][0] == 1
    best = model.encoder.state_dict()["frontend.convs.1.weight"][11, model.settled()["conv_0"] > 0]
    value = encoder.frontend.convs[1].weight[0] / model.settled()["conv_0"][model.settled()["conv_0"] > 0, None]
    torch.testing.assert_close(value, best)  # the strongest channel is the one that stays
    assert_same_states(model, encoder, waves()[1])


def test_kept_heads_of_the_position_bias_are_named_as_in_the_table():
    model = gated("pruned_before", GateConfig())
    for i, locations in ((0, [-50.0, 50.0]), (2, [50.0, -50.0, 50.0])):
        model.gates[f"heads_{i}"].location_n.data = torch.tensor(locations)
    assert cut(model).config.relative_position.kept_heads == ((2,), (), (1, 2))


def test_the_cut_model_is_an_ordinary_checkpoint(tmp_path):
    model = gated("wavlm")
    encoder = cut(model)
    checkpoint.save(tmp_path / "cut", encoder, {})
    checkpoint.save(tmp_path / "whole", model.encoder, {})
    assert_same_states(model, checkpoint.load(tmp_path / "cut"))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("cut", "whole")]
    assert sizes[0] < 0.8 * sizes[1]


def test_cutting_leaves_the_gated_model_as_it_was():
    model = gated("hubert")
    before = checkpoint.digest(model.encoder)
    encoder = cut(model)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    assert checkpoint.digest(model.encoder) == before


@pytest.mark.parametrize("name", ["hubert", "wavlm"])
def test_rounded_channels_are_exact_too(name):
    options = GateConfig(round_channels=4, round_units=8)
    model = gated(name, options)
    encoder, plain = cut(model), cut(gated(name, GateConfig()))
    whole = model.config
    for (rounded, _, _), (unrounded, _, _), (full, _, _) in zip(
        encoder.config.conv_layers, plain.config.conv_layers, whole.conv_layers
    ):
        assert rounded == min(-(-unrounded // 4) * 4, full) and (rounded % 4 == 0 or rounded == full)
    assert all(rounded == min(-(-n // 8) * 8, 20) for rounded, n in zip(encoder.config.ffn, plain.config.ffn))
    assert count(encoder) > count(plain)
    assert_same_states(model, encoder, waves()[1])


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (dataclasses.replace(HUBERT, conv_norm="layer"), GateConfig(), "conv_channels: .*set it to false"),
        (MODELS["reuse"], GateConfig(), "set heads and attention_layers to false"),
    ],
)
def test_what_cannot_be_cut_exactly_is_refused(config, options, message):
    with pytest.raises(StarError, match=message):
        GatedEncoder(Encoder(config), options)


def test_a_model_with_layer_norms_is_cut_without_its_channels():
    torch.manual_seed(0)
    model = GatedEncoder(
        Encoder(dataclasses.replace(HUBERT, conv_norm="layer", conv_bias=True)), GateConfig(conv_channels=False)
    )
    spread(model, 2.0, 0)
    assert cut(model).config.conv_layers == HUBERT.conv_layers
    assert_same_states(model, cut(model), waves()[1])
    assert model.size()(model.kept()) == count(cut(model))


# size


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_expected_size_of_sure_gates_is_the_cut_models(name, seed):
    model = gated(name)
    pattern(model, seed)
    encoder = cut(model)
    size, macs = model.size(), model.size("macs", 0.1)
    assert size(model.expected()).item() == pytest.approx(count(encoder), rel=1e-9)
    assert size(model.kept()) == size.parameters(model.kept()) == count(encoder)
    assert macs(model.expected()).item() == pytest.approx(encoder_size.macs(encoder.config, 1600), rel=1e-9)
    assert macs(model.kept()) == encoder_size.macs(encoder.config, 1600)
    assert size.original == count(model.encoder) and macs.original == encoder_size.macs(model.config, 1600)


@pytest.mark.parametrize(("name", "measure"), [("hubert", "macs"), ("wavlm_pre_norm", "parameters")])
def test_expected_size_is_the_mean_over_draws(name, measure):
    model = gated(name)
    size, draws = model.size(measure, 0.1), []
    torch.manual_seed(0)
    for _ in range(1500):
        draws.append(float(size(model._count({n: (gate.sample_n() > 0).double() for n, gate in model.gates.items()}))))
    draws = torch.tensor(draws, dtype=torch.float64)
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - size(model.expected()).item()) < 3.5 * error and error < 0.02 * size.original


def test_size_of_a_whole_model_by_hand():
    config = EncoderConfig(
        conv_layers=((2, 10, 5), (3, 3, 2)),
        width=4,
        position_kernel=2,
        position_groups=2,
        layers=1,
        heads=2,
        head_width=2,
        ffn=5,
    )
    front = 2 * 10 + 2 * 2 + 3 * 2 * 3 + 2 * 3 + 3 * 4 + 4
    layer = 4 * (4 * 4 + 4) + (4 * 5 + 5) + (5 * 4 + 4) + 4 * 4
    position = 4 * 2 * 2 + 2 + 4
    assert Size(config)(Kept.whole(config)) == front + layer + position + 2 * 4
    half = Kept([1, 3], [1], [1], [2], [1])
    fewer = (10 + 2 + 9) + (4 * 4 * 2 + 3 * 2) + 3 * (4 + 4 + 1)
    assert Size(config)(Kept.whole(config)) - Size(config)(half) == fewer


def test_size_differentiates_to_each_gates_own_part():
    model = gated("hubert", GateConfig())
    probability = {n: gate.open_n().detach().requires_grad_() for n, gate in model.gates.items()}
    model.size()(model._count(probability)).backward()
    assert torch.allclose(probability["units_0"].grad[:19], torch.tensor(2.0 * 24 + 1, dtype=torch.float64))
    assert all((p.grad > 0).all() for p in probability.values())


# the gates


def test_probability_of_an_open_gate_is_the_share_of_draws():
    gate = HardConcrete(5, GateConfig(), "heads")
    gate.location_n.data = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
    torch.manual_seed(0)
    draws = torch.stack([gate.sample_n().detach() for _ in range(20_000)])
    torch.testing.assert_close((draws > 0).double().mean(0), gate.open_n().detach(), atol=0.012, rtol=0)
    assert (draws[:, 2] == 0).any() and (draws[:, 2] == 1).any() and ((draws[:, 2] > 0) & (draws[:, 2] < 1)).any()
    medians = torch.stack([column[column > 0].median() for column in draws.unbind(1)])
    torch.testing.assert_close(gate.settled_n(shift=100.0), medians, atol=0.05, rtol=0)


def test_gates_start_where_they_were_asked_to():
    for keep, location, probability in ((0.5, 0.0, 0.832), (0.99, math.log(99.0), 0.998)):
        gate = HardConcrete(7, GateConfig(initial_keep=keep, initial_noise=0.0), "heads")
        torch.testing.assert_close(gate.location_n.detach(), torch.full((7,), location))
        assert gate.open_n()[0].item() == pytest.approx(probability, abs=5e-4)
    gate = HardConcrete(
        7, GateConfig(initial_keep=0.9, initial_noise=0.0, stretch=(-0.3, 1.2), temperature=0.5), "heads"
    )
    # sigmoid(log(9) - 0.5 log(0.3 / 1.2)) = 1 / (1 + 0.5 / 9)
    torch.testing.assert_close(gate.open_n(), torch.full((7,), 18 / 19, dtype=torch.float64))


def test_gates_start_as_dphuberts():
    """Numbers of its authors' code (commit c18093f): locations, their noise, and HuBERT Base's expected sparsity."""
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig())
    torch.manual_seed(0)
    model = GatedEncoder(encoder, recipe.load("dphubert").pruning.gates)
    for name, gate in model.gates.items():
        assert gate.location_n.mean().item() == pytest.approx(
            0.0 if name.startswith("units") else math.log(99.0), abs=0.01
        )
    units_n = torch.cat([gate.location_n.detach() for name, gate in model.gates.items() if name.startswith("units")])
    assert len(units_n) == 12 * 3072 and units_n.std().item() == pytest.approx(0.01, rel=0.02)
    size = model.size()
    assert size.original == 94_370_944 and size.sparsity(model.expected()).item() == pytest.approx(0.1018, abs=5e-5)
    parts = GatedEncoder(encoder, GateConfig(attention_layers=True, ffn_layers=True, initial_noise=0.0))
    assert all(
        parts.gates[name].location_n.tolist() == pytest.approx([math.log(99.0)] * 12) for name in ("attentions", "ffns")
    )


def test_one_draw_a_forward_and_none_in_eval():
    model, (waves_BN, lengths_B) = gated("hubert"), waves()
    model.eval()
    first, second = (model(waves_BN, lengths_B).states[-1] for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(waves_BN, lengths_B).states[0] for _ in range(2))
    assert not torch.allclose(first, second)


def test_open_gates_leave_the_encoder_as_it_is():
    model, (waves_BN, lengths_B) = gated("wavlm"), waves()
    for gate in model.gates.values():
        gate.location_n.data.fill_(50.0)
    plain = Encoder(model.config)
    plain.load_state_dict(model.encoder.state_dict())
    for mode in (True, False):
        for own, other in zip(model.train(mode)(waves_BN, lengths_B).states, plain.eval()(waves_BN, lengths_B).states):
            if not mode:
                torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    assert model.encoder.state_dict().keys() == plain.state_dict().keys()


def test_every_gate_gets_a_gradient_from_the_states():
    model, (waves_BN, lengths_B) = (
        gated("hubert", GateConfig(attention_layers=True, ffn_layers=True, initial_keep=0.5)),
        waves(),
    )
    for gate in model.gates.values():
        gate.location_n.data.zero_()
    for seed in range(30):
        torch.manual_seed(seed)
        sum(state.square().sum() for state in model(waves_BN, lengths_B).states).backward()
    assert all((gate.location_n.grad != 0).all() for gate in model.gates.values())
