"""DistilHuBERT's prediction heads and loss: published sizes, hand-computed values, padding, checkpoints, and what is
refused."""

import math

import pytest
import torch

from star_upstream import losses, strict
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput
from star_upstream.encoder.size import parameters
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, sources
from star_upstream.losses.prediction import PredictionConfig, PredictionLoss
from star_upstream.training import recipe

TINY = {
    "conv_layers": ((8, 10, 5), (8, 3, 4)),
    "width": 16,
    "position_kernel": 8,
    "position_groups": 2,
    "heads": 2,
    "head_width": 8,
    "ffn": 20,
}


def test_published_parameters():
    base = {"layers": 2}
    assert parameters(EncoderConfig(**base)) == 23_492_224
    assert parameters(EncoderConfig(**base, prediction_layers=(4, 8, 12))) == 27_035_776
    for name in ("distilhubert_kerpicci", "distilwav2vec"):
        assert parameters(recipe.load(name).student) == 27_035_776
    # s3prl's Distiller has no norm before the projection: 2 x 512 parameters fewer
    assert parameters(EncoderConfig(**base, projection_norm=False)) == 23_491_200
    assert parameters(recipe.load("distilhubert").student) == 23_491_200 + 27_035_776 - 23_492_224


def test_heads_start_as_torchs_own_linear_maps():
    torch.manual_seed(0)
    heads = Encoder(
        EncoderConfig(**{**TINY, "width": 256, "head_width": 128}, layers=1, prediction_layers=(1, 2))
    ).predictions
    for linear in (heads.shared, *heads.each):
        for values in (linear.weight, linear.bias):
            assert values.abs().max() <= 1 / 16 and values.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.1)


def pair(width=2, layers=(1,), over="sum", **options):
    options["layers"] = over
    teacher = EncoderConfig(**TINY, layers=2)
    student = EncoderConfig(**TINY, layers=1, prediction_layers=layers)
    return PredictionLoss(PredictionConfig(**options), teacher, student)


def outputs(teacher, guesses, lengths):
    lengths_B = torch.tensor(lengths)
    return (
        EncoderOutput(teacher, lengths_B, teacher[0], None, None),
        EncoderOutput(teacher, lengths_B, teacher[0], None, None, guesses),
    )


def test_loss_by_hand():
    # frame 1: |(1,0)-(0,1)|_1 / 2 = 1, cosine 0; frame 2: |(3,4)-(3,4)| = 0, cosine 1
    target = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    guess = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])
    sigmoid = [math.log(2.0), math.log(1 + math.exp(-1.0))]
    given = outputs([target, target], [guess], [2])
    total, terms = pair()(*given)
    assert terms["l1"].item() == pytest.approx(0.5) and terms["cosine"].item() == pytest.approx(sum(sigmoid) / 2)
    assert total.item() == pytest.approx(0.5 + sum(sigmoid) / 2)
    # a student whose layers see half the frames predicts all of them
    halved = given[1]._replace(states=[state_BTD[:, :1] for state_BTD in given[1].states])
    assert pair()(given[0], halved)[0] == total
    assert pair(reduction="sum")(*given)[0].item() == pytest.approx(1.0 + sum(sigmoid))
    assert pair(l1=2.0, cosine=0.5)(*given)[0].item() == pytest.approx(1.0 + sum(sigmoid) / 4)


def test_the_means_are_those_of_distilhuberts_code():
    """s3prl v0.4.18, pretrain/distiller, compute_loss: both terms are means over everything, where no frame is
    padded."""
    torch.manual_seed(0)
    states, guesses = [torch.randn(3, 7, 4) for _ in range(3)], [torch.randn(3, 7, 4) for _ in range(2)]
    target, guess = torch.stack(states[1:], 1), torch.stack(guesses, 1)
    expected = (guess - target).abs().mean() - torch.nn.functional.logsigmoid(
        torch.cosine_similarity(guess, target, dim=-1)
    ).mean()
    found = pair(layers=(1, 2), over="mean")(*outputs(states, guesses, [7] * 3))[0]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert recipe.load("distilhubert").loss["prediction"] == {
        "l1": 1.0,
        "cosine": 1.0,
        "reduction": "mean",
        "layers": "mean",
    }


