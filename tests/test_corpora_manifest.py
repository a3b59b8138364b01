from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from star_upstream import audio
from star_upstream.data import corpora
from star_upstream.errors import StarError


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Six rows of a keyword manifest in ``tmp_path``, with their files."""
    out = []
    for number, split in enumerate(("train", "train", "dev", "dev", "test", "test")):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1 + number / 100), audio.RATE)
        label = ("yes", "NA")[number % 2]
        out.append({"id": f"u{number}", "path": f"{number}.wav", "samples": "1600", "split": split, "label": label})
    return out


def write(tmp_path: Path, rows: list[dict], task: str = "ks") -> Path:
    (tmp_path / "manifests").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(tmp_path / "manifests" / f"{task}.tsv", sep="\t", index=False)
    return tmp_path


def test_manifest(tmp_path, rows):
    table = corpora.load("ks", write(tmp_path, rows))
    assert list(table.columns) == ["id", "path", "start", "samples", "split", "label"]
    assert table["path"][0] == str(tmp_path / "0.wav")
    assert table["label"].tolist() == ["yes", "NA"] * 3  # a word, not a missing value
    assert table["samples"].tolist() == [1600] * 6 and table["start"].tolist() == [0] * 6


def test_blank_lines_are_passed_over_and_counted(tmp_path, rows):
    file = write(tmp_path, rows) / "manifests" / "ks.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "", "\t\t\t\t", *lines[3:], ""]) + "\n")
    assert corpora.load("ks", tmp_path)["id"].tolist() == [f"u{number}" for number in range(6)]
    file.write_text(file.read_text().replace("u4\t4.wav\t1600", "u4\t4.wav\tlong"))
    with pytest.raises(StarError, match="line 8: samples is 'long'"):
        corpora.load("ks", tmp_path)


def test_manifest_with_starts_and_absolute_paths(tmp_path, rows):
    for row in rows:
        row |= {"start": "400", "samples": "800", "path": str(tmp_path / row["path"])}
    table = corpora.load("ks", write(tmp_path, rows))
    assert table["start"].tolist() == [400] * 6
    assert table["path"][0] == str(tmp_path / "0.wav")


def test_manifest_before_corpus(tmp_path, rows, capsys):
    (tmp_path / "speech_commands_v0.01").mkdir()
    assert len(corpora.load("ks", write(tmp_path, rows))) == 6
    assert "ks.tsv, not" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, change, words",
    [
        (2, {"samples": "0"}, "line 4: samples is '0'; it must be a whole number, at least 1"),
        (2, {"samples": "1.5"}, "line 4: samples is '1.5'"),
        (2, {"samples": "long"}, "line 4: samples is 'long'"),
        (2, {"samples": "inf"}, "line 4: samples is 'inf'"),
        (2, {"start": "-1"}, "line 4: start is '-1'; it must be a whole number, at least 0"),
        (2, {"split": "valid"}, "line 4: unknown split 'valid'; it must be train, dev or test"),
        (2, {"id": "u0"}, "line 4: id 'u0' is used twice"),
        (2, {"path": "gone.wav"}, "line 4: .*gone.wav is not there; put the file in its place or remove the row"),
        (2, {"path": ""}, "line 4: path is empty"),
        (2, {"label": ""}, "line 4: label is empty; fill it in or remove the row"),
        (2, {"label": "no"}, "line 4: label 'no' is in dev but not in train"),
        (5, {"label": "no"}, "line 7: label 'no' is in test but not in train"),
    ],
)
def test_bad_row(tmp_path, rows, row, change, words):
    for other in rows:
        other.setdefault("start", "0")
    rows[row] |= change
    with pytest.raises(StarError, match=f"manifests/ks.tsv: {words}") as error:
        corpora.load("ks", write(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_bad_speaker(tmp_path, rows):
    for row in rows:
        row["speaker"] = "anna"
    rows[3]["speaker"] = "bert"
    with pytest.raises(StarError, match="sid.tsv: line 5: speaker 'bert' is in dev but not in train"):
        corpora.load("sid", write(tmp_path, rows, "sid"))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_empty_split(tmp_path, rows, split):
    kept = [row for row in rows if row["split"] != split]
    with pytest.raises(StarError, match=f"ks.tsv: no row has split '{split}'"):
        corpora.load("ks", write(tmp_path, kept))


@pytest.mark.parametrize("column", ["id", "path", "samples", "split", "label"])
def test_missing_column(tmp_path, rows, column):
    with pytest.raises(StarError, match=f"ks.tsv: column '{column}' is missing"):
        corpora.load("ks", write(tmp_path, [{k: v for k, v in row.items() if k != column} for row in rows]))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a tab-separated UTF-8 table"),
        ("id\tpath\tsamples\tsplit\tlabel\n", "no row has split 'train'"),
        ("id\tpath\tsamples\tsplit\tlabel\na\tb\t1\ttrain\tx\ty\n", "more fields than the header"),
        ("id\tpath\tsamples\tsplit\tlabel\na\tb\t1\ttrain\tx\na\tb\t1\ttrain\tx\ty\n", "not a tab-separated.*line 3"),
        ("id\tpath\tsamples\tsplit\tlabel\na\tb\t1\ttrain\n", "line 2: label is empty"),
        ("id,path,samples,split,label\n", "column 'id' is missing"),
        ("id\tpath\tsamples\tsplit\tlabel\tlabel\n", "the header line has column 'label' twice"),
    ],
)
def test_not_a_manifest(tmp_path, text, words):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "ks.tsv").write_text(text)
    with pytest.raises(StarError, match=words) as error:
        corpora.load("ks", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, slots, words",
    [
        ("a b", "O B-x", None),
        ("a b c", "B-x I-x B-x", None),
        ("a b", "O", "2 words but 1 slots; give one slot a word"),
        ("a b", "O I-x", "slot 'I-x' follows 'O'; a slot begins with B-x"),
        ("a b", "B-y I-x", "slot 'I-x' follows 'B-y'"),
        ("a b", "O x", "slot 'x' is none of B-<name>, I-<name> and O"),
        ("a b", "O B-", "slot 'B-' is none of"),
    ],
)
def test_slots(tmp_path, rows, text, slots, words):
    for row in rows:
        row |= {"text": "one two", "slots": "O O"}
    rows[3] |= {"text": text, "slots": slots}
    write(tmp_path, rows, "sf")
    if words is None:
        assert corpora.load("sf", tmp_path)["slots"][3] == slots
        return
    with pytest.raises(StarError, match=f"manifests/sf.tsv: line 5: {words}"):
        corpora.load("sf", tmp_path)


@pytest.fixture
def folds(tmp_path, rows) -> list[dict]:
    """Ten rows of an emotion manifest: two labels in each of five folds."""
    out = []
    for number in range(10):
        soundfile.write(tmp_path / f"e{number}.wav", np.full(1600, 0.2 + number / 100), audio.RATE)
        fold, label = number // 2 + 1, ("sad", "happy")[number % 2]
        row = {"id": f"{fold}{label}", "path": f"e{number}.wav", "samples": "1600"}
        out.append({**row, "fold": fold, "speaker": "s", "label": label})
    return out


def test_folds(tmp_path, folds):
    table = corpora.load("er", write(tmp_path, folds, "er"))
    assert list(table.columns) == ["id", "path", "start", "samples", "fold", "speaker", "label"]
    assert corpora.sizes(table) == dict.fromkeys(range(1, 6), 2)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"fold": ""}, "line 2: fold is empty; fill it in"),
        ({"label": "new"}, "line 2: label 'new' is in fold 1 alone, so it cannot be learnt for that"),
    ],
)
def test_bad_fold(tmp_path, folds, change, words):
    folds[0] |= change
    with pytest.raises(StarError, match=f"er.tsv: {words}"):
        corpora.load("er", write(tmp_path, folds, "er"))


@pytest.mark.parametrize("names", [(1, 2), (1, 2, 3), tuple("abcde"), ("01", "1"), ("Session 1", "Session 2", "Ünal")])
def test_any_two_folds_or_more(tmp_path, folds, names):
    for number, row in enumerate(folds):
        row["fold"] = names[number // 2 % len(names)]
    assert set(corpora.load("er", write(tmp_path, folds, "er"))["fold"]) == set(names)


def test_one_fold_alone(tmp_path, folds):
    for row in folds:
        row["fold"] = "a"
    with pytest.raises(StarError, match="er.tsv: one fold alone .a.; er needs two or more"):
        corpora.load("er", write(tmp_path, folds, "er"))


# The manifests of real recordings.


REAL = {
    "pr": {"train": 797, "dev": 69, "test": 59}, "asr": {"train": 1266, "dev": 117, "test": 136},
    "ks": {"train": 2367, "dev": 302, "test": 669}, "qbe": {"dev": 58 + 150, "eval": 80 + 200},
    "sid": {"train": 2294, "dev": 510, "test": 510}, "asv": {"train": 4214, "test": 1288},
    "sd": {"train": 300, "dev": 50, "test": 100}, "ic": {"train": 333, "dev": 50, "test": 112},
    "sf": {"train": 318, "dev": 45, "test": 109}, "er": {1: 81, 2: 51, 3: 71, 4: 63, 5: 73},
}  # fmt: skip


@pytest.mark.parametrize("task", REAL)
def test_real_manifests(shared, task):
    table = corpora.load(task, shared / "realspeech")
    assert corpora.sizes(table) == REAL[task]
    assert table["samples"].between(audio.RATE // 20, 40 * audio.RATE).all()
    row = table.iloc[0]
    assert len(audio.read(row["path"], 0)) == row["samples"]


def test_real_trials_segments_and_truth(shared):
    root = shared / "realspeech"
    trials, table = corpora.trials(root), corpora.load("asv", root).set_index("id")
    assert trials["target"].value_counts().to_dict() == {0: 1300, 1: 1300}
    speaker = table["speaker"]
    assert (
        (speaker[trials["enroll"]].to_numpy() == speaker[trials["test"]].to_numpy()) == (trials["target"] == 1)
    ).all()
    segments, seconds = corpora.segments(root), corpora.load("sd", root).set_index("id")["samples"] / audio.RATE
    assert (segments.groupby("id")["speaker"].nunique() == 2).all()
    assert (segments["end"] <= segments["id"].map(seconds) + 0.01).all()
    assert corpora.truth(root)["relevant"].value_counts().to_dict() == {0: 19_145, 1: 5_555}
