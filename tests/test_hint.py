"""Layer-to-layer loss: hand-computed values, its maps, padding, gradients, and what is refused."""

import pytest
import torch

from star_upstream import losses, strict
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput
from star_upstream.errors import StarError
from star_upstream.losses.hint import HintConfig, HintLoss


def config(layers=1, width=2, stride=5):
    return EncoderConfig(
        conv_layers=((width, 10, stride),),
        width=width,
        layers=layers,
        heads=1,
        head_width=width,
        ffn=4,
        position_groups=1,
    )


def output(states, lengths=None, features=None):
    lengths = torch.tensor(lengths or [states[0].shape[1]] * len(states[0]))
    return EncoderOutput(states, lengths, states[0] if features is None else features, None, None)


def hint(teacher=None, student=None, **options):
    return HintLoss(strict.build(HintConfig, options, "loss.hint"), teacher or config(), student or config())


# one utterance of two frames of two channels
TEACHER = [torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])]
STUDENT = [torch.tensor([[[4.0, 3.0], [2.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, -1.0]]])]
# layer 0: |-1| + |1| + |2| + |2| over 4 = 1.5, cosines 24/25 and 0; layer 1: 1 and 2 over 4 = 0.75, cosines 1 and -1
L1, COSINE = (1.5, 0.75), (0.48, 0.0)


def test_by_hand():
    total, terms = hint(teacher_layers=[0, 1])(output(TEACHER), output(STUDENT))
    assert terms["l1"].item() == pytest.approx(sum(L1) / 2) and terms["cosine"].item() == pytest.approx(
        -sum(COSINE) / 2
    )
    assert total.item() == pytest.approx((sum(L1) - sum(COSINE)) / 2)
    total, _ = hint(teacher_layers=[0, 1], reduction="sum", l1=2.0, cosine=0.5)(output(TEACHER), output(STUDENT))
    assert total.item() == pytest.approx(2 * sum(L1) - 0.5 * sum(COSINE))
    # across: the teacher's layer 0 against the student's 1 is |1| + |4| + |0| + |3| over 4, cosines 0.6 and -1
    total, terms = hint(teacher_layers=[0], student_layers=[1])(output(TEACHER), output(STUDENT))
    assert total.item() == pytest.approx(2.0 + 0.2)


# FitHuBERT: squared errors of the student's own heads, layers but the last with a tenth of the weight


def test_squared_errors_and_weights_by_hand():
    # layer 0: (1 + 1 + 4 + 4) / 4 = 2.5; layer 1: (1 + 0 + 0 + 4) / 4 = 1.25
    options = {"teacher_layers": [0, 1], "l1": 0.0, "cosine": 0.0, "mse": 2.0, "reduction": "sum"}
    total, terms = hint(**options)(output(TEACHER), output(STUDENT))
    assert terms["mse"].item() == pytest.approx(3.75) and total.item() == pytest.approx(7.5)
    total, terms = hint(**options, weights=[0.1, 1.0])(output(TEACHER), output(STUDENT))
    assert total.item() == pytest.approx(2 * (0.25 + 1.25)) and terms["l1"].item() == pytest.approx(0.1 * 1.5 + 0.75)
    total, terms = hint(teacher_layers=[0, 1], mse=2.0, weights=[3, 0.5])(output(TEACHER), output(STUDENT))
    assert total.item() == pytest.approx((3 * (1.5 - 0.48 + 5.0) + 0.5 * (0.75 + 2.5)) / 2)
    assert set(terms) == {"l1", "cosine", "mse"}


FIT = {"teacher_layers": "all", "maps": "heads", "l1": 0.0, "cosine": 0.0, "mse": 1.0, "weights": [0.1, 1.0]}
FIT["reduction"] = "sum"


