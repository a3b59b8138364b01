"""EncoderConfig: what is refused, and its arithmetic of frames and samples."""

import pytest
import torch
from test_encoder import RELATIVE, batch, config, randomised

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": [4, 4]}, "heads: expected 3 numbers"),
        ({"ffn": -1}, "ffn: expected 3 numbers"),
        ({"width": 30}, "position_groups: 4 does not divide width 30"),
        ({"projection": False}, "projection: needed"),
        ({"dropout": 1.0}, "dropout: must be at least 0 and below 1"),
        ({"conv_layers": []}, "conv_layers: at least one"),
        ({"conv_layers": [[4, 0, 1]]}, "conv_layers[0]: channels, kernel and stride"),
        ({"reuse_attention": [True, False, False]}, "reuse_attention[0]: needs a layer before it"),
        ({"relative_position": RELATIVE | {"buckets": 3}}, "relative_position: needs 4 buckets or more"),
        ({"relative_position": RELATIVE | {"max_distance": 4}}, "relative_position: needs 4 buckets or more"),
        ({"relative_position": {"total_heads": 3}}, "relative_position.total_heads: 3 heads of 8"),
        ({"relative_position": RELATIVE, "heads": [4, 2, 4]}, "relative_position.kept_heads: needed"),
        (
            {"relative_position": RELATIVE | {"kept_heads": [[0], [0], [4]]}, "heads": 1},
            "relative_position.kept_heads[2]",
        ),
        ({"hidden_states": "projections"}, "'projections' needs output_projection"),
        ({"hidden_states": "last", "layers": 0, "heads": 1, "ffn": 1}, "hidden_states: 'last' needs one layer"),
        ({"time_reduction": 0}, "time_reduction: must be 1 or more"),
        ({"upsampling": "heads"}, "upsampling: 'heads' needs a time_reduction of 2 or more"),
        ({"time_reduction": 2, "hidden_states": "features"}, "'features' would mix frame rates"),
        ({"time_reduction": 2, "upsampling": "heads"}, "take 'projections' or 'last'"),
        (
            {"time_reduction": 2, "upsampling": "last", "hidden_states": "last", "output_projection": 8},
            "'last' goes without",
        ),
        ({"prediction_width": -1}, "prediction_width: must be 0 or more"),
        ({"hidden_states": "some"}, "hidden_states: expected 'all' or"),
        ({"layers": 10**9}, "layers: must be at least 0 and at most 1000, got 1000000000"),
        ({"position_layers": 2}, "position_layers: 2 convolutions need position_norm 'layer'"),
        ({"adapter": 4}, "adapter: only models with norm 'pre' have one"),
        ({"norm": "both"}, "norm: expected 'post' or 'pre', got 'both'"),
    ],
)
def test_impossible_configurations_are_named(changes, message):
    with pytest.raises(StarError) as error:
        config(**changes)
    assert message in str(error.value)


@torch.no_grad()
def test_frames_are_what_the_forward_pass_gives_also_below_one_frame():
    for changes in ({}, {"normalize_waveform": True}):
        encoder = randomised(Encoder(config(**changes)))
        shortest = encoder.config.receptive_field
        for samples in (1, shortest - 1, shortest, shortest + 1, 300):
            wave = torch.linspace(-1, 1, samples)[None]
            output, padded = encoder(wave), encoder(torch.nn.functional.pad(wave, (0, max(0, shortest - samples))))
            counted = encoder.config.frames(samples)
            assert (
                output.states[-1].shape[1]
                == int(output.lengths_B)
                == counted
                == int(encoder.config.frames(torch.tensor(samples)))
            )
            assert counted >= 1 and torch.equal(output.states[-1], padded.states[-1])
            together = encoder(torch.nn.functional.pad(wave, (0, 700)), torch.tensor([samples]))
            torch.testing.assert_close(together.states[-1][:, :counted], output.states[-1], atol=1e-5, rtol=0)
    assert encoder.config.frames(0) == 0 and encoder.config.frames(torch.tensor([0, 1])).tolist() == [0, 1]


@pytest.mark.parametrize("upsampling, given", [("none", 1), ("heads", 3), ("last", 3)])
@torch.no_grad()
def test_merged_frames_are_the_convolutions_and_leave_none_half_done(upsampling, given):
    """Frames k, k + 1 and k + 2 become one; what the model says of its frames and stride is what it gives, for every
    length."""
    torch.manual_seed(0)
    changes = {"time_reduction": 3, "upsampling": upsampling, "hidden_states": "last"}
    encoder = randomised(Encoder(config(**changes)))
    plain = randomised(Encoder(config()))
    plain.load_state_dict(encoder.state_dict(), strict=False)
    samples = range(encoder.config.receptive_field, encoder.config.receptive_field + 700, 31)
    for count in samples:
        wave = batch([count])
        output = encoder(wave)
        features = plain(wave).states[0]
        merged = features.shape[1] // 3
        assert output.states[0].shape[1] == merged and encoder.config.feature_frames(count) == features.shape[1]
        assert (
            encoder.config.frames(count)
            == output.lengths_B.item()
            == encoder.exposed(output)[0].shape[1]
            == merged * given
        )
        weight, bias = encoder.time_reduction.weight, encoder.time_reduction.bias
        by_hand = torch.einsum("odk,btkd->bto", weight, features[:, : 3 * merged].unflatten(1, (merged, 3))) + bias
        torch.testing.assert_close(output.states[0], by_hand, atol=1e-5, rtol=0)
    assert encoder.config.stride == plain.config.stride * 3 // given
    assert encoder.config.frames(samples[0] - 1) == given and encoder.config.frames(0) == 0
    if given == 3:
        weight, bias = encoder.upsampling[-1].weight, encoder.upsampling[-1].bias
        by_hand = torch.einsum("btd,dok->btko", output.states[-1], weight).flatten(1, 2) + bias
        torch.testing.assert_close(encoder.exposed(output)[0], by_hand, atol=1e-5, rtol=0)


def test_frames_and_receptive_field():
    hubert = EncoderConfig()
    assert (hubert.stride, hubert.receptive_field, hubert.frames(400), hubert.frames(16000)) == (320, 400, 1, 49)
    assert (
        sum(p.numel() for p in Encoder(hubert).parameters()) == 94_370_944
    )  # HuBERT Base without its mask embedding (768)
