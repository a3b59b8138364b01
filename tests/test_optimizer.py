"""What the optimizer decays, and its learning rate."""

import math

import pytest
from test_distill import STUDENT

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.training import optimizer
from star_upstream.training.config import TrainingConfig


def test_biases_and_norms_have_no_weight_decay():
    encoder = Encoder(EncoderConfig(**STUDENT))
    decayed, others = optimizer.parameter_groups([encoder], 0.01)
    names = {id(p): name for name, p in encoder.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert all(names[id(p)].endswith(("bias", "norm.weight", "norms.0.weight")) for p in others["params"])
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 0.1, 0.5),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.4, 0.5 + 0.5 * math.cos(math.pi / 4)),
        ("cosine", 0.6, 0.5),
        ("cosine", 1.0, 0.0),
        ("cosine", 1.5, 0.0),
        ("linear", 0.1, 0.5),
        ("linear", 0.6, 0.5),
        ("linear", 0.8, 0.25),
    ],
)
def test_schedule(schedule, share, expected):
    config = TrainingConfig(updates=10, learning_rate=3.0, warmup=0.2, schedule=schedule)
    assert optimizer.rate(share, config) == pytest.approx(3.0 * expected, abs=1e-12)
