"""Recipes for another teacher, and students at a number of parameters."""

import dataclasses

import pytest

from star_upstream.encoder import EncoderConfig
from star_upstream.encoder.size import without_training
from star_upstream.errors import StarError
from star_upstream.pruning.size import Size
from star_upstream.training import recipe, scale
from star_upstream.training.config import Initialisation


@pytest.fixture
def mini():
    """A teacher of eight layers, 7.03 M parameters."""
    convs = ((32, 10, 5), (64, 3, 2), (128, 3, 2), (128, 3, 2), (192, 3, 2), (256, 2, 2), (256, 2, 2))
    return EncoderConfig(conv_layers=convs, width=256, position_kernel=64, layers=8, heads=4, ffn=1024)


@pytest.mark.parametrize("wanted", [1_500_000, 2_300_000])
@pytest.mark.parametrize("name", ["star_mini", "star_hubert", "star_wavlm"])
def test_widths_are_solved_for(mini, name, wanted):
    own = recipe.load(name)
    found, count, changed = scale.adapt(own, wanted, "star_mini_teacher", mini)
    student = found.student
    assert count == without_training(student) == pytest.approx(wanted, rel=0.005)
    assert student.layers == mini.layers and student.heads[0] * student.head_width == student.width
    assert student.conv_layers[-1][0] == student.width and len(student.conv_layers) == len(own.student.conv_layers)
    before, after = own.student.ffn[0] / own.student.width, student.ffn[0] / student.width
    assert 0.6 < after / before < 1.8, "the FFN keeps its proportion"
    untouched = ("dropout", "hidden_states", "norm", "position_kernel", "projection")
    assert all(getattr(student, key) == getattr(own.student, key) for key in untouched)
    assert found.teacher == "star_mini_teacher" and any(text.startswith("student.ffn ") for text in changed)


def test_a_size_that_is_there_is_left(mini):
    own = recipe.load("star_mini")
    found, _, changed = scale.adapt(own, without_training(own.student), "star_mini_teacher", mini)
    assert found == own and changed == []


def test_layers_keep_their_share_of_the_depth(mini):
    found, count, _ = scale.adapt(recipe.load("dphubert"), 2_000_000, "star_mini_teacher", mini)
    assert found.loss["hint"]["teacher_layers"] == [0, 3, 5, 8]
    assert found.pruning.target == pytest.approx(1 - 2_000_000 / Size(mini).original, abs=1e-6) and count == 2_000_000
    loss = {"own": {"layer": 9, "weights": [0.1] * 11 + [1.0], "teacher_layers": [4, 12], "scale": [1, 2]}}
    changed, _, _ = scale.adapt(
        dataclasses.replace(recipe.load("star_hubert"), loss=loss), 2_000_000, "star_mini_teacher", mini
    )
    assert changed.loss["own"] == {"layer": 6, "weights": [0.1] * 7 + [1.0], "teacher_layers": [3, 8], "scale": [1, 2]}


def test_first_layers_of_the_teacher(mini):
    """DistilHuBERT's student has its teacher's shape: only the number of layers is free, and its heads do not count."""
    own = recipe.load("distilhubert")
    found, count, _ = scale.adapt(own, 2_300_000, "star_mini_teacher", mini)
    student = found.student
    assert (student.layers, student.width, student.conv_layers) == (2, mini.width, mini.conv_layers)
    assert student.prediction_layers == (3, 5, 8) and count == without_training(student) < 2_300_000
    one, _, _ = scale.adapt(own, 1_500_000, "star_mini_teacher", mini)
    assert one.student.layers == 1 and one.training.initialise_from_teacher.layers == (1,)
    with pytest.raises(StarError, match=r"it can have 1,501,888, 2,291,648, 3,081,408"):
        scale.adapt(own, 1_900_000, "star_mini_teacher", mini)
    # from random values its width is solved for like any other
    training = dataclasses.replace(own.training, initialise_from_teacher=Initialisation())
    free, count, _ = scale.adapt(dataclasses.replace(own, training=training), 1_900_000, "star_mini_teacher", mini)
    assert count == pytest.approx(1_900_000, rel=0.005) and free.student.layers == 2


def test_attention_reuse_and_heads_on_every_layer(mini):
    """The peers' shape: every second layer reuses a map, every layer has a head of the teacher's width."""
    student = EncoderConfig(
        conv_layers=((480, 10, 5), *((480, 3, 2),) * 4, *((480, 2, 2),) * 2), width=480, heads=12, head_width=40,
        ffn=864, projection=False, output_projection=768, reuse_attention=(False, True) * 6,
        hidden_states="projections",
    )  # fmt: skip
    own = dataclasses.replace(recipe.load("star_hubert"), student=student)
    found = scale.adapt(own, 2_000_000, "star_mini_teacher", mini)[0].student
    assert found.reuse_attention == (False, True) * 4 and found.output_projection == mini.width
    assert found.heads == (4,) * 8 and without_training(found) == pytest.approx(2_000_000, rel=0.005)


def test_what_cannot_be_scaled_says_so(mini):
    for name, wanted, message in (
        ("dphubert_mini", 8_000_000, "not below the teacher's"),
        ("star_mini", 1_000, "the nearest size of this student is"),
    ):
        with pytest.raises(StarError, match=message):
            scale.adapt(recipe.load(name), wanted, "star_mini_teacher", mini)
