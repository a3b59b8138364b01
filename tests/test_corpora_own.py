"""Own data that measures nothing is refused; what weakens a number is said beside it; lengths are those of the
files."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from eval.data import inventory
from star_upstream.data import corpora
from star_upstream.errors import StarError


def sound(path: Path, seconds: float = 0.2, rate: int = 16_000, seed: int | None = None) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()) if seed is None else seed)
    soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * rate)), rate)


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Eight rows: two labels in train, train, dev and test."""
    out = []
    for number in range(8):
        sound(tmp_path / "wav" / f"{number}.wav", seed=number)
        split, label = ("train", "train", "dev", "test")[number // 2], ("yes", "no")[number % 2]
        out.append(
            {
                "id": f"u{number}",
                "path": f"wav/{number}.wav",
                "samples": 3_200,
                "split": split,
                "label": label,
                "speaker": label,
            }
        )
    return out


def save(root: Path, rows: list[dict], name: str = "ks") -> Path:
    (root / "manifests").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "manifests" / f"{name}.tsv", sep="\t", index=False)
    return root


def remarks(root: Path, task: str = "ks") -> list[str]:
    entry = inventory.look(task, root)
    assert entry["error"] is None
    found = corpora.load(task, root).attrs["remarks"]
    assert found == entry["remarks"] and all(
        f"     note: {remark}" in inventory._lines(task, entry) for remark in found
    )
    return found


def test_sound_data_have_no_remark(tmp_path, rows):
    assert remarks(save(tmp_path, rows)) == []


@pytest.mark.parametrize("way", ["path", "link", "copy"])
def test_recordings_in_train_and_test(tmp_path, rows, way):
    """Rows 6 and 7 are test; as many of them as are also 0 and 1, which are train."""
    for count, test in ((1, [6]), (2, [6, 7])):
        for row in test:
            if way == "path":
                rows[row]["path"] = f"wav/{row - 6}.wav"
            else:
                (tmp_path / "wav" / f"{row}.wav").unlink(missing_ok=True)
                if way == "link":
                    (tmp_path / "wav" / f"{row}.wav").symlink_to(tmp_path / "wav" / f"{row - 6}.wav")
                else:
                    shutil.copy(tmp_path / "wav" / f"{row - 6}.wav", tmp_path / "wav" / f"{row}.wav")
        save(tmp_path, rows)
        if count == 1:
            assert remarks(tmp_path) == ["1 of 2 test recordings are also in train: they were learnt"]
        else:
            with pytest.raises(StarError, match="ks: every test recording is also in train, so nothing is measured"):
                corpora.load("ks", tmp_path)
            assert "nothing is measured" in inventory.look("ks", tmp_path)["error"]


def test_recordings_in_dev_and_parts_of_one_file(tmp_path, rows):
    rows[4]["path"], rows[6]["path"] = "wav/0.wav", "wav/5.wav"
    assert remarks(save(tmp_path, rows)) == [
        "1 of 2 dev recordings are also in train",
        "1 of 2 test recordings are also in dev: the head was chosen by them",
    ]
    sound(tmp_path / "wav" / "long.wav", 1.6)
    for number, row in enumerate(rows):
        row |= {"path": "wav/long.wav", "start": 3_200 * number}
    assert remarks(save(tmp_path, rows)) == ["train and test take different parts of the same 1 files"]


def test_one_class_alone_and_classes_that_look_alike(tmp_path, rows):
    for row in rows:
        row["label"] = "yes"
    with pytest.raises(StarError, match="ks: all rows have one label alone .'yes'., so nothing is measured"):
        corpora.load("ks", save(tmp_path, rows))
    for number, row in enumerate(rows):
        row["label"] = ("Yes", "yes", "caf\u00e9", "cafe\u0301")[number % 4]
    del rows[4:6]
    rows.append({**rows[0], "id": "d", "path": "wav/4.wav", "split": "dev"})
    for row in rows[:4]:
        row["split"] = "train"
    found = remarks(save(tmp_path, rows))
    assert "'Yes' and 'yes'" in found[0] and "'cafe\u0301' and 'caf\u00e9' differ by case" in found[0]
    rows[4]["label"] = rows[5]["label"] = "Yes"
    assert "every test row has the same label ('Yes'): a constant answer would be right" in remarks(
        save(tmp_path, rows)
    )


def test_one_text_alone(tmp_path, rows):
    for row in rows:
        row["text"] = "the same"
    with pytest.raises(StarError, match="asr: all rows have one text alone"):
        corpora.load("asr", save(tmp_path, rows, "asr"))


