from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from eval import corpora
from star_upstream import audio
from star_upstream.errors import StarError


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Six rows of a keyword manifest in ``tmp_path``, with their files."""
    out = []
    for number, split in enumerate(("train", "train", "dev", "dev", "test", "test")):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1), audio.RATE)
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
    ],
)
def test_not_a_manifest(tmp_path, text, words):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "ks.tsv").write_text(text)
    with pytest.raises(StarError, match=words) as error:
        corpora.load("ks", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task, counts", [("ks", (2367, 302, 669)), ("sid", (2294, 510, 510)), ("asr", (1266, 117, 136))])
def test_real_manifests(shared, task, counts):
    table = corpora.load(task, shared / "realspeech")
    assert tuple((table["split"] == split).sum() for split in ("train", "dev", "test")) == counts
    assert table["samples"].between(audio.RATE // 20, 40 * audio.RATE).all()
    row = table.iloc[0]
    assert len(audio.read(row["path"], 0)) == row["samples"]
