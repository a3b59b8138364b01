"""Recipes of fine-tuning: the shipped ones, overrides, one's own, and mistakes."""

import pytest
import yaml

from star_upstream.errors import StarError
from star_upstream.training import recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe


def load(source, overrides=()):
    return recipe.load(source, overrides, FinetuneRecipe)


@pytest.mark.parametrize("name", recipe.names(FinetuneRecipe))
def test_every_shipped_recipe_is_whole(name, tmp_path):
    loaded = load(name)
    assert loaded.about and not loaded.data.root and loaded.setting == "multi-task, fine-tuned"
    speaker = "additive_angular" if name == "multitask_mini" else "angular"  # the paper's
    assert {n: (t.data, t.loss) for n, t in loaded.tasks.items()} == {
        "keyword": ("ks", "cross_entropy"),
        "speaker": ("asv", speaker),
    }
    (tmp_path / "copy.yaml").write_text(recipe.dump(loaded), encoding="utf-8")
    assert load(tmp_path / "copy.yaml") == loaded
    assert loaded.difference(loaded) == ""


def test_overrides_choose_tasks_data_and_mode():
    one = load(
        "multitask_mini",
        ["data=/corpora", "tasks=speaker", "frozen=true", "tasks.speaker.loss=angular", "tasks.speaker.margin=2"],
    )
    assert list(one.tasks) == ["speaker"] and one.data.root == "/corpora" and one.setting == "single task, frozen"
    assert one.stepping.updates == one.training.updates
    both = load("multitask_mini", ["training.updates=10", "training.accumulate=3"])
    assert both.stepping.updates == 20 and both.stepping.accumulate == 3
    summed = load("multitask_mini", ["training.updates=10", "alternate=sum"])
    assert summed.stepping.updates == 10 and summed.stepping.accumulate == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=speakers"], "tasks=speakers: the recipe's tasks are keyword, speaker"),
        (["tasks.keyword.margin=2"], "tasks.keyword.margin, scale: cross_entropy has none"),
        (["tasks.speaker.loss=angular", "tasks.speaker.margin=2.5"], "multiplies the angle by 1, 2, 3 or 4, got 2.5"),
        (["tasks.speaker.loss=aam"], "tasks.speaker.loss: expected 'cross_entropy' or 'angular' or 'additive_angular'"),
        (["tasks.speaker.crop=2"], "tasks.speaker.crop: unknown key; did you mean 'crop_seconds'"),
        (["tasks.speaker.data=vox"], "tasks.speaker.data: expected 'ks'"),
        (["training.updates=null", "training.epochs=2"], "set updates \\(iterations\\) or minutes"),
        (["frozen=3"], "frozen: expected bool"),
        (["tasks.key-word={data: ks}"], "letters, digits and underscores"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(StarError, match=message):
        load("multitask_mini", overrides)


def test_a_recipe_of_ones_own_states_what_differs(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"base": "multitask_mini", "tasks": {"intent": {"data": "ic"}, "speaker": None}})
    )
    assert {n: t.data for n, t in load(tmp_path / "mine.yaml").tasks.items()} == {"keyword": "ks", "intent": "ic"}
