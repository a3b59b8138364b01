"""Corpora as tasks: classes, splits, trials, and what cannot be learnt or tested."""

import pandas as pd
import pytest
from tiny_finetune import make, tasks_of

from star_upstream.data import tasks
from star_upstream.data.task_config import TaskConfig
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tones") / "data")


def test_tasks_have_classes_and_splits(root):
    found = tasks_of(root)
    keyword, speaker = found["keyword"], found["speaker"]
    assert keyword.labels == ["no", "up", "yes"] and [len(keyword.rows(s)) for s in ("train", "valid", "test")] == [
        30,
        9,
        12,
    ]
    # one of each speaker's eight utterances is held out, and no speaker of the trials is learnt
    assert speaker.labels == ["anna", "ben", "cleo", "dan"] and [
        len(speaker.rows(s)) for s in ("train", "valid", "test")
    ] == [28, 4, 12]
    assert (
        sorted(speaker.table["target"][speaker.rows("valid")]) == [0, 1, 2, 3]
        and (speaker.table["target"][speaker.rows("test")] == -1).all()
    )
    assert len(speaker.trials) == 66 and speaker.trials["target"].sum() == 18
    assert tasks.load({"k": TaskConfig(data="ks")}, str(root))["k"].digest == keyword.digest != speaker.digest


def changed(root, tmp_path, name, change):
    target = tmp_path / "data"
    (target / "manifests").mkdir(parents=True)
    (target / "wav").symlink_to(root / "wav")
    for file in (root / "manifests").iterdir():
        table = pd.read_csv(file, sep="\t")
        (change(table) if file.stem == name else table).to_csv(target / "manifests" / file.name, sep="\t", index=False)
    return target


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "ks",
            lambda t: t.assign(label=t["label"].mask(t["id"] == "test-up-1", "stop")),
            "label 'stop' is in test but not in train",
        ),
        ("ks", lambda t: t[~((t["split"] == "train") & (t["label"] == "up"))], "label 'up' is in dev but not in train"),
        (
            "asv_trials",
            lambda t: t.assign(test_path=t["test_path"].mask(t.index == 3, "wav/gone.wav")),
            "'wav/gone.wav' is not in asv_test.tsv",
        ),
        (
            "asv_test",
            lambda t: t.assign(speaker=t["speaker"].mask(t["speaker"] == "eve", "anna")),
            "speaker 'anna' is in train and in test",
        ),
        ("asv_trials", lambda t: t[t["target"] == 1], "no trial has target 0"),
        ("asv_train", lambda t: t.groupby("speaker").head(2), "no class has five training utterances"),
        ("asv_train", lambda t: t[t["speaker"] == "anna"], "one class alone"),
    ],
)
def test_data_that_cannot_be_learnt_or_tested_is_refused(root, tmp_path, name, change, message):
    with pytest.raises(StarError, match=message):
        tasks_of(changed(root, tmp_path, name, change))
