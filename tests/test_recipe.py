"""Recipes: strict, mergeable, and the published sizes."""

import dataclasses

import pytest
import yaml

from star_upstream import losses, strict
from star_upstream.encoder import EncoderConfig
from star_upstream.encoder.size import parameters, without_training
from star_upstream.errors import StarError
from star_upstream.losses.masked import MaskedConfig
from star_upstream.losses.star import StarConfig
from star_upstream.pruning.config import GateConfig
from star_upstream.training import recipe
from star_upstream.training.config import Initialisation, Recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe

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


def test_choices_are_told_of_and_can_be_taken_back(tmp_path):
    base = recipe.load("star_hubert_s")
    assert {"sizes", "gram", "padding", "batches"} <= set(base.choices) and all(
        len(text) > 20 for text in base.choices.values()
    )
    (tmp_path / "own.yaml").write_text("base: star_hubert_s\nchoices: {sizes: null, mine: a reason of mine}\n")
    own = recipe.load(tmp_path / "own.yaml")
    assert set(own.choices) == {*base.choices, "mine"} - {"sizes"}
    (tmp_path / "copy.yaml").write_text(recipe.dump(own), encoding="utf-8")
    assert recipe.load(tmp_path / "copy.yaml") == own
    for name in recipe.names():
        assert recipe.load(name).choices, "every shipped recipe differs from its authors' code somewhere"


ODD = (
    "/x/d1 #2", "2024", "a: b", "~", "null", "yes", "1e3", "a=b", " /x  y ", "{a: b}", "- a", "[a", "&a", "*b", "!c",
    "%x", "@x", "`", "|", "a\tb", "'a'", "é", "x" * 130 + " y",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_text_or_a_path_is_taken_as_it_stands(text, tmp_path):
    loaded = recipe.load("star_mini", [f"data.train={text}", f"data.valid={text}", f"teacher={text}", f"about={text}"])
    assert (loaded.data.train, loaded.data.valid, loaded.teacher, loaded.about) == ((text,), (text,), text, text)
    (tmp_path / "copy.yaml").write_text(recipe.dump(loaded), encoding="utf-8")
    assert recipe.load(tmp_path / "copy.yaml") == loaded
    tuned = recipe.load(
        "multitask_mini", [f"data={text}", f"data.cache={text}", f"encoder={text}", f"name={text}"], FinetuneRecipe
    )
    assert (tuned.data.root, tuned.data.cache, tuned.encoder, tuned.name) == (text, text, text, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a, b]", ("a", "b")),
        ("[ /x #2,a: b, 2024,null ]", ("/x #2", "a: b", "2024", "null")),
        ("""['x, y', "q", 'it''s']""", ("x, y", "q", "it's")),
        ("[]", ()),
    ],
)
def test_a_list_of_texts_is_in_brackets(text, expected):
    assert recipe.load("star_mini", [f"data.valid={text}"]).data.valid == expected


def test_a_folder_in_brackets_is_taken_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[a, b]").mkdir()
    assert recipe.load("star_mini", ["data.train=[a, b]"]).data.train == ("[a, b]",)


def test_options_of_a_loss_are_yaml_and_its_texts_stand():
    loaded = recipe.load("skill_mini", ["loss.skill.linkage=ward", "loss.skill.number=3", "loss.skill.contiguous=true"])
    assert {"linkage": "ward", "number": 3, "contiguous": True}.items() <= loaded.loss["skill"].items()


@pytest.mark.parametrize("kind, data", [(Recipe, "data.train"), (FinetuneRecipe, "data")])
def test_a_folder_alone_is_told_its_key(kind, data, tmp_path):
    name = "star_mini" if kind is Recipe else "multitask_mini"
    (tmp_path / "a=b").mkdir()
    for word in (str(tmp_path), str(tmp_path / "a=b"), "~/no such", "./no"):
        with pytest.raises(StarError) as error:
            recipe.load(name, [word], kind)
        assert str(error.value).endswith(f"an override is key=value, e.g. {data}={word}")


def test_other_overrides_are_yaml_values():
    values = [
        "training.learning_rate=1e-3",
        "data.train=/a",
        "data.valid=[/b, /c]",
        "training.epochs=null",
        "training.updates=7",
    ]
    loaded = recipe.load("star_hubert", [*values, "loss.star.average_attention=2"])
    assert loaded.training.learning_rate == 1e-3 and (loaded.training.epochs, loaded.training.updates) == (None, 7)
    assert (loaded.data.train, loaded.data.valid) == (("/a",), ("/b", "/c"))
    assert loaded.loss == {"star": {"layer_wise": 1.0, "intra_layer": 1.0, "average_attention": 2}}


