"""The encoder against tiny random models of transformers, and its promises: padding changes nothing, maps are what it
uses."""

import math

import pytest
import torch

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats.published import huggingface

CONVS = ((16, 10, 5), (16, 3, 2), (24, 3, 2), (24, 2, 2))
LENGTHS = torch.tensor([4000, 2713, 900])


def batch(lengths=LENGTHS, seed=0) -> torch.Tensor:
    """Zero-padded noise with an offset, so that normalisation has something to do."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.zeros(len(lengths), int(max(lengths)))
    for i, length in enumerate(lengths):
        waves[i, :length] = 0.3 * torch.randn(int(length), generator=generator) + 0.05
    return waves


def randomised(module: torch.nn.Module, seed=0) -> torch.nn.Module:
    """Every parameter moved away from its initial value, so that no zero bias or unit scale hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def config(**changes) -> EncoderConfig:
    base = {
        "conv_layers": CONVS,
        "width": 32,
        "heads": 4,
        "head_width": 8,
        "ffn": 48,
        "layers": 3,
        "position_kernel": 16,
        "position_groups": 4,
    }
    return strict.build(EncoderConfig, base | changes)


RELATIVE = {"buckets": 16, "max_distance": 40, "total_heads": 4}
VARIANTS = {
    "group, post-norm": {},
    "layer, pre-norm": {"conv_norm": "layer", "conv_bias": True, "norm": "pre", "normalize_waveform": True},
    "even and odd kernels": {"position_kernel": 15},
    "gated relative position": {"relative_position": RELATIVE},
    "pruned relative position": {"relative_position": RELATIVE | {"kept_heads": [[0, 2], [1], []]}, "heads": [2, 1, 0]},
    "reused maps": {"reuse_attention": [False, True, True]},
    "reused maps, softmax": {"reuse_attention": [False, True, True], "reuse_softmax": True},
    "left-out parts": {"heads": [4, 0, 2], "ffn": [48, 20, 0]},
    "left-out parts, pre-norm": {"heads": [4, 0, 2], "ffn": [48, 20, 0], "norm": "pre"},
    "batch norm before the positional convolution": {"position_norm": "batch"},
    "stacked positional convolutions": {
        "position_norm": "layer",
        "position_layers": 3,
        "position_kernel": 6,
        "norm": "pre",
    },
    "adapters": {"norm": "pre", "adapter": 6},
    "output heads": {"output_projection": 10, "hidden_states": "projections"},
    "merged frames": {"time_reduction": 2, "relative_position": RELATIVE},
    "merged frames, heads": {
        "time_reduction": 3,
        "upsampling": "heads",
        "output_projection": 10,
        "hidden_states": "projections",
    },
    "merged frames, last": {
        "time_reduction": 2,
        "upsampling": "last",
        "hidden_states": "last",
        "prediction_layers": [2, 3],
        "prediction_inner": 12,
        "prediction_width": 7,
    },
    "no projection": {"conv_layers": (*CONVS[:-1], (32, 2, 2)), "projection": False, "feature_scale": True},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_an_utterance_gives_the_same_states_alone_and_in_a_batch(changes):
    torch.manual_seed(0)
    encoder = randomised(Encoder(config(**changes)))
    together = encoder(batch(), LENGTHS)
    for i, length in enumerate(LENGTHS):
        alone = encoder(batch()[i : i + 1, :length])
        frames = int(together.lengths_B[i])
        assert encoder.exposed(alone)[0].shape[1] == frames == encoder.config.frames(int(length))
        for ours, theirs in zip(encoder.exposed(alone), encoder.exposed(together)):
            assert torch.isfinite(ours).all() and ours.std() > 1e-3
            torch.testing.assert_close(ours[0], theirs[i, :frames], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_batch_matters_only_with_reference_padding():
    torch.manual_seed(0)
    encoder = randomised(Encoder(config(), reference_padding=True))
    frames = encoder.config.frames(900)
    difference = encoder(batch(), LENGTHS).states[-1][2, :frames] - encoder(batch()[2:, :900]).states[-1][0]
    assert difference.abs().max() > 1e-3  # the first group norm of the reference sees the padding


@pytest.mark.parametrize("name", [n for n in VARIANTS if "softmax" not in n])
@torch.no_grad()
def test_maps_are_what_the_layers_attend_with(name):
    torch.manual_seed(0)
    encoder = randomised(Encoder(config(**VARIANTS[name])))
    plain, with_maps = encoder(batch(), LENGTHS), encoder(batch(), LENGTHS, attention_maps=True)
    for ours, theirs in zip(plain.states, with_maps.states):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for heads, map_BHTT in zip(encoder.config.heads, with_maps.attentions):
        assert (map_BHTT is None) == (heads == 0)
        if heads:
            assert map_BHTT.shape[:2] == (3, heads)
            torch.testing.assert_close(map_BHTT.sum(-1), torch.ones(map_BHTT.shape[:3]))
            padded = torch.arange(map_BHTT.shape[-1]) >= with_maps.lengths_B[:, None]
            assert map_BHTT.masked_select(padded[:, None, None]).abs().max() == 0


def test_reusing_layers_have_no_query_and_key_and_their_maps_no_dropout():
    pattern = [False, True, True, False, True]
    options = {"layers": 5, "reuse_attention": pattern, "dropout": 0.0, "activation_dropout": 0.0}
    torch.manual_seed(0)
    model = Encoder(config(**options, attention_dropout=0.9))
    for layer, reuse in zip(model.layers, pattern):
        names = {name.partition(".")[0] for name, _ in layer.attention.named_parameters()}
        assert names == {"value", "output"} | (set() if reuse else {"query", "key"})
    attention, x, maps = model.train().layers[1].attention, torch.randn(1, 5, 32), torch.rand(1, 4, 5, 5).softmax(-1)
    assert torch.equal(attention(x, None, None, maps)[0], attention.eval()(x, None, None, maps)[0])
    # the map's gradient reaches the query of the layer that made it
    model.train()(batch()).states[3].sum().backward()
    assert model.layers[0].attention.query.weight.grad.abs().sum() > 0


def test_gradients_of_layers_are_scaled():
    """m = 3/4, 2/3, 1/2 for layers 1 to 3: a loss on layer 3 counts 1/2 x 1/2 there, and 3/4 x 2/3 of that in layer
    1."""
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    models = [randomised(Encoder(config(**off, scale_layer_gradients=scaled))).train() for scaled in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    outputs = [model(batch()) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(outputs[0].states, outputs[1].states))
    for read, at, factor in (
        (3, 3, 1 / 4),
        (3, 2, 2 / 3 / 4),
        (3, 1, 3 / 4 * 2 / 3 / 4),
        (1, 1, 3 / 4 * 1 / 4),
        (2, 2, 2 / 3 * 1 / 3),
    ):
        plain, scaled = (
            torch.autograd.grad(o.states[read].square().sum(), m.layers[at - 1].ffn_in.weight, retain_graph=True)[0]
            for o, m in zip(outputs, models)
        )
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@torch.no_grad()
def test_reused_maps_are_those_of_the_layer_that_computed_them():
    torch.manual_seed(0)
    maps = randomised(Encoder(config(reuse_attention=[False, True, True])))(
        batch(), LENGTHS, attention_maps=True
    ).attentions
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])
    again = randomised(Encoder(config(reuse_attention=[False, True, True], reuse_softmax=True)))(
        batch(), attention_maps=True
    ).attentions
    torch.testing.assert_close(again[1], again[0].softmax(-1))
    torch.testing.assert_close(again[2], again[1])


@torch.no_grad()
def test_waveform_normalisation_undoes_gain_and_offset():
    torch.manual_seed(0)
    encoder = randomised(Encoder(config(normalize_waveform=True, conv_norm="layer")))
    plain = randomised(Encoder(config(conv_norm="layer")))
    moved = torch.where(batch() != 0, 3.0 * batch() + 0.5, 0.0)
    torch.testing.assert_close(
        encoder(moved, LENGTHS).states[-1], encoder(batch(), LENGTHS).states[-1], atol=2e-3, rtol=0
    )
    assert (plain(moved, LENGTHS).states[-1] - plain(batch(), LENGTHS).states[-1]).abs().max() > 0.05
    wave = batch()[:1]
    normal = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-5).sqrt()
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(wave).states[-1], plain(normal).states[-1], atol=1e-5, rtol=0)


