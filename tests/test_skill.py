"""Layer-group loss: hand-computed values, its kinship with the hint loss, groups that are found and groups that are
refused."""

import numpy as np
import pytest
import soundfile
import torch

from star_upstream import losses, strict
from star_upstream.data.clips import Clip
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput
from star_upstream.errors import StarError
from star_upstream.losses.hint import HintConfig, HintLoss
from star_upstream.losses.skill import SkillConfig, SkillLoss


def config(layers=2, width=2, stride=5):
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


def loss(teacher=None, student=None, **options):
    return SkillLoss(strict.build(SkillConfig, options, "loss.skill"), teacher or config(), student or config())


# one utterance of one frame of two channels: layers 0, 1, 2
TEACHER = [torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 8.0]]])]
STUDENT = [torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[4.0, 5.0]]])]


def test_by_hand():
    # target (3, 4); the student's mean (2, 3): L1 1, cosine 18 / (5 sqrt 13); its last layer (4, 5): L1 1, cosine 32 /
    # (5 sqrt 41)
    total, terms = loss(groups=[[1, 2]], zeroth="none")(output(TEACHER), output(STUDENT))
    assert terms["l1"].item() == pytest.approx(1.0) and terms["cosine"].item() == pytest.approx(-18 / (5 * 13**0.5))
    assert total.item() == pytest.approx(1.0 - 18 / (5 * 13**0.5), abs=1e-6)
    # the last layer is the highest, however the group is written
    total, _ = loss(groups=[[2, 1]], zeroth="none", student_side="last")(output(TEACHER), output(STUDENT))
    assert total.item() == pytest.approx(1.0 - 32 / (5 * 41**0.5), abs=1e-6)
    # with layer 0 as its own group: L1 1, cosine 0
    total, terms = loss(groups=[[0], [1, 2]], cosine=2.0, reduction="sum")(output(TEACHER), output(STUDENT))
    assert terms["l1"].item() == pytest.approx(1.0 + 1.0) and total.item() == pytest.approx(
        2.0 - 2 * 18 / (5 * 13**0.5), abs=1e-6
    )


def random_output(frames, generator, layers=3, width=4):
    return output(
        [torch.randn(len(frames), max(frames), width, generator=generator) for _ in range(layers + 1)], list(frames)
    )


@pytest.mark.parametrize("side", ["mean", "last"])
@pytest.mark.parametrize("maps", ["separate", "shared"])
def test_one_layer_a_group_is_the_hint_loss(side, maps):
    generator = torch.Generator().manual_seed(0)
    model = config(3, width=4)
    groups = loss(model, model, groups=[[2], [0], [1], [3]], student_side=side, maps=maps)
    hints = HintLoss(strict.build(HintConfig, {"teacher_layers": [2, 0, 1, 3], "maps": maps}), model, model)
    for linear in groups.distance.maps:
        torch.nn.init.normal_(linear.weight, generator=generator)
    hints.load_state_dict(groups.state_dict())
    teacher, student = random_output((6, 3), generator), random_output((6, 3), generator)
    assert groups(teacher, student)[0].item() == pytest.approx(hints(teacher, student)[0].item(), rel=1e-6)


def test_alone_equals_in_a_padded_batch():
    generator = torch.Generator().manual_seed(0)
    model = config(3, width=4)
    groups = loss(model, model, groups=[[0, 2], [1, 3]])
    teacher, student = random_output((7, 4), generator), random_output((7, 4), generator)
    for state in [*teacher.states, *student.states]:
        state[1, 4:] = float("nan")
    alone = 0.0
    for i, frames in enumerate((7, 4)):
        alone = (
            alone
            + groups(*(output([x[i : i + 1, :frames] for x in m.states]) for m in (teacher, student)))[0] * frames / 11
        )
    assert groups(teacher, student)[0].item() == pytest.approx(alone.item(), rel=1e-6)


