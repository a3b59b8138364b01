"""Recipes: strict, mergeable, and the published sizes."""

import pytest
import yaml

from star_upstream import losses
from star_upstream.encoder import EncoderConfig
from star_upstream.errors import StarError
from star_upstream.profile import parameters
from star_upstream.training import recipe

TEACHERS = {"star_mini_teacher": EncoderConfig(layers=8, width=256, heads=4, ffn=1024)}


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
    if name.startswith("star_") and name != "star_mini":
        assert loaded.data.batch_items * loaded.training.accumulate * loaded.training.devices == 48
        assert loaded.training.epochs == (200 if name.endswith("_100h") else 100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("star_hubert", 22_308_592), ("star_wavlm", 22_308_592), ("star_hubert_l", 26_626_672)],
)
def test_published_parameters(name, expected):
    assert parameters(recipe.load(name).student) == expected


@pytest.mark.parametrize(("name", "millions"), [("star_hubert_s", 14.10), ("star_hubert_xs", 9.39)])
def test_our_sizes_match_the_printed_millions(name, millions):
    assert round(parameters(recipe.load(name).student) / 1e6, 2) == millions


def test_overrides_are_yaml_values():
    values = ["training.learning_rate=1e-3", "data.train=/a", "data.valid=[/b, /c]", "training.epochs=null", "training.updates=7"]
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
        (["training.precision=64"], "training.precision: expected 32 or 'bf16-mixed' or '16-mixed', got 64"),
        (["student.width=433"], "width 433"),
        (["student=techer"], "student: expected EncoderConfig or 'teacher', got 'techer'"),
        (["student_changes.dropout=0.0"], "student_changes: only for student: teacher"),
        (["pruning.second.updates=1", "pruning.target=1"], "pruning.target: must be above 0 and below 1"),
        (["pruning.second.learning_rate=1"], "pruning.second.epochs, updates, minutes: set exactly one"),
        (["pruning.target=0.5"], "pruning.second: missing"),
        (["pruning.second.updates=1", "pruning.gates.head=false"], "pruning.gates.head: unknown key; did you mean 'heads'"),
        (["data.batch_seconds=5"], "data.batch_seconds: must be at least max_seconds"),
        (["data.min_seconds=50"], "data.min_seconds: must be above 0 and at most"),
        (["data.train=7"], "data.train: expected a list of str"),
        (["data.train=[a"], "not yaml"),
        (["training"], "an override is key=value"),
        (["training=3"], "training: expected"),
        (["teacher=!!python/object/apply:os.system [ls]"], "not yaml"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(StarError) as error:
        recipe.load("star_hubert", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.dropout=0"], "student.dropout: cannot be set, since student is 'teacher'; give student_changes.dropout"),
        (["training.initialise_from_teacher.frontend=true"], "training.initialise_from_teacher: a student that is a copy"),
        (["pruning.gates.stretch=[0.1, 1.1]"], "pruning.gates.stretch: must reach below 0 and above 1"),
        (["pruning.second.minutes=3"], "pruning.second.epochs, updates, minutes: set exactly one"),
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
    assert (student.hidden_states, student.attention_dropout, student.dropout, student.layers) == ("features", 0.0, teacher.dropout, 5)
    with pytest.raises(StarError, match="copy of its teacher .facebook/hubert-base-ls960.; name a checkpoint"):
        loaded.student_config()
    plain = recipe.load("dphubert", ["pruning=null", "student_changes={}"])
    assert plain.pruning is None and plain.student_config(teacher) == teacher


def test_schedules_of_the_papers():
    loaded = recipe.load("skill_wavlm_plus")
    training, pruning = loaded.training, loaded.pruning
    assert (training.updates, training.learning_rate, training.weight_decay, training.clip) == (50_000, 2e-4, 0.0, 10.0)
    assert (training.warmup * 50_000, training.schedule, training.devices, loaded.data.batch_seconds) == (15_000, "linear", 4, 160.0)
    assert (pruning.target, pruning.target_warmup * 50_000, pruning.gate_learning_rate) == (0.75, 5_000, 0.02)
    assert (pruning.second.updates, pruning.second.learning_rate, pruning.second.warmup * 25_000) == (25_000, 1e-4, 5_000)
    assert (loaded.data.min_seconds, loaded.data.max_seconds, loaded.data.crop) == (2.0, 15.6, "shortest-random")


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


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(StarError, match="did you mean 'star_hubert'"):
        recipe.load("star_huber")


def test_numbers_with_exponents_are_numbers_and_names_are_not():
    values = yaml.load("[1e-3, 2E5, 1.5e3, e3, 1e, '1e3']", Loader=recipe._Loader)
    assert values == [1e-3, 2e5, 1.5e3, "e3", "1e", "1e3"]