def test_layers_are_summed_and_matched_by_number():
    one, two = torch.zeros(1, 3, 2), torch.full((1, 3, 2), 2.0)
    states = [one, one, two]
    loss = pair(layers=(2, 1), cosine=0.0)
    assert loss(*outputs(states, [two, one], [3]))[0].item() == 0.0
    assert loss(*outputs(states, [one, one], [3]))[0].item() == pytest.approx(2.0)
    mean = pair(layers=(2, 1), cosine=0.0, over="mean")
    assert mean(*outputs(states, [one, one], [3]))[0].item() == pytest.approx(1.0)


def test_an_utterance_counts_the_same_alone_and_padded():
    torch.manual_seed(0)
    teacher, student = (
        Encoder(EncoderConfig(**TINY, layers=3)).eval(),
        Encoder(EncoderConfig(**TINY, layers=2, prediction_layers=(1, 3))).eval(),
    )
    loss = PredictionLoss(PredictionConfig(reduction="sum"), teacher.config, student.config)
    waves = [torch.randn(n) for n in (400, 1000)]
    with torch.no_grad():
        alone = [loss(teacher(w[None]), student(w[None]))[0] for w in waves]
        batch, lengths = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([400, 1000])
        together = loss(teacher(batch, lengths), student(batch, lengths))[0]
        teacher_mean = PredictionLoss(PredictionConfig(), teacher.config, student.config)(
            teacher(batch, lengths), student(batch, lengths)
        )[0]
    assert together.item() == pytest.approx(sum(alone).item() / 2, rel=1e-5)
    frames = sum(teacher.config.frames(len(w)) for w in waves)
    assert teacher_mean.item() == pytest.approx(sum(alone).item() / frames, rel=1e-5)


def test_gradients_reach_every_parameter():
    student = Encoder(EncoderConfig(**TINY, layers=1, prediction_layers=(1, 2)))
    teacher = Encoder(EncoderConfig(**TINY, layers=2)).eval()
    waves = torch.randn(2, 800)
    loss = losses.build({"prediction": {}}, teacher.config, student.config)
    loss(teacher(waves), student(waves))[0].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_heads_are_kept_in_a_checkpoint(tmp_path):
    student = Encoder(EncoderConfig(**TINY, layers=1, prediction_layers=(1, 2))).eval()
    checkpoint.save(tmp_path / "one", student, {})
    again, waves = sources.load(tmp_path / "one"), torch.randn(1, 800)
    assert again.config == student.config
    for mine, theirs in zip(student(waves).predictions, again(waves).predictions):
        assert mine.shape == (1, student.config.frames(800), 16) and torch.equal(mine, theirs)


def test_checkpoints_without_the_option_load_and_keep_their_digest():
    values = strict.plain(EncoderConfig(**TINY, layers=1))
    assert values.pop("prediction_layers") == []
    assert strict.build(EncoderConfig, values) == EncoderConfig(**TINY, layers=1)
    # as computed before there were prediction heads
    assert checkpoint.digest(sources.load("star_mini")).startswith("ae3ad17e56012483")
    assert sources.load("star_mini_teacher")(torch.randn(1, 800)).predictions is None


@pytest.mark.parametrize(
    ("teacher", "student", "options", "message"),
    [
        ({}, {}, {}, "student.prediction_layers"),
        ({}, {"prediction_layers": (3,)}, {}, "names layer 3, the teacher has 2"),
        ({}, {"prediction_layers": (1, 1)}, {}, "prediction_layers: expected different layers"),
        ({}, {"prediction_layers": (0,)}, {}, "prediction_layers: expected different layers"),
        (
            {"width": 8, "head_width": 4},
            {"prediction_layers": (1,)},
            {},
            "predictions must have the teacher's width, 8, got",
        ),
        ({"conv_layers": ((8, 10, 5),)}, {"prediction_layers": (1,)}, {}, "one frame rate"),
        ({}, {"prediction_layers": (1,)}, {"l1": 0.0, "cosine": 0.0}, "l1, cosine"),
        ({}, {"prediction_layers": (1,)}, {"cosin": 1.0}, "did you mean 'cosine'"),
    ],
)
def test_what_does_not_fit_is_refused(teacher, student, options, message):
    with pytest.raises(StarError, match=message):
        losses.build(
            {"prediction": options},
            EncoderConfig(**{**TINY, **teacher}, layers=2),
            EncoderConfig(**{**TINY, **student}, layers=1),
        )