def test_every_layer_and_map_has_a_gradient():
    generator = torch.Generator().manual_seed(0)
    model = config(3, width=4)
    groups = loss(model, model, groups=[[0], [1, 3], [2]])
    teacher, student = random_output((7, 4), generator), random_output((7, 4), generator)
    for state in student.states:
        state.requires_grad_()
    groups(teacher, student)[0].backward()
    assert (
        all(p.grad.abs().sum() > 0 for p in [*student.states, *groups.parameters()]) and len(groups.distance.maps) == 3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"skill.groups: not known yet; give them .* or let losses.calibrate find them"),
        ({"groups": [[0], [1]]}, r"every layer from 0 to 2 in exactly one group; missing: \[2\]"),
        ({"groups": [[0], [1, 2], [2]]}, r"named twice: \[2\]"),
        ({"groups": [[0], [1, 2, 3]]}, r"not a layer: \[3\]"),
        ({"groups": [[0, 1, 2], []]}, r"a group is empty"),
        (
            {"groups": [[0], [1, 2]], "zeroth": "none"},
            r"every layer from 1 to 2 .*, 0 left out by zeroth: none; not a layer: \[0\]",
        ),
        ({"groups": [1, 2]}, r"loss.skill.groups\[0\]: expected a list of int, got 1"),
        ({"number": 0}, r"loss.skill.number: must be 1 or more, got 0"),
        ({"seconds": 0}, r"loss.skill.seconds: must be above 0"),
        ({"linkage": "ward", "estimator": "minibatch"}, "ward needs estimator exact"),
        ({"l1": 0, "cosine": 0}, "at least one weight must be above 0"),
        ({"mesure": "cka"}, "did you mean 'measure'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(StarError, match=message):
        losses.build({"skill": options}, config(), config())


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(StarError, match="one depth, they have 2 and 3 layers"):
        loss(config(2), config(3), groups=[[0], [1, 2]])
    with pytest.raises(StarError, match="one frame rate"):
        loss(config(), config(stride=4), groups=[[0], [1, 2]])


# groups found on audio


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    made = []
    for i in range(6):
        wave = (0.1 * random.standard_normal(int(random.uniform(0.3, 0.8) * 16_000))).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", wave, 16_000)
        made.append(Clip(str(folder / f"{i}.wav"), len(wave)))
    return made


@pytest.fixture(scope="module")
def teacher():
    """Layers 1 to 3 change next to nothing; the fourth does."""
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig(
            conv_layers=((16, 400, 320),), width=16, layers=4, heads=2, head_width=8, ffn=32, position_groups=2
        )
    )
    for layer in encoder.layers[:3]:
        for linear in (layer.ffn_out, layer.attention.output):
            linear.weight.data.mul_(0.01)
    encoder.layers[3].ffn_in.weight.data.mul_(100)
    encoder.layers[3].ffn_out.weight.data.mul_(100)
    return encoder


def test_groups_are_found_once_and_build_the_loss(teacher, clips):
    sections = {"skill": {"number": 2, "zeroth": "layer_input"}, "hint": {"teacher_layers": [1]}}
    measured = losses.calibrate(sections, teacher, clips, seed=1)
    assert measured == {"skill": {"groups": [[0, 1, 2, 3], [4]]}}
    resolved = losses.complete(sections, measured)
    assert resolved == {
        "skill": {"number": 2, "zeroth": "layer_input", "groups": [[0, 1, 2, 3], [4]]},
        "hint": {"teacher_layers": [1]},
    }
    assert "groups" not in sections["skill"], "what was given is left as it was"
    assert (
        losses.calibrate(sections, teacher, clips, seed=1) == measured and losses.calibrate(resolved, teacher, []) == {}
    )
    assert teacher.training, "the teacher is left in the mode that it was in"
    built = losses.build(resolved, teacher.config, teacher.config)
    out = teacher.eval()(torch.randn(2, 4000))
    teacher.train()
    value, terms = built(out, out)
    assert value.item() == pytest.approx(-2.0, abs=1e-5) and set(terms) == {
        "skill/l1",
        "skill/cosine",
        "hint/l1",
        "hint/cosine",
    }


@pytest.mark.parametrize(
    ("options", "used", "message"),
    [
        ({}, 0, "no clip of 400 samples"),
        ({"number": 6}, 6, "number: 6 groups cannot be made of 5 layers"),
        ({"groups": [[0, 1], [2, 3]]}, 6, r"missing: \[4\]"),
    ],
)
def test_calibration_names_what_is_wrong(teacher, clips, options, used, message):
    with pytest.raises(StarError, match=message):
        losses.calibrate({"skill": options}, teacher, clips[:used])
