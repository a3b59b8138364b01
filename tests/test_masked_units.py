"""Masked prediction of units: masks as they should be, cross entropy by hand."""

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from star_upstream import losses, units
from star_upstream.data.batches import Batch
from star_upstream.data.clips import Clip
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput
from star_upstream.errors import StarError
from star_upstream.losses.common import Masking
from star_upstream.losses.units import MaskConfig, MaskedUnits, UnitsConfig, UnitsLoss, draw_mask
from star_upstream.training import recipe
from star_upstream.training.distill import Objective, Teacher

CONFIG = EncoderConfig(
    conv_layers=((8, 10, 5), (8, 8, 8), (16, 8, 8)), projection=False, width=16, layers=2, heads=2, head_width=8,
    ffn=32,
    position_kernel=8, position_groups=2, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def test_masks_cover_spans_and_are_drawn_anew():
    config = MaskConfig()
    first, again, other = (draw_mask(50, 200, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # a frame stays unmasked when none of the 10 places before it starts a span: 1 - (1 - 0.065)^10 is 49 %
    assert 0.42 < first.float().mean() < 0.56
    assert first.any(1).all()
    runs = np.diff(np.flatnonzero(np.diff(np.pad(first.numpy().astype(int), ((0, 0), (1, 1)))[0])))[::2]
    assert min(runs[:-1]) >= config.span
    assert draw_mask(3, 4, config, np.random.default_rng(0)).shape == (3, 4)


def test_the_loss_is_cross_entropy_over_masked_frames_and_a_share_of_the_others():
    torch.manual_seed(0)
    model = MaskedUnits(Encoder(CONFIG), 5, MaskConfig(unmasked_weight=0.25)).eval()
    waves = 0.1 * torch.randn(2, 6400)
    frames = CONFIG.frames(6400)
    target = torch.randint(0, 5, (2, frames))
    mask = torch.zeros(2, frames, dtype=torch.bool)
    mask[0, 3:7] = mask[1, :2] = True
    loss, terms = model(waves, target, mask)
    features, lengths = model.encoder.features(waves)
    features = torch.where(mask[..., None], model.mask_embedding, features)
    logits = model.classifier(model.encoder.contextualize(features, lengths).states[-1])
    masked, unmasked = F.cross_entropy(logits[mask], target[mask]), F.cross_entropy(logits[~mask], target[~mask])
    torch.testing.assert_close(loss, masked + 0.25 * unmasked)
    torch.testing.assert_close(terms["masked"], masked)
    assert float(terms["accuracy"]) == pytest.approx((logits.argmax(-1) == target)[mask].float().mean().item())


def test_what_is_masked_is_not_seen_and_a_batch_masked_whole_is_finite():
    torch.manual_seed(0)
    model = MaskedUnits(Encoder(CONFIG), 5, MaskConfig()).eval()
    target = torch.zeros(1, CONFIG.frames(3200), dtype=torch.long)
    mask = torch.ones_like(target, dtype=torch.bool)
    one, other = (model(0.1 * torch.randn(1, 3200), target, mask) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.isfinite(one[0])


# the units of a teacher that hears the same batch


def units_loss(**options):
    return UnitsLoss(UnitsConfig(**{"layer": 1, "number": 3, **options}), CONFIG, CONFIG)


def output(states_BTD, lengths):
    """Whose every layer gives the same."""
    return EncoderOutput([states_BTD] * 3, torch.tensor(lengths), states_BTD, None, None)


def test_units_of_the_teachers_frames_by_hand():
    made = units_loss(unmasked_weight=0.5)
    made.centres_KD.copy_(torch.eye(3, 16) * torch.tensor([[1.0], [2.0], [3.0]]))
    teacher_BTD, student_BTD = torch.zeros(2, 3, 16), torch.randn(2, 3, 16)
    teacher_BTD[0, 0, 0], teacher_BTD[0, 1, 1], teacher_BTD[0, 2, 2], teacher_BTD[1, 0, 1] = 0.9, 1.9, 9.0, 0.8
    # nearest: (0, 1, 2), and for 0.8 on the second axis 0.64 + 1 (first centre), 1.44 (second), 0.64 + 9 (third)
    targets = torch.tensor([0, 1, 2, 1])
    mask_BT = torch.tensor([[True, False, True], [False, True, True]])
    teacher, student = output(teacher_BTD, [3, 1]), output(student_BTD, [3, 1])
    logits = made.classifier(torch.cat([student_BTD[0], student_BTD[1, :1]]))
    rows, hidden = F.cross_entropy(logits, targets, reduction="none"), torch.tensor([True, False, True, False])
    total, terms = made(teacher, student, Masking(mask_BT, None))
    torch.testing.assert_close(total, rows[hidden].mean() + 0.5 * rows[~hidden].mean())
    assert terms["accuracy"].item() == pytest.approx((logits.argmax(-1) == targets)[hidden].float().mean().item())
    total, terms = made(teacher, student)
    torch.testing.assert_close(total, rows.mean())
    assert set(terms) == {"whole", "accuracy"}


def test_the_student_is_masked_the_teacher_is_not_and_alone_is_as_in_a_batch():
    torch.manual_seed(0)
    teacher, student = Encoder(CONFIG), Encoder(CONFIG)
    total = losses.build({"units": {"layer": 2, "number": 3, "span": 2}}, CONFIG, CONFIG)
    total.losses["units"].centres_KD.normal_()
    made = Objective(student, total, Teacher(teacher), padded=True).train()
    waves = [torch.randn(n) for n in (6400, 4000)]
    padded, lengths = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([6400, 4000])
    torch.manual_seed(3)
    made(Batch(padded, lengths, ["a", "b"], [7, 8], []))[0].backward()
    assert total.losses["units"].vector.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    frames = CONFIG.frames(lengths)
    torch.manual_seed(5)
    both = total.masker.draw(frames, int(frames.max()), [7, 8])
    torch.manual_seed(5)
    alone = total.masker.draw(frames[1:], int(frames[1]), [8])
    assert torch.equal(both[1, : frames[1]], alone[0]) and not both[1, frames[1] :].any() and both.any(1).all()


def test_units_are_found_on_audio_once_and_go_with_the_state(tmp_path):
    for i in range(4):
        wave = np.random.default_rng(i).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000)
    clips = [Clip(str(tmp_path / f"{i}.wav"), 8000) for i in range(4)]
    teacher = Encoder(CONFIG).eval()
    first, again, other = units_loss(), units_loss(), units_loss()
    first.fit(teacher, clips, 0)
    again.fit(teacher, clips, 0)
    assert torch.equal(first.centres_KD, again.centres_KD) and len(first.centres_KD.unique(dim=0)) == 3
    states = torch.cat([torch.from_numpy(x).float() for _, (x,) in units.encoded(clips, teacher, [1])])
    distances = torch.cdist(states, first.centres_KD)
    assert torch.equal(first.nearest(states), distances.argmin(-1))
    other.load_state_dict(first.state_dict())
    other.fit(teacher, clips[:1], 1)  # what is there stays
    assert torch.equal(first.centres_KD, other.centres_KD)
    with pytest.raises(StarError, match="500 of .* frames; lower the number"):
        units_loss(number=500).fit(teacher, clips, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": None}, "units.layer: name one of the teacher's, 0 to 2, got None"),
        ({"layer": 3}, "0 to 2, got 3"),
        ({"number": 1}, "number: must be 2 or more, got 1"),
        ({"seconds": 0.0}, "seconds: must be above 0"),
        ({"span": 0}, "span: must be 1 or more"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(StarError, match=message):
        units_loss(**options)


def test_the_recipes_take_stars_students():
    for own, star in (("dicehubert", "star_hubert"), ("dicehubert_mini", "star_mini")):
        assert recipe.load(own).student == recipe.load(star).student and set(recipe.load(own).loss) == {"units"}