def test_folds_that_share_recordings(tmp_path, rows):
    for number, row in enumerate(rows):
        row["fold"] = "ab"[number // 4]
    assert remarks(save(tmp_path, rows, "er"), "er") == []
    rows[4]["path"] = "wav/0.wav"
    assert remarks(save(tmp_path, rows, "er"), "er") == [
        "2 of 8 recordings are in several folds: they are tested on what was learnt"
    ]
    for row in range(4, 8):
        rows[row]["path"] = f"wav/{row - 4}.wav"
    with pytest.raises(StarError, match="er: every recording is in several folds"):
        corpora.load("er", save(tmp_path, rows, "er"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 6_400}, "line 4: samples is 6400, .*2.wav has 3200 at 16 kHz"),
        ({"start": 3_200, "samples": 1}, "line 4: samples is 1 from 3200 on"),
        ({"start": 1_600, "samples": 1_700}, "line 4: samples is 1700 from 1600 on"),
        ({"path": "wav/8k.wav", "samples": 1_600},
            "line 4: samples is 1600, as counted at the file's 8000 Hz, it seems; .*8k.wav has 3200"),
        ({"path": "wav/44k.wav", "samples": 8_820},
            "line 4: samples is 8820, as counted at the file's 44100 Hz, it seems; .*44k.wav has 3200"),
        ({"path": "wav/cut.wav"}, "line 4: .*cut.wav: cut short: 5"),
        ({"path": "wav/text.wav"}, "line 4: .*text.wav: cannot be read as audio"),
        ({"path": "wav/annex.wav"}, "line 4: .*annex.wav is not there .a link to a file that is not there; "
            "in a git-annex folder: git annex get"),
        ({"path": "./wav/1.wav"}, "line 4: .*1.wav is the audio of 'u1' already"),
    ],
)  # fmt: skip
def test_a_header_that_contradicts_a_line(tmp_path, rows, change, words):
    wav = tmp_path / "wav"
    sound(wav / "8k.wav", rate=8_000)
    sound(wav / "44k.wav", rate=44_100)
    (wav / "cut.wav").write_bytes((wav / "2.wav").read_bytes()[:3_300])
    (wav / "text.wav").write_text("text")
    (wav / "annex.wav").symlink_to(wav / "gone")
    for row in rows:
        row["start"] = 0
    rows[2] |= change
    with pytest.raises(StarError, match=f"ks.tsv: {words}") as error:
        corpora.load("ks", save(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_lengths_at_other_rates_and_decimals(tmp_path, rows):
    sound(tmp_path / "wav" / "8k.wav", rate=8_000)
    sound(tmp_path / "wav" / "44k.wav", rate=44_100)
    rows[0] |= {"path": "wav/8k.wav", "samples": "3200.0"}
    rows[1] |= {"path": "wav/44k.wav", "samples": "3200.0"}
    assert corpora.load("ks", save(tmp_path, rows))["samples"].tolist() == [3_200] * 8


def test_a_recording_has_one_speaker(tmp_path, rows):
    for number, row in enumerate(rows):
        row["speaker"] = "ab"[number % 2]
    rows[1] |= {"path": "wav/0.wav", "samples": 1_600}
    with pytest.raises(
        StarError,
        match="sid.tsv: line 2: .*0.wav has speaker 'a' here and 'b' in 'u1'|"
        "line 3: .*0.wav has speaker 'b' here and 'a' in 'u0'",
    ):
        corpora.load("sid", save(tmp_path, rows, "sid"))


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u3000", "\u202f", "  ", "\u2028"])
def test_any_space_parts_words(tmp_path, rows, space):
    for number, row in enumerate(rows):
        row["text"] = f" one{space}two three {number}{space}"
    assert corpora.load("asr", save(tmp_path, rows, "asr"))["text"].tolist() == [f"one two three {n}" for n in range(8)]
    for row in rows:
        row |= {"phones": f"AH{space}B{space}"}
    rows[0]["phones"] = f"B{space}AH"
    assert corpora.load("pr", save(tmp_path, rows, "pr"))["phones"].tolist() == ["B AH"] + ["AH B"] * 7


def test_two_corpora_for_a_task():
    other = type("Other", (), {**vars(corpora.speech_commands), "NAME": "Other"})
    with pytest.raises(StarError, match="ks: two corpora serve it, Speech Commands v0.01 .* and Other"):
        corpora.register(other)
