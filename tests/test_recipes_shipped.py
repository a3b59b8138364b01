"""The shipped recipes: the published sizes, and what the authors' code does."""

import dataclasses

import pytest

from star_upstream import losses, strict
from star_upstream.encoder import EncoderConfig
from star_upstream.encoder.size import parameters, without_training
from star_upstream.losses.masked import MaskedConfig
from star_upstream.losses.star import StarConfig
from star_upstream.pruning.config import GateConfig
from star_upstream.training import recipe
from star_upstream.training.config import Initialisation

TEACHERS = {"star_mini_teacher": EncoderConfig(layers=8, width=320, heads=5, ffn=1280)}


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_is_whole(name, tmp_path):
    loaded = recipe.load(name)
    assert loaded.about and not loaded.data.train
    teacher = TEACHERS.get(loaded.teacher, EncoderConfig())
    sections = dict(loaded.loss)
    if "skill" in sections:  # its groups are found on audio
        assert "groups" not in sections["skill"]
        sections["skill"] = {**sections["skill"], "groups": [[0, 1], list(range(2, teacher.layers + 1))]}
    losses.build(sections, teacher, loaded.student_config(teacher))
    (tmp_path / "copy.yaml").write_text(recipe.dump(loaded), encoding="utf-8")
    assert recipe.load(tmp_path / "copy.yaml") == loaded
    if name.startswith("star_") and not name.startswith(("star_mini", "star_small")):
        assert loaded.data.batch_items * loaded.training.accumulate * loaded.training.devices == 48
        assert loaded.training.epochs == (200 if name.endswith("_100h") else 100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("star_hubert", 22_308_592),
        ("star_wavlm", 22_308_592),
        ("star_hubert_l", 26_626_672),
        ("armhubert", 26_447_968),
        ("maskhubert", 26_635_360),
        *((name, 22_393_648) for name in ("armhubert_s", "armhubert_s_100h", "armwavlm_s", "armwavlm_s_100h")),
    ],
)
def test_published_parameters(name, expected):
    assert parameters(recipe.load(name).student) == expected


@pytest.mark.parametrize(("name", "millions"), [("star_hubert_s", 14.10), ("star_hubert_xs", 9.39)])
def test_our_sizes_match_the_printed_millions(name, millions):
    assert round(parameters(recipe.load(name).student) / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["fithubert", "fitw2v2"])
def test_what_fithuberts_authors_count(name):
    """22.49 M: with the last head alone, and with the transposed convolution that their model makes and never uses."""
    student = recipe.load(name).student
    assert parameters(student) == 31_168_352
    unused = 2 * 480 * 480 + 480
    assert round((without_training(student) + unused) / 1e6, 2) == 22.49


def test_what_distilhubert_and_the_others_run_with():
    assert round(without_training(recipe.load("distilhubert").student) / 1e6, 2) == 23.49
    for name in ("armhubert", "star_hubert"):  # what SUPERB is given takes all heads, or there are none
        student = recipe.load(name).student
        assert without_training(student) == parameters(student)


def test_what_the_peers_configurations_say():
    """Rows of the authors' files: learning rate, utterances a GPU x accumulation x GPUs, epochs, span probability."""
    rows = {
        "fithubert": (5e-4, (3, 4, 2), 100, None, False),
        "fitw2v2": (5e-4, (3, 4, 2), 100, None, False),
        "armhubert": (5e-3, (18, 4, 2), 200, 0.8, True),
        "armhubert_s": (5e-3, (18, 4, 2), 100, 0.8, True),
        "armhubert_s_100h": (5e-3, (6, 3, 2), 200, 0.4, True),
        "armwavlm_s": (5e-3, (18, 4, 2), 100, 0.8, True),
        "armwavlm_s_100h": (5e-3, (6, 3, 2), 200, 0.4, True),
        "maskhubert": (5e-4, (18, 4, 2), 200, 0.8, False),
    }
    for name, (rate, batch, epochs, probability, reuse) in rows.items():
        loaded = recipe.load(name)
        student, training, data = loaded.student, loaded.training, loaded.data
        assert (training.learning_rate, training.epochs) == (rate, epochs), name
        assert (data.batch_items, training.accumulate, training.devices) == batch
        assert data.batch_seconds >= batch[0] * data.max_seconds  # no other limit
        assert (training.betas, training.eps, training.weight_decay, training.decay) == (
            (0.9, 0.98),
            1e-6,
            0.01,
            "s3prl",
        )
        assert (training.warmup, training.schedule, training.clip, training.precision) == (
            0.05,
            "linear",
            0.0,
            "16-mixed",
        )
        assert (student.dropout, student.attention_dropout, student.activation_dropout) == (0.1, 0.1, 0.1)
        assert (student.feature_dropout, student.feature_gradient, student.output_projection) == (0.05, 1.0, 768)
        assert training.initialise_from_teacher == Initialisation()
        if probability is None:
            assert set(loaded.loss) == {"hint"} and student.time_reduction == 2 and student.hidden_states == "last"
        else:
            masked = strict.build(MaskedConfig, loaded.loss["masked"])
            assert masked == MaskedConfig(probability=probability) and set(loaded.loss) == {"masked"}
            assert student.hidden_states == "projections" and student.time_reduction == 1
        assert student.reuse_attention == ((False, True) * 6 if reuse else None)
        assert student.reuse_softmax == student.scale_layer_gradients == reuse


