"""Parameters and MACs against the printed figures, and against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from star_upstream.analysis import latency
from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.encoder.size import LENGTHS, macs, parameters, profile, without_training
from star_upstream.errors import StarError

STAR_CONVS = ((128, 10, 5), (256, 1, 1), *[(256, 3, 2)] * 4, (432, 1, 1), (432, 2, 2), (432, 2, 2))


def star(ffn):
    return EncoderConfig(conv_layers=STAR_CONVS, projection=False, width=432, heads=8, head_width=54, ffn=ffn)


@pytest.mark.parametrize(
    "config, count, printed",
    [
        (star(976), 22_308_592, 463.50),  # STaRHuBERT
        (star(1392), 26_626_672, 511.91),  # STaRHuBERT-L
        (
            EncoderConfig(),
            94_370_944,
            1665.5,
        ),  # HuBERT Base (94,371,712) without its mask embedding of 768; the papers print 1669
    ],
)
def test_printed_figures(config, count, printed):
    found = profile(config)
    assert found["parameters"] == count
    assert found["macs_g"] == pytest.approx(printed, abs=0.051 if printed > 1000 else 0.005)


def test_the_32_utterances_last_as_long_as_stated():
    assert len(LENGTHS) == 32 and sum(LENGTHS) / 16000 == pytest.approx(224.86, abs=0.01)


SMALL = EncoderConfig(
    conv_layers=((8, 10, 5), (16, 3, 2)), width=24, layers=2, heads=3, head_width=8, ffn=20, position_kernel=8,
    position_groups=4,
)  # fmt: skip
RELATIVE = RelativePosition(buckets=8, max_distance=16, total_heads=3)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 3, "heads": (2, 0, 1), "ffn": (12, 20, 0)},
        {"heads": 2, "head_width": 12, "position_kernel": 7, "reuse_attention": (False, True), "output_projection": 10},
        {"relative_position": RELATIVE},
        {
            "heads": (1, 2),
            "relative_position": replace(RELATIVE, kept_heads=((2,), (0, 1))),
            "prediction_layers": (1, 4),
        },
        {"position_kernel": 6, "position_norm": "layer", "position_layers": 3, "norm": "pre", "adapter": 5},
        {"time_reduction": 2, "upsampling": "heads", "output_projection": 10, "hidden_states": "projections"},
        {
            "time_reduction": 3,
            "upsampling": "last",
            "hidden_states": "last",
            "prediction_layers": (1, 4),
            "prediction_inner": 7,
            "prediction_width": 11,
        },
        {"time_reduction": 2, "output_projection": 5},
        {"attention": "chunked", "conv_norm": "layer", "chunk": 4, "left_context": 5, "look_ahead": 3},
    ],
)
def test_against_torchs_flop_counter(options):
    config = replace(SMALL, **options)
    encoder = Encoder(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, 500), attention_maps=True)  # the explicit form, which every device counts alike
    assert counter.get_total_flops() == 2 * macs(config, 500)


def test_heads_that_only_the_distillation_needs_do_not_count():
    heads = {"time_reduction": 2, "upsampling": "heads", "output_projection": 10}
    every, last = (replace(SMALL, **heads, hidden_states=states) for states in ("projections", "last"))
    upsampling, linear = 2 * 24 * 24, 24 * 10
    assert parameters(every) == parameters(last) == without_training(every)
    assert without_training(every) - without_training(last) == upsampling + 24 + linear + 10
    frames = last.feature_frames(500) // 2
    assert macs(every, 500) - macs(last, 500) == frames * upsampling + 2 * frames * linear
    assert without_training(replace(SMALL, prediction_layers=(1, 4))) == parameters(SMALL)


# time


def tiny(ffn: int) -> Encoder:
    config = EncoderConfig(
        conv_layers=((16, 10, 320),),
        width=32,
        layers=2,
        heads=2,
        head_width=16,
        ffn=ffn,
        position_kernel=4,
        position_groups=2,
    )
    return Encoder(config).eval()


def test_times_are_taken_in_turns_and_state_their_conditions(monkeypatch):
    calls, models = [], {"large": tiny(40), "small": tiny(20)}
    now, taken = [0.0], {"large": [9.0, 4.0, 3.0, 6.0, 5.0], "small": [8.0, 1.5, 1.0, 2.0, 0.5]}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def called(name, samples):
        now[0] += taken[name][sum(called == name for called, _, _ in calls)]  # the first is to warm up
        calls.append((name, samples, torch.get_num_threads()))

    for name, model in models.items():
        model.register_forward_pre_hook(lambda module, inputs, name=name: called(name, inputs[0].shape))
    before = torch.get_num_threads()
    found = latency.side_by_side(models, seconds=1.0, repeats=4, threads=1)
    assert [name for name, _, _ in calls] == ["large", "small", "small", "large"] * 2 + ["large", "small"]
    assert {call[1:] for call in calls} == {((1, 16_000), 1)} and torch.get_num_threads() == before
    assert {k: v for k, v in found.items() if k != "models"} == {
        "seconds": 1.0,
        "repeats": 4,
        "threads": 1,
        "device": "cpu",
    }
    large, small = found["models"]["large"], found["models"]["small"]
    rates = {"times_real_time": 0.2, "real_time_factor": 4.5, "speedup": 1.0}
    assert large == {"median_s": 4.5, "fastest_s": 3.0, "slowest_s": 6.0, **rates}
    rates = {"times_real_time": 0.8, "real_time_factor": 1.25, "speedup": 3.6}
    assert small == {"median_s": 1.25, "fastest_s": 0.5, "slowest_s": 2.0, **rates}


def test_too_little_audio_to_time_is_refused():
    with pytest.raises(StarError, match="seconds must be enough for one frame"):
        latency.side_by_side({"tiny": tiny(8)}, seconds=0.0001)
