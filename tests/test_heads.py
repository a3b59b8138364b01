"""Heads: the same vector alone and padded, what an encoder cannot have, and a file with untrained ones."""

import pytest
import torch
from tiny_finetune import ENCODER

import star_upstream
from star_upstream.data.task_config import TaskConfig
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.heads.head import TaskHead, shape
from star_upstream.heads.model import MultitaskModel
from star_upstream.training.finetune import untrained


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
@pytest.mark.parametrize("input", ["last", "states", "predictions", "all"])
def test_vectors_are_the_same_alone_and_padded(pooling, input):
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig(**{**ENCODER, "conv_layers": tuple(map(tuple, ENCODER["conv_layers"]))}, prediction_layers=(1, 3))
    )
    task = TaskConfig(data="ks", input=input, pooling=pooling, embedding=6)
    model = MultitaskModel(encoder, {"keyword": task}, {"keyword": ["a", "b"]}).eval()
    head = model.heads["keyword"]
    assert (
        shape(encoder.config, input)[0]
        == {"last": 1, "states": 3, "predictions": 2, "all": 5}[input]
        == (1 if head.mix is None else len(head.mix))
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    waves = [torch.randn(n) for n in (1600, 4800)]
    with torch.no_grad():
        alone = torch.cat([model("keyword", w[None]) for w in waves])
        padded = model("keyword", torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([1600, 4800]))
    assert padded.shape == (2, 6) and torch.allclose(alone, padded, atol=1e-4)


def test_padding_may_hold_anything():
    head = TaskHead(TaskConfig(data="ks", pooling="attentive"), EncoderConfig(layers=1), 2)
    states = torch.randn(2, 5, 768)
    states[0, 3:] = float("nan")
    assert torch.isfinite(head([states], torch.tensor([3, 5]))).all()


def test_heads_that_an_encoder_cannot_have_are_refused():
    encoder = Encoder(EncoderConfig(**{**ENCODER, "conv_layers": tuple(map(tuple, ENCODER["conv_layers"]))}))
    with pytest.raises(StarError, match="tasks.keyword.input: 'predictions' needs an encoder with prediction heads"):
        MultitaskModel(encoder, {"keyword": TaskConfig(data="ks", input="predictions")}, {"keyword": ["a", "b"]})


def test_a_file_with_untrained_heads_answers(tmp_path):
    untrained("star_mini", tmp_path / "answers.safetensors", keyword=["yes", "no"])
    model = star_upstream.load(tmp_path / "answers.safetensors")
    assert model.keyword(torch.randn(16000)) in ("yes", "no") and model.speaker_embedding(torch.randn(400)).shape == (
        128,
    )