def test_heads_are_compared_at_the_teachers_frame_rate():
    """Time reduction and heads with transposed convolutions, by hand over their outputs; a frame left over does not
    count."""
    torch.manual_seed(0)
    teacher = Encoder(config(3, width=8)).eval()
    changes = {"time_reduction": 2, "upsampling": "heads", "output_projection": 8, "hidden_states": "last"}
    student = Encoder(EncoderConfig(**{**vars(config(3, width=4)), **changes})).eval()
    loss = hint(teacher.config, student.config, **FIT)
    assert not list(loss.parameters()) and losses.trained_layers({"hint": FIT}, student.config) == (
        (1, 2, 3),
        (1, 2, 3),
    )
    wave, lengths = torch.randn(2, 400), torch.tensor([400, 311])
    theirs, ours = teacher(wave, lengths), student(wave, lengths)
    frames = [n // 2 * 2 for n in theirs.lengths_B.tolist()]
    assert ours.lengths_B.tolist() == frames and frames[1] < theirs.lengths_B[1]
    expected = 0.0
    for weight, own, target in zip((0.1, 0.1, 1.0), ours.projections, theirs.states[1:]):
        for i, n in enumerate(frames):
            expected = expected + weight * (own[i, :n] - target[i, :n]).square().sum() / (8 * sum(frames))
    assert loss(theirs, ours)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    alone = sum(
        loss(teacher(w[None, :n]), student(w[None, :n]))[0] * k for w, n, k in zip(wave, lengths, frames)
    ) / sum(frames)
    assert loss(theirs, ours)[0].item() == pytest.approx(alone.item(), rel=1e-4)
    loss(theirs, ours)[0].backward()
    assert all(p.grad is not None for p in student.upsampling.parameters())


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        (FIT, {"layers": 1}, "hint.teacher_layers: 'all' needs models of equal depth, the teacher has 2 layers and"),
        (FIT, {"width": 4}, "hint.maps: the student's layers give 4 channels, the teacher's 2; set student.output_pro"),
        ({**FIT, "student_layers": [1]}, {}, "hint.student_layers: with teacher_layers: all they are the same"),
        ({**FIT, "teacher_layers": [0, 1]}, {}, "hint.teacher_layers: layer 0 has no head"),
        ({**FIT, "weights": [1.0]}, {}, "hint.weights: expected 2 weights"),
        ({**FIT, "weights": [0.0, 0.0]}, {}, "hint.weights: expected 2 weights"),
        ({**FIT, "teacher_layers": "each"}, {}, "hint.teacher_layers: expected a list of int or 'all'"),
    ],
)  # fmt: skip
def test_what_is_refused_of_heads(options, student, message):
    with pytest.raises(StarError, match=message):
        losses.build({"hint": options}, config(2), config(**{"layers": 2, **student}))


def test_layer_zero_is_the_cnn_output_or_the_first_layers_input():
    features = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    one = hint(teacher_layers=[0], cosine=0.0)(
        output(TEACHER, features=features), output(STUDENT, features=STUDENT[0])
    )[0]
    other = hint(teacher_layers=[0], cosine=0.0, zeroth="layer_input")(
        output(TEACHER, features=features), output(STUDENT)
    )[0]
    assert one.item() == pytest.approx(0.25) and other.item() == pytest.approx(L1[0])


def test_layer_zero_of_a_student_in_training_is_after_its_dropout():
    dropped = output(STUDENT, features=STUDENT[0])._replace(dropped_BTD=torch.tensor([[[0.0, 6.0], [4.0, 0.0]]]))
    loss = hint(teacher_layers=[0], cosine=0.0)
    # |3| + |-2| + |-4| + |2| over 4
    assert loss(output(TEACHER), dropped)[0].item() == pytest.approx(11 / 4)
    assert hint(teacher_layers=[0], cosine=0.0, zeroth="layer_input")(output(TEACHER), dropped)[
        0
    ].item() == pytest.approx(L1[0])


def test_a_model_is_at_no_distance_from_itself_until_a_map_moves():
    loss = hint(teacher_layers=[0, 1])
    total, terms = loss(output(TEACHER), output(TEACHER))
    assert terms["l1"].item() == 0.0 and total.item() == pytest.approx(-1.0)
    with torch.no_grad():
        loss.distance.maps[1].bias += torch.tensor([1.0, -1.0])
    assert loss(output(TEACHER), output(TEACHER))[1]["l1"].item() == pytest.approx(0.5)


def test_zero_maps_give_the_teachers_own_size_and_finite_gradients():
    loss = hint(teacher_layers=[0, 1])
    for parameter in loss.parameters():
        parameter.data.zero_()
    student = [x.clone().requires_grad_() for x in STUDENT]
    total, terms = loss(output(TEACHER), output(student))
    assert terms["l1"].item() == pytest.approx((9 / 4 + 2 / 4) / 2) and terms["cosine"].item() == 0.0
    total.backward()
    assert (
        all(p.grad.isfinite().all() for p in [*loss.parameters(), *student])
        and loss.distance.maps[0].weight.grad.abs().sum() > 0
    )


def test_weight_zero_asks_no_gradient_and_is_still_shown():
    student = [x.clone().requires_grad_() for x in STUDENT]
    total, terms = hint(teacher_layers=[1], l1=0.0)(output(TEACHER), output(student))
    assert terms["l1"].item() == pytest.approx(L1[1]) and not terms["l1"].requires_grad and total.requires_grad


@pytest.mark.parametrize(
    ("maps", "numbers"),
    [("zero_apart", [0, 1, 1, 1]), ("shared", [0, 0, 0, 0]), ("separate", [0, 1, 2, 3]), ("none", None)],
)
def test_arrangements_of_maps(maps, numbers):
    loss = hint(config(12), config(12), maps=maps)
    assert loss.distance.numbers == numbers and len(loss.distance.maps) == len(set(numbers or []))
    for linear in loss.distance.maps:
        assert torch.equal(linear.weight, torch.eye(2)) and not linear.bias.any()
    assert not hint(config(12), config(12), teacher_layers=[4, 8], maps="zero_apart").distance.numbers[0], (
        "no map is left without work"
    )


