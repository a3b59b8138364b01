"""results/bench/encoder.py and train.py: what is timed is in turns, the plain step computes our loss, pages say what
was measured."""

import encoder as encoder_bench
import pytest
import torch
import train as train_bench
import transformers
import turns

from star_upstream.analysis.latency import in_threads
from star_upstream.encoder import Encoder
from star_upstream.errors import StarError
from star_upstream.formats.published import huggingface
from star_upstream.training import recipe


def test_calls_come_in_turns():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    taken = turns.in_turns(calls, 3)
    assert "".join(seen) == "abcbcacababc" and all(len(times) == 3 for times in taken.values())
    assert turns.rate(0.5, 1000) == 2.0
    with in_threads(1):
        assert torch.get_num_threads() == 1


def tiny(layers=2, width=32) -> transformers.HubertModel:
    config = transformers.HubertConfig(
        conv_dim=[8, 16, 16], conv_kernel=[10, 8, 8], conv_stride=[5, 8, 8], num_feat_extract_layers=3,
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    return transformers.HubertModel(config)


def ours(model: transformers.HubertModel) -> Encoder:
    return huggingface.load_weights(
        model.state_dict(), model.config.to_dict(), {"do_normalize": False}, "random", "config", False
    )


def test_the_plain_step_computes_our_loss_and_both_learn():
    torch.manual_seed(0)
    teacher, student = tiny(), tiny(width=24)
    own_teacher, own_student = ours(teacher), ours(student)
    plain = train_bench.Plain(teacher, student).eval()
    mine = train_bench.Ours(own_teacher, own_student, (own_teacher.config, own_student.config)).eval()
    waves = 0.1 * torch.randn(2, 4000)
    first = mine(waves)
    torch.testing.assert_close(plain(waves), first, rtol=1e-4, atol=0)
    train_bench.step(mine, waves, "bf16-mixed")()
    assert mine(waves) != first


def test_states_that_differ_are_not_timed():
    right, wrong = torch.ones(1, 4, 2), 1.01 * torch.ones(1, 4, 2)
    sides = {encoder_bench.FIRST: lambda x: right, "ours": lambda x: right}
    students = {"s": lambda x: right, "s, bf16": lambda x: wrong}
    off = encoder_bench.agree(sides, students, right)
    assert off["ours"] == 0 and off["s, bf16"] == pytest.approx(0.01)
    with pytest.raises(StarError, match="ours: its states are 0.01 of their size off"):
        encoder_bench.agree({**sides, "ours": lambda x: wrong}, students, right)


def test_a_row_and_the_page():
    config = recipe.load("star_mini_mel").student_config()
    times = {encoder_bench.FIRST: [2.0, 3.0, 4.0], "star_mini_mel": [1.0, 1.5, 9.0], "product": [0.1]}
    row = encoder_bench._row(1, 2, 1.0, times, {encoder_bench.FIRST: config, "star_mini_mel": config})
    assert row["sides"]["star_mini_mel"]["times_faster"] == 2.0 and row["product_gmacs"] == pytest.approx(
        85.90, abs=0.01
    )
    text = encoder_bench.page(
        {
            "command": "python x", "processor": "p", "load": "load", "clock": "cpu", "encoders": [row],
            "differences": {"a": 1e-6}, "environment": {"versions": {"torch": "2"}},
            "parameters": dict.fromkeys(row["sides"], 1_500_000),
        }
    )  # fmt: skip
    assert "## 2 x 1 s, 1 thread\n" in text and "| star_mini_mel | 1.5 | 1,500 | 1,000 to 9,000 | 2.00 |" in text
