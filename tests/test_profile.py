"""Parameters and MACs against the printed figures, and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.profile import LENGTHS, SECONDS_COUNTED, macs, profile

STAR_CONVS = ((128, 10, 5), (256, 1, 1), *[(256, 3, 2)] * 4, (432, 1, 1), (432, 2, 2), (432, 2, 2))


def star(ffn):
    return EncoderConfig(conv_layers=STAR_CONVS, projection=False, width=432, heads=8, head_width=54, ffn=ffn)


@pytest.mark.parametrize(
    "config, count, printed",
    [
        (star(976), 22_308_592, 463.50),  # STaRHuBERT
        (star(1392), 26_626_672, 511.91),  # STaRHuBERT-L
        (EncoderConfig(), 94_370_944, 1665.5),  # HuBERT Base (94,371,712) without its mask embedding of 768; the papers print 1669
    ],
)
def test_printed_figures(config, count, printed):
    found = profile(config)
    assert found["parameters"] == count
    assert found["macs_g"] == pytest.approx(printed, abs=0.051 if printed > 1000 else 0.005)


def test_the_32_utterances_last_as_long_as_stated():
    assert len(LENGTHS) == 32 and sum(LENGTHS) / 16000 == pytest.approx(SECONDS_COUNTED, abs=0.01)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(conv_layers=((8, 10, 5), (16, 3, 2)), width=24, layers=3, heads=(2, 0, 1), head_width=8, ffn=(12, 20, 0), position_kernel=8, position_groups=4),
        EncoderConfig(conv_layers=((8, 10, 5), (16, 3, 2)), width=24, layers=2, heads=2, head_width=12, ffn=20, position_kernel=7, position_groups=4,
                      reuse_attention=(False, True), output_projection=10),
        EncoderConfig(conv_layers=((8, 10, 5), (16, 3, 2)), width=24, layers=2, heads=3, head_width=8, ffn=20, position_kernel=8, position_groups=4,
                      relative_position=RelativePosition(buckets=8, max_distance=16, total_heads=3)),
    ],
)  # fmt: skip
def test_against_torchs_flop_counter(config):
    encoder = Encoder(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, 500), attention_maps=True)  # the explicit form, which every device counts alike
    assert counter.get_total_flops() == 2 * macs(config, 500)