def test_without_attention_and_ffn_a_post_norm_layer_is_its_two_norms():
    torch.manual_seed(0)
    encoder = randomised(Encoder(config(layers=1, heads=0, ffn=0)))
    states = encoder(batch()).states
    layer = encoder.layers[0]
    torch.testing.assert_close(states[1], layer.ffn_norm(layer.attention_norm(states[0])))


def test_exposed_states_follow_the_convention():
    torch.manual_seed(0)
    for convention, expected in (("all", 4), ("features", 4), ("layers", 3), ("projections", 3)):
        encoder = Encoder(config(output_projection=10, hidden_states=convention)).eval()
        output = encoder(batch(), LENGTHS)
        exposed = encoder.exposed(output)
        assert len(exposed) == expected and exposed[-1].shape[-1] == (10 if convention == "projections" else 32)
        assert encoder.config.exposed == (len(exposed), exposed[-1].shape[-1])
        if convention == "features":
            frames = int(output.lengths_B[1])
            assert (
                torch.equal(exposed[0][1, :frames], output.features_BTD[1, :frames])
                and not exposed[0][1, frames:].any()
            )


def test_the_last_state_is_the_layers_or_its_heads():
    torch.manual_seed(0)
    for heads, width in ((0, 32), (10, 10)):
        encoder = Encoder(config(output_projection=heads, hidden_states="last")).eval()
        output = encoder(batch(), LENGTHS)
        (last,) = encoder.exposed(output)
        assert torch.equal(last, encoder.output_projections[2](output.states[3]) if heads else output.states[3])
        assert encoder.config.exposed == (1, width)


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    for name, changes in VARIANTS.items():
        encoder = Encoder(config(**changes)).train()
        output = encoder(batch(), LENGTHS)
        given = (*output.states, *(output.projections or ()), *(output.predictions or ()))
        sum(state.pow(3).mean() for state in given).backward()
        trained = [(n, p) for n, p in encoder.named_parameters() if p.requires_grad]  # DPHuBERT's scale is not
        without = [n for n, p in trained if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not without, (name, without)


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [c for c, _, _ in CONVS],
    "conv_kernel": [k for _, k, _ in CONVS],
    "conv_stride": [s for _, _, s in CONVS],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 2,
}
STABLE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2", "WavLM"])
@pytest.mark.parametrize(
    "variant", [{}, STABLE, {**STABLE, "do_stable_layer_norm": False}], ids=["base", "large", "layer-post"]
)
@torch.no_grad()
def test_parity_with_transformers(kind, variant, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    extra = {"num_buckets": 16, "max_bucket_distance": 40} if kind == "WavLM" else {}
    theirs = randomised(
        getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**TINY, **variant, **extra))
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    ours = huggingface.load(tmp_path, reference_padding=True)
    mask = (torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]).long()
    result = theirs(batch(), attention_mask=mask, output_hidden_states=True)
    # The last state is the model's output: for pre-norm models, transformers 4 and s3prl list it after the final norm,
    # as we do; transformers 5 lists it before.
    reference = (*result.hidden_states[:-1], result.last_hidden_state)
    output = ours(batch(), LENGTHS)
    assert len(reference) == len(output.states) == 4
    valid = torch.arange(reference[0].shape[1]) < output.lengths_B[:, None]
    for mine, state in zip(output.states, reference):
        assert state[valid].std() > 0.01 and math.isfinite(state[valid].std())
        torch.testing.assert_close(mine[valid], state[valid], atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_convolutions_alone_is_scaled():
    def gradients(factor, training=True):
        torch.manual_seed(0)
        encoder = Encoder(config(feature_gradient=factor, dropout=0.0, attention_dropout=0.0)).train(training)
        encoder(torch.randn(2, 900)).states[-1].square().sum().backward()
        return {name: p.grad for name, p in encoder.named_parameters()}

    whole, tenth, none = gradients(1.0), gradients(0.1), gradients(0.0)
    for name, gradient in whole.items():
        before = name.startswith(("frontend.convs", "frontend.norms"))
        torch.testing.assert_close(tenth[name], gradient * (0.1 if before else 1.0), rtol=1e-4, atol=1e-7)
        assert (none[name] is None) == before
    assert torch.equal(
        gradients(0.1, False)["frontend.convs.0.weight"], gradients(1.0, False)["frontend.convs.0.weight"]
    )
    with pytest.raises(StarError, match="feature_gradient: must be at least 0 and at most 1"):
        config(feature_gradient=1.5)


def test_features_are_given_before_and_after_their_dropout():
    encoder, waves, lengths = Encoder(config(feature_dropout=0.5)), torch.randn(2, 900), torch.tensor([900, 600])
    output = encoder.train()(waves, lengths)
    frames, kept = output.lengths_B[1], output.dropped_BTD != 0
    share = kept[0].float().mean().item()
    assert 0.35 < share < 0.65 and not kept[1, frames:].any()
    torch.testing.assert_close(output.dropped_BTD[kept], 2 * output.features_BTD[kept])
    output = encoder.eval()(waves)
    assert torch.equal(output.dropped_BTD, output.features_BTD)


def test_a_scale_that_pruning_left_is_not_trained():
    assert [name for name, p in Encoder(config(feature_scale=True)).named_parameters() if not p.requires_grad] == [
        "frontend.scale"
    ]


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([900], "lengths must be 2 whole numbers, one a waveform, got torch.int64 of shape"),
        ([900.0, 600.0], "got torch.float32"),
        ([901, 600], "lengths: 901 samples of a waveform that has 900"),
    ],
)
def test_lengths_that_are_not_the_waveforms(lengths, message):
    with pytest.raises(ValueError, match=message):
        Encoder(config())(torch.randn(2, 900), torch.tensor(lengths))
    with pytest.raises(ValueError, match="lengths must be a tensor of 2 whole numbers, got list"):
        Encoder(config())(torch.randn(2, 900), lengths)