def test_base_states_only_differences(tmp_path):
    (tmp_path / "one.yaml").write_text("base: star_mini\nstudent: {ffn: 100}\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nloss: {star: null, other: {}}\n")
    loaded, mini = recipe.load(tmp_path / "two.yaml"), recipe.load("star_mini")
    assert loaded.student.ffn == (100,) * 8 and loaded.student.width == mini.student.width
    assert loaded.loss == {"other": {}} and loaded.training == mini.training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.epoch=3"], "training.epoch: unknown key; did you mean 'epochs'"),
        (["training.updates=3"], "epochs, updates, minutes: set exactly one"),
        (["training.epochs=null"], "epochs, updates, minutes: set exactly one"),
        (["training.epochs=0"], "training.epochs: must be above 0"),
        (["training.warmup=1"], "training.warmup: must be at least 0 and below 1"),
        (["training.schedule=step"], "training.schedule: expected 'cosine' or 'linear' or 'constant', got 'step'"),
        (["training.precision=64"], "training.precision: expected 32 or 'bf16-mixed' or '16-mixed' or 'auto', got 64"),
        (["student.width=433"], "width 433"),
        (["student=techer"], "student: expected EncoderConfig or 'teacher', got 'techer'"),
        (["student_changes.dropout=0.0"], "student_changes: only for student: teacher"),
        (["pruning.second.updates=1", "pruning.target=1"], "pruning.target: must be above 0 and below 1"),
        (["pruning.second.learning_rate=1"], "pruning.second.epochs, updates, minutes: set exactly one"),
        (["pruning.target=0.5"], "pruning.second: missing"),
        (
            ["pruning.second.updates=1", "pruning.gates.head=false"],
            "pruning.gates.head: unknown key; did you mean 'heads'",
        ),
        (["data.batch_seconds=5"], "data.batch_seconds: must be at least max_seconds"),
        (["data.min_seconds=50"], "data.min_seconds: must be above 0 and at most"),
        (["data.crop_seconds=0.5"], "data.crop_seconds: must be at least min_seconds (1.0), got 0.5"),
        (
            ["data.crop_seconds=20", "data.batch_seconds=5"],
            "data.batch_seconds: must be at least crop_seconds (20.0), got 5.0",
        ),
        (["data.counted=true"], "data.counted: expected 'padded' or 'lengths', got True"),
        (["data.batches=fixed"], "data.batches: expected 'mixed' or 'sorted' or 'repeated', got 'fixed'"),
        (["training.decay=all"], "training.decay: expected 'matrices' or 's3prl', got 'all'"),
        (["select=best"], "select: expected 'valid' or 'last', got 'best'"),
        (["data.train="], "'data.train=': no value after the equals sign"),
        (["training.betas=[a"], "not yaml"),
        (["training"], "an override is key=value"),
        (["training=3"], "training: expected"),
        (["loss=!!python/object/apply:os.system [ls]"], "not yaml"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(StarError) as error:
        recipe.load("star_hubert", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.dropout=0"],
            "student.dropout: cannot be set, since student is 'teacher'; give student_changes.dropout",
        ),
        (
            ["training.initialise_from_teacher.frontend=true"],
            "training.initialise_from_teacher: a student that is a copy",
        ),
        (["pruning.gates.stretch=[0.1, 1.1]"], "pruning.gates.stretch: must reach below 0 and above 1"),
        (["pruning.second.minutes=3"], "pruning.second.epochs, updates, minutes: set exactly one"),
        (["pruning.gates.initial_keep=1.0"], "pruning.gates.initial_keep: must be above 0 and below 1, got 1.0"),
        (
            ["pruning.gates.initial_keep.heads=0"],
            "pruning.gates.initial_keep.heads: must be above 0 and below 1, got 0.0",
        ),
        (["pruning.gates.initial_keep.head=0.5"], "pruning.gates.initial_keep.head: unknown key; did you mean 'heads'"),
        (["pruning.gates.initial_noise=-1"], "pruning.gates.initial_noise: must be 0 or more"),
    ],
)
def test_a_wrong_override_of_a_pruning_recipe_is_named(overrides, message):
    with pytest.raises(StarError) as error:
        recipe.load("dphubert", overrides)
    assert message in str(error.value)


def test_a_student_that_is_its_teacher():
    loaded = recipe.load("dphubert", ["student_changes.attention_dropout=0.0"])
    teacher = EncoderConfig(layers=5)
    student = loaded.student_config(teacher)
    assert (student.hidden_states, student.attention_dropout, student.dropout, student.layers) == (
        "features",
        0.0,
        teacher.dropout,
        5,
    )
    with pytest.raises(StarError, match="copy of its teacher .facebook/hubert-base-ls960.; name a checkpoint"):
        loaded.student_config()
    plain = recipe.load("dphubert", ["pruning=null", "student_changes={}"])
    assert plain.pruning is None and plain.student_config(teacher) == teacher


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected keys with values"),
        ("base: nothing\n", "nothing: no such recipe"),
        ("base: bad.yaml\n", "is its own base"),
        ("teacher: x\nteacher: y\n", "key 'teacher' is given twice"),
        ("teacher: x\n", "student: missing"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(StarError, match=message):
        recipe.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("hubert_mini", Recipe, "pretrain"),
        ("star_mini", FinetuneRecipe, "distill"),
        ("multitask_mini", Recipe, "finetune"),
    ],
)
def test_a_recipe_of_another_command_is_told_it(name, kind, command):
    with pytest.raises(StarError, match=f"{name}: is a recipe of star {command}$"):
        recipe.load(name, (), kind)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(StarError, match="did you mean 'star_hubert'"):
        recipe.load("star_huber")


def test_numbers_with_exponents_are_numbers_and_names_are_not():
    values = yaml.load("[1e-3, 2E5, 1.5e3, e3, 1e, '1e3']", Loader=recipe._Loader)
    assert values == [1e-3, 2e5, 1.5e3, "e3", "1e", "1e3"]
