"""Masking distillation: the loss by hand, halves that swap, spans as fairseq draws them, what masked frames hear."""

import itertools

import numpy as np
import pytest
import torch

from star_upstream import losses, strict
from star_upstream.data.batches import Batch
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput, Masked
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.losses.common import Masking
from star_upstream.losses.masked import MaskedConfig, MaskedLoss, draw_spans
from star_upstream.training.distill import Objective, Teacher

SMALL = {
    "conv_layers": ((8, 10, 5), (16, 8, 8)), "layers": 2, "heads": 2, "head_width": 8, "ffn": 24,
    "position_kernel": 8, "position_groups": 2, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
TEACHER = EncoderConfig(**SMALL, width=16)
STUDENT = EncoderConfig(**SMALL, width=12, output_projection=16, hidden_states="projections")


def loss(teacher=TEACHER, student=STUDENT, **options):
    return MaskedLoss(strict.build(MaskedConfig, options, "loss.masked"), teacher, student)


def output(layers, lengths=None, heads=True):
    """Of states (layer 0 is never read) or, for a student, of heads' outputs."""
    states = [torch.zeros_like(layers[0]), *layers]
    lengths = torch.tensor(lengths or [layers[0].shape[1]] * len(layers[0]))
    return EncoderOutput(states, lengths, states[0], None, layers if heads else None)


# one utterance of three frames of two channels; the second frame is masked
PLAIN = [torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 0.0], [3.0, 1.0], [2.0, 0.0]]])]
HIDDEN = [torch.tensor([[[0.0, 0.0], [9.0, 9.0], [1.0, 3.0]]]), torch.tensor([[[1.0, 1.0], [9.0, 9.0], [0.0, 0.0]]])]
OWN = [torch.zeros(1, 3, 2), torch.ones(1, 3, 2)]
MASK = torch.tensor([[False, True, False]])
# layer 1, zeros: masked frame 2 against PLAIN (0 + 4) / 2 = 2; frames 1 and 3 against HIDDEN 0 and (1 + 9) / 2 = 5
# layer 2, ones: masked (4 + 0) / 2 = 2; frames 1 and 3 against HIDDEN 0 and (1 + 1) / 2 = 1


def test_by_hand():
    config = {"weights": [0.1, 1.0]}
    small = EncoderConfig(conv_layers=((2, 10, 5),), width=2, layers=2, heads=1, head_width=2, ffn=4, position_groups=1)
    made = loss(small, small, **config)
    total, terms = made(output(PLAIN), output(OWN), Masking(MASK, output(HIDDEN)))
    assert terms["masked"].item() == pytest.approx((0.1 * 2 + 2) / 3)
    assert terms["unmasked"].item() == pytest.approx((0.1 * 5 + 1) / 3)
    assert total.item() == pytest.approx((0.1 * 7 + 3) / 3)
    # nothing masked, as in validation: layer 1 against PLAIN .5 + 2 + 1, layer 2: 1 + 2 + 1
    total, terms = made(output(PLAIN), output(OWN))
    assert total.item() == terms["whole"].item() == pytest.approx((0.1 * 3.5 + 4) / 3)
    assert made.weights == [0.1, 1.0] and loss(small, small, weights=[2, 3]).weights == [2, 3]


def test_halves_swap():
    generator = torch.Generator().manual_seed(0)
    one, two, own = ([torch.randn(2, 5, 16, generator=generator) for _ in range(2)] for _ in range(3))
    mask = torch.rand(2, 5, generator=generator) < 0.5
    made = loss()
    total, terms = made(output(one), output(own), Masking(mask, output(two)))
    swapped, others = made(output(two), output(own), Masking(~mask, output(one)))
    assert total.item() == pytest.approx(swapped.item())
    assert terms["masked"].item() == pytest.approx(others["unmasked"].item())
    # each frame of each teacher is read by one half alone
    for changed, half in ((one, ~mask), (two, mask)):
        for layer in changed:
            layer[half] = float("nan")
    assert made(output(one), output(own), Masking(mask, output(two)))[0].item() == pytest.approx(total.item())
    same = made(output(own), output(own), Masking(mask, output(own)))[0]
    assert same.item() == 0.0


def objective(teacher=None, lengths=None, **options):
    """An objective in training over random waves."""
    torch.manual_seed(0)
    teacher, student = teacher or Encoder(TEACHER), Encoder(STUDENT)
    total = losses.build({"masked": options}, teacher.config, student.config)
    return Objective(student, total, Teacher(teacher), padded=True).train()


