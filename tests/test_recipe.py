"""Recipes: strict, mergeable, and the published sizes."""

import pytest
import yaml

from star_upstream.encoder import EncoderConfig
from star_upstream.errors import StarError
from star_upstream.training import recipe
from star_upstream.training.config import Recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe


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