def test_stars_ablations():
    terms = {
        "star_hubert_last_attention_100h": (1.0, "last", 0.0, 0.0),
        "star_hubert_average_attention_100h": (1.0, "all", 0.0, 0.0),
        "star_hubert_layer_wise_100h": (0.0, "all", 1.0, 0.0),
        "star_hubert_intra_layer_100h": (0.0, "all", 0.0, 1.0),
        "star_hubert_100h": (0.0, "all", 1.0, 1.0),
        "star_hubert_all_three_100h": (1.0, "all", 1.0, 1.0),
    }
    for name, expected in terms.items():
        loaded = recipe.load(name)
        star = strict.build(StarConfig, loaded.loss["star"])
        assert (star.average_attention, star.attention_layers, star.layer_wise, star.intra_layer) == expected
        assert loaded.student == recipe.load("star_hubert").student


@pytest.mark.parametrize("name", ["star_hubert", "star_hubert_xs", "star_mini"])
def test_students_on_log_mel_frames_differ_in_the_front_end_alone(name):
    mel = name.replace("_xs", "") + "_mel" + ("_xs" if name.endswith("_xs") else "")
    plain, own = recipe.load(name).student, recipe.load(mel).student
    assert dataclasses.replace(own, frontend="waveform", conv_layers=plain.conv_layers) == plain
    assert own.frontend == "mel" and parameters(own) < parameters(plain)


@pytest.mark.parametrize("name", ["dphubert", "dpwavlm", "skill_hubert", "skill_wavlm_plus"])
def test_what_dphuberts_code_does(name):
    """Figures of its run.sh, distill.py, lightning.py and components.py (commit c18093f)."""
    loaded = recipe.load(name)
    changes = {k: v for k, v in vars(loaded.student_changes).items() if v is not None}
    assert changes == {
        "hidden_states": "features",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "feature_dropout": 0.1,
    }
    training, data, pruning = loaded.training, loaded.data, loaded.pruning
    assert (training.betas, training.eps, training.weight_decay, training.clip) == ((0.9, 0.999), 1e-8, 0.0, 10.0)
    assert (training.precision, training.devices, training.updates, round(training.warmup * training.updates)) == (
        "16-mixed",
        4,
        50_000,
        15_000,
    )
    assert (data.min_seconds * 16_000, data.max_seconds * 16_000, data.batch_seconds) == (32_000, 250_000, 160.0)
    assert (data.batches, data.counted, data.crop, data.batch_items) == ("repeated", "lengths", "shortest-random", None)
    assert (pruning.gates, pruning.quadratic_start) == (GateConfig(), 0.0)
    assert vars(pruning.gates.initial_keep) == {
        "conv_channels": 0.99, "heads": 0.99, "ffn_units": 0.5, "attention_layers": 0.99, "ffn_layers": 0.99
    }  # fmt: skip
    assert (pruning.second.updates, round(pruning.second.warmup * 25_000), pruning.second.learning_rate) == (
        25_000,
        5_000,
        1e-4,
    )
    assert (loaded.select, loaded.result) == ("last", "last")


def test_what_distilhuberts_code_does():
    """Figures of s3prl v0.4.18, pretrain/distiller (config_model.yaml, config_runner.yaml) and optimizers.py."""
    loaded = recipe.load("distilhubert")
    student, training, data = loaded.student, loaded.training, loaded.data
    assert (student.feature_gradient, student.activation_dropout, student.dropout, student.attention_dropout) == (
        0.1,
        0.1,
        0.1,
        0.1,
    )
    assert (student.feature_dropout, student.projection_norm, student.hidden_states) == (0.0, False, "last")
    assert (data.crop_seconds * 16_000, data.batch_items, data.batches, data.crop) == (250_000, 24, "sorted", "none")
    assert (training.precision, training.clip, training.updates, training.warmup, training.learning_rate) == (
        "16-mixed",
        5.0,
        200_000,
        0.07,
        2e-4,
    )
    assert (training.betas, training.eps, training.weight_decay, training.decay) == ((0.9, 0.98), 1e-6, 0.01, "s3prl")
    assert (training.initialise_from_teacher.norm, loaded.select) == (False, "last")
    other = recipe.load("distilhubert_kerpicci")
    assert (
        other.student.projection_norm,
        other.student.hidden_states,
        other.training.initialise_from_teacher.norm,
    ) == (True, "all", True)


def test_schedules_of_the_papers():
    loaded = recipe.load("skill_wavlm_plus")
    training, pruning = loaded.training, loaded.pruning
    assert (training.updates, training.learning_rate, training.weight_decay, training.clip) == (50_000, 2e-4, 0.0, 10.0)
    assert (training.warmup * 50_000, training.schedule, training.devices, loaded.data.batch_seconds) == (
        15_000,
        "linear",
        4,
        160.0,
    )
    assert (pruning.target, pruning.target_warmup * 50_000, pruning.gate_learning_rate) == (0.75, 5_000, 0.02)
    assert (pruning.second.updates, pruning.second.learning_rate, pruning.second.warmup * 25_000) == (
        25_000,
        1e-4,
        5_000,
    )
    assert (loaded.data.min_seconds, loaded.data.max_seconds, loaded.data.crop) == (2.0, 15.625, "shortest-random")