def batch(lengths=(4000, 3200, 2100)):
    generator = torch.Generator().manual_seed(1)
    waves = [torch.randn(n, generator=generator) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    places = list(range(len(lengths)))
    return Batch(padded, torch.tensor([len(w) for w in waves]), [str(n) for n in places], places, [])


def test_student_and_teachers_hear_the_same_spans(monkeypatch):
    made, heard = objective(length=4), []
    contextualize = Encoder.contextualize

    def listening(self, features_BTD, frames_B, *arguments, **named):
        masked = named.get("masked") or (arguments[2] if len(arguments) > 2 else None)
        heard.append((self.config.width, None if masked is None else masked.mask_BT))
        return contextualize(self, features_BTD, frames_B, *arguments, **named)

    monkeypatch.setattr(Encoder, "contextualize", listening)
    loss_, terms = made(batch())
    (width, plain), (_, second), (own_width, own) = heard
    assert (width, own_width) == (16, 12) and plain is None and torch.equal(second, own) and own.any()
    assert set(terms) == {"masked/masked", "masked/unmasked"}
    loss_.backward()
    assert made.loss.losses["masked"].vector.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.teacher.encoder.parameters())
    heard.clear()
    assert set(made.eval()(batch())[1]) == {"masked/whole"} and all(mask is None for _, mask in heard)


@pytest.mark.parametrize("vector", ["own", "mean"])
def test_alone_equals_in_a_padded_batch(vector):
    teacher = Encoder(TEACHER)
    teacher.mask_vector = torch.randn(16)
    made = objective(teacher, even=False, length=4, teacher_vector=vector)
    whole = batch()
    torch.manual_seed(5)
    together = made(whole)[0]
    frames = TEACHER.frames(whole.lengths_B)
    alone = 0.0
    for i, n in enumerate(whole.lengths_B.tolist()):
        torch.manual_seed(5)  # an utterance has its spans whoever is beside it
        one = Batch(whole.waveforms_BN[i : i + 1, :n], whole.lengths_B[i : i + 1], whole.paths[i : i + 1], [i], [])
        alone = alone + made(one)[0] * frames[i] / frames.sum()
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_masked_frames_hear_the_vector():
    torch.manual_seed(0)
    encoder = Encoder(STUDENT).eval()
    features, frames = encoder.features(torch.randn(2, 3000))
    mask = torch.zeros(features.shape[:2], dtype=torch.bool)
    mask[1, 3:7] = True
    vector = torch.randn(12)
    replaced = features.clone()
    replaced[mask] = vector
    expected = encoder.contextualize(replaced, frames).states
    found = encoder.contextualize(features, frames, masked=Masked(mask, vector)).states
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    # the vector takes no part in the dropout of the features
    noisy = Encoder(EncoderConfig(**{**SMALL, "feature_dropout": 0.9}, width=12)).train()
    output = noisy.contextualize(features, frames, masked=Masked(mask, vector))
    assert torch.equal(output.dropped_BTD[mask], vector.expand(4, -1)) and not output.dropped_BTD[~mask].all()


# the teacher's vector


def test_the_teachers_vector():
    teacher, made = Encoder(TEACHER), loss()
    heard = EncoderOutput([torch.zeros(2, 3, 16)], torch.tensor([3, 2]), torch.ones(2, 3, 16), None, None)
    heard.features_BTD[0, 0], heard.features_BTD[1, 2] = 4.0, float("nan")  # mean 2; padding does not count
    mean = made.teacher_masked(teacher, heard, torch.zeros(2, 3, dtype=torch.bool)).vector_D
    assert torch.equal(mean, torch.tensor([2.0, 1.0])[:, None, None].expand(2, 1, 16))
    assert MaskedLoss.calibrate(MaskedConfig(), teacher, (), 0) == {"teacher_vector": "mean"}
    assert "holds no vector for masked frames" in losses.explain("masked", {"teacher_vector": "mean"})
    assert "pre-trained with" in losses.explain("masked", {"teacher_vector": "own"})
    with pytest.raises(StarError, match="masked.teacher_vector: the teacher's file holds no vector.* take 'mean'"):
        MaskedLoss.calibrate(MaskedConfig(teacher_vector="own"), teacher, (), 0)
    teacher.mask_vector = torch.arange(16.0)
    assert MaskedLoss.calibrate(MaskedConfig(), teacher, (), 0) == {"teacher_vector": "own"}
    assert torch.equal(made.teacher_masked(teacher, heard, torch.zeros(2, 3)).vector_D, torch.arange(16.0))
    equal = loss(TEACHER, EncoderConfig(**SMALL, width=16), teacher_vector="student")
    assert torch.equal(equal.teacher_masked(teacher, heard, torch.zeros(2, 3)).vector_D, equal.vector)


