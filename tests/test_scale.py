"""Recipes for another teacher, and students at a number of parameters."""

import dataclasses

import pytest
import torch

from star_upstream import losses
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
    found, count = scale.adapt(own, wanted, "star_mini_teacher", mini)
    student = found.student
    assert count == without_training(student) == pytest.approx(wanted, rel=0.005)
    assert student.layers == mini.layers and student.heads[0] * student.head_width == student.width
    assert student.conv_layers[-1][0] == student.width and len(student.conv_layers) == len(own.student.conv_layers)
    before, after = own.student.ffn[0] / own.student.width, student.ffn[0] / student.width
    assert 0.6 < after / before < 1.8, "the FFN keeps its proportion"
    untouched = ("dropout", "hidden_states", "norm", "position_kernel", "projection")
    assert all(getattr(student, key) == getattr(own.student, key) for key in untouched)
    changed = scale.differences(own, found)
    assert found.teacher == "star_mini_teacher" and any(text.startswith("student.ffn ") for text in changed)


def test_a_size_that_is_there_is_left(mini):
    own = recipe.load("star_mini")
    found, _ = scale.adapt(own, without_training(own.student), "star_mini_teacher", mini)
    assert found == own and scale.differences(own, found) == []


def test_layers_keep_their_share_of_the_depth(mini):
    found, count = scale.adapt(recipe.load("dphubert"), 2_000_000, "star_mini_teacher", mini)
    assert found.loss["hint"]["teacher_layers"] == [0, 3, 5, 8]
    assert found.pruning.target == pytest.approx(1 - 2_000_000 / Size(mini).original, abs=1e-6) and count == 2_000_000
    loss = {"own": {"layer": 9, "weights": [0.1] * 11 + [1.0], "teacher_layers": [4, 12], "scale": [1, 2]}}
    changed, _ = scale.adapt(
        dataclasses.replace(recipe.load("star_hubert"), loss=loss), 2_000_000, "star_mini_teacher", mini
    )
    assert changed.loss["own"] == {"layer": 6, "weights": [0.1] * 7 + [1.0], "teacher_layers": [3, 8], "scale": [1, 2]}


def test_first_layers_of_the_teacher(mini):
    """DistilHuBERT's student has its teacher's shape: only the number of layers is free, and its heads do not count."""
    own = recipe.load("distilhubert")
    found, count = scale.adapt(own, 2_300_000, "star_mini_teacher", mini)
    student = found.student
    assert (student.layers, student.width, student.conv_layers) == (2, mini.width, mini.conv_layers)
    assert student.prediction_layers == (3, 5, 8) and count == without_training(student) < 2_300_000
    one, _ = scale.adapt(own, 1_500_000, "star_mini_teacher", mini)
    assert one.student.layers == 1 and one.training.initialise_from_teacher.layers == (1,)
    with pytest.raises(StarError, match=r"it can have 1,501,888, 2,291,648, 3,081,408"):
        scale.adapt(own, 1_900_000, "star_mini_teacher", mini)
    # from random values its width is solved for like any other
    training = dataclasses.replace(own.training, initialise_from_teacher=Initialisation())
    free, count = scale.adapt(dataclasses.replace(own, training=training), 1_900_000, "star_mini_teacher", mini)
    assert count == pytest.approx(1_900_000, rel=0.005) and free.student.layers == 2


def test_what_cannot_be_scaled_says_so(mini):
    for name, wanted, message in (
        ("dphubert_mini", 8_000_000, "not below the teacher's"),
        ("star_mini", 1_000, "the nearest size of this student is"),
    ):
        with pytest.raises(StarError, match=message):
            scale.adapt(recipe.load(name), wanted, "star_mini_teacher", mini)


PEERS = (
    *("fithubert", "fitw2v2", "maskhubert", "armhubert", "armhubert_s_100h", "armwavlm_s"),
    *("star_hubert_last_attention_100h", "star_hubert_all_three_100h"),
)


@pytest.mark.parametrize("name", PEERS)
def test_peers_fit_another_teacher(mini, name):
    """Heads, losses, masked teachers and reused maps are those of the teacher that is there."""
    own = recipe.load(name)
    found, count = scale.adapt(own, 2_000_000, "star_mini_teacher", mini)
    student = found.student
    assert count == without_training(student) == pytest.approx(2_000_000, rel=0.005)
    assert student.layers == mini.layers and found.loss == own.loss
    assert student.output_projection == (mini.width if own.student.output_projection else 0)
    assert student.reuse_attention == (None if own.student.reuse_attention is None else (False, True) * 4)
    with torch.device("meta"):
        total = losses.build(found.loss, mini, student)
    assert total.masker is None or len(total.masker.weights) == mini.layers
    frames = mini.frames(16_000)
    assert student.frames(16_000) == frames // student.time_reduction * student.time_reduction