def test_widths_may_differ_and_maps_start_as_a_cut_identity():
    loss = hint(config(width=3), config(width=2), teacher_layers=[1])
    assert loss.distance.maps[0].weight.tolist() == [[1, 0], [0, 1], [0, 0]]
    teacher = [torch.tensor([[[1.0, 2.0, 3.0]]])] * 2
    assert loss(output(teacher), output([torch.tensor([[[1.0, 2.0]]])] * 2))[1]["l1"].item() == pytest.approx(1.0)
    assert hint(config(width=2), config(width=3), teacher_layers=[1]).distance.maps[0].weight.tolist() == [
        [1, 0, 0],
        [0, 1, 0],
    ]


def random_output(frames, generator, size=None, width=4):
    return output(
        [torch.randn(len(frames), size or max(frames), width, generator=generator) for _ in range(2)], list(frames)
    )


def test_alone_equals_in_a_padded_batch():
    generator = torch.Generator().manual_seed(0)
    loss = hint(config(width=4), config(width=4), teacher_layers=[0, 1])
    torch.nn.init.normal_(loss.distance.maps[1].weight)
    teacher, student = random_output((7, 4, 1), generator), random_output((7, 4, 1), generator)
    for model in (teacher, student):
        for state in model.states:
            state[1, 4:], state[2, 1:] = float("nan"), float("inf")
    student.states[1].requires_grad_()
    whole = loss(teacher, student)[0]
    # the batch's loss is the mean over its 12 frames
    alone = 0.0
    for i, frames in enumerate((7, 4, 1)):
        parts = [output([x[i : i + 1, :frames] for x in model.states]) for model in (teacher, student)]
        alone = alone + loss(*parts)[0] * frames / 12
    assert whole.item() == pytest.approx(alone.item(), rel=1e-6)
    assert torch.autograd.grad(whole, student.states[1])[0].isfinite().all()


def test_a_frame_that_only_one_model_has_does_not_count():
    generator = torch.Generator().manual_seed(0)
    loss = hint(config(width=4), config(width=4), teacher_layers=[0, 1])
    teacher, student = random_output((6, 5), generator), random_output((5, 5), generator)
    cut = output([x[:, :5] for x in teacher.states], [5, 5])
    assert loss(teacher, student)[0].item() == pytest.approx(loss(cut, student)[0].item())


def test_gradients_in_float64():
    generator = torch.Generator().manual_seed(0)
    teacher = random_output((5, 3), generator, width=2)
    teacher = output([x.double() for x in teacher.states], [5, 3])
    loss = hint(teacher_layers=[0, 1]).double()
    states = [torch.randn(2, 5, 2, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *s: loss(teacher, output(list(s), [5, 3]))[0], states)


def test_in_half_precision_the_distance_is_taken_in_fp32():
    loss = hint(teacher_layers=[0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss(output([x.bfloat16() for x in TEACHER]), output([x.bfloat16() for x in STUDENT]))
    assert total.dtype == torch.float32 and total.item() == pytest.approx((sum(L1) - sum(COSINE)) / 2, abs=1e-5)


def test_a_student_learns_through_the_table():
    torch.manual_seed(0)
    teacher, student = (Encoder(config(2, width=8)).eval() for _ in range(2))
    total = losses.build({"hint": {"teacher_layers": [0, 1, 2]}}, teacher.config, student.config)
    assert not total.needs_attention
    optimizer = torch.optim.Adam([*student.parameters(), *total.parameters()], 1e-2)
    wave, lengths, values = torch.randn(3, 400), torch.tensor([400, 300, 200]), []
    with torch.no_grad():
        target = teacher(wave, lengths)
    for _ in range(30):
        value, terms = total(target, student(wave, lengths))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.5 and set(terms) == {"hint/l1", "hint/cosine"}
    assert all(p.grad is not None for p in total.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"hint.teacher_layers: the teacher has layers 0 to 2, got 4"),
        (
            {"teacher_layers": [0, 2], "student_layers": [0, 3]},
            r"hint.student_layers: the student has layers 0 to 2, got 3",
        ),
        ({"teacher_layers": [-1]}, r"hint.teacher_layers: the teacher has layers 0 to 2, got -1"),
        ({"teacher_layers": []}, r"loss.hint.teacher_layers: name at least one"),
        ({"teacher_layers": [1, 2], "student_layers": [1]}, r"loss.hint.student_layers: expected 2 layers.* got \[1\]"),
        ({"teacher_layers": [1, 1]}, r"named twice in \[\[1, 1\], \[1, 1\]\]"),
        ({"l1": 0, "cosine": 0}, "at least one weight must be above 0"),
        ({"l1": -1}, "l1: must be 0 or more, got -1"),
        ({"maps": "split"}, r"loss.hint.maps: expected 'zero_apart' or 'shared'"),
        ({"teacher_layer": [1]}, "did you mean 'teacher_layers'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(StarError, match=message):
        losses.build({"hint": options}, config(2), config(2))


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(StarError, match="hint.maps: needed, since the teacher's width is 2 and the student's 4"):
        hint(config(), config(width=4), teacher_layers=[1], maps="none")
    with pytest.raises(StarError, match="one frame rate, their strides are 5 and 4"):
        hint(config(), config(stride=4), teacher_layers=[1])