def test_a_checkpoint_keeps_the_vector_and_no_digest_changes(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(TEACHER)
    before, size = checkpoint.digest(encoder), sum(p.numel() for p in encoder.parameters())
    encoder.mask_vector = torch.randn(16)
    checkpoint.save(tmp_path / "one", encoder, {})
    again = checkpoint.load(tmp_path / "one")
    assert torch.equal(again.mask_vector, encoder.mask_vector) and checkpoint.digest(again) == before
    assert sum(p.numel() for p in again.parameters()) == size and "mask_vector" not in again.state_dict()
    encoder.mask_vector = torch.randn(15)
    checkpoint.save(tmp_path / "two", encoder, {})
    with pytest.raises(StarError, match=r"mask_vector has shape \[15\], the configuration asks for \[16\]"):
        checkpoint.load(tmp_path / "two")


# spans


def runs(mask):
    """(start, length) of every run of True."""
    return [
        (group[0][0], len(group))
        for key, group in ((k, list(g)) for k, g in itertools.groupby(enumerate(mask), key=lambda x: x[1]))
        if key
    ]


@pytest.mark.parametrize("space", [0, 1, 3])
def test_spans_are_apart_and_at_most_twice_the_mean(space):
    config, shares = MaskedConfig(probability=0.5, length=10, space=space), []
    for seed in range(60):
        mask = draw_spans(300, config, np.random.default_rng(seed))
        found = runs(mask)
        assert found and (space == 0 or all(length <= 20 for _, length in found))  # without space spans may touch
        gaps = [b - a - length for (a, length), (b, _) in itertools.pairwise(found)]
        assert all(gap >= max(space, 1) for gap in gaps)
        shares.append(mask.mean())
    # 15 spans of 0 to 20 frames find room in 300
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)


def test_how_many_spans_and_how_long():
    """One span of known length: its start is uniform over the places that leave a frame free at the end."""
    config = MaskedConfig(probability=0.01, length=10)
    lengths, starts = [], []
    for seed in range(400):
        found = runs(draw_spans(1000, config, np.random.default_rng(seed)))
        assert len(found) <= 2  # the fewest, of which one may have length 0
        lengths += [length for _, length in found]
        starts += [start for start, _ in found]
    assert set(lengths) == set(range(1, 21)) and np.mean(lengths) == pytest.approx(10.5, abs=0.7)
    assert np.mean(starts) == pytest.approx(495, abs=30)


@pytest.mark.parametrize("frames", [1, 2, 5, 21, 22])
def test_short_utterances_have_what_fits(frames):
    for seed in range(40):
        mask = draw_spans(frames, MaskedConfig(), np.random.default_rng(seed))
        assert len(mask) == frames and not mask.all()


def test_masks_of_a_batch():
    frames = torch.tensor([200, 150, 60])
    made, plain = loss(), loss(even=False)
    torch.manual_seed(3)
    masks = made.draw(frames, 210, [7, 8, 9])
    assert len(set(masks.sum(1).tolist())) == 1 and masks.shape == (3, 210)
    assert not any(row[n:].any() for row, n in zip(masks, frames))
    torch.manual_seed(3)
    assert torch.equal(made.draw(frames, 210, [7, 8, 9]), masks), "a function of torch's random state"
    assert not torch.equal(made.draw(frames, 210, [7, 8, 9]), masks)
    torch.manual_seed(3)
    loose = plain.draw(frames, 210, [7, 8, 9])
    assert bool((masks <= loose).all()) and len(set(loose.sum(1).tolist())) == 3
    torch.manual_seed(3)
    assert torch.equal(plain.draw(frames[1:], 210, [8, 9]), loose[1:])


# what is refused


@pytest.mark.parametrize(
    ("student", "options", "message"),
    [
        (
            {"output_projection": 0, "hidden_states": "layers"},
            {},
            "masked: the student's layers give 12 channels, the teacher's 16; set student.output_projection=16",
        ),
        ({"layers": 1}, {}, "masked: teacher and student must have one depth, they have 2 and 1 layers"),
        ({"conv_layers": ((8, 10, 5), (16, 8, 4))}, {}, "masked: teacher and student must have one frame rate"),
        (
            {"conv_layers": ((8, 10, 5), (16, 12, 8))},
            {},
            "masked: masks the same frames of teacher and student, which see",
        ),
        ({}, {"weights": [1, 2, 3]}, r"masked.weights: expected 2 weights .* got \[1.0, 2.0, 3.0\]"),
        ({}, {"probability": 0}, "loss.masked.probability: must be above 0"),
        ({}, {"teacher_vector": "student"}, "masked.teacher_vector: 'student' needs models of one width"),
        ({}, {"probabilty": 0.4}, "did you mean 'probability'"),
    ],
)
def test_what_is_refused(student, options, message):
    values = {**SMALL, "width": 12, "output_projection": 16, "hidden_states": "projections", **student}
    with pytest.raises(StarError, match=message):
        losses.build({"masked": options}, TEACHER, EncoderConfig(**values))
