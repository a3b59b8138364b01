import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from eval import corpora
from eval.corpora import manifest, mini, speech_commands, synthesis
from star_upstream import audio
from star_upstream.errors import StarError

TASKS = ("ks", "sid", "asr")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Small mini corpora, for reading only."""
    pytest.importorskip("espeakng_loader")
    return mini.make(tmp_path_factory.mktemp("mini"), scale=0.15)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same, for spoiling."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# The mini corpora, read by the parsers of the real ones.


@pytest.mark.parametrize("task", TASKS)
def test_table(made, task):
    table = corpora.load(task, made)
    assert list(table.columns[:5]) == ["id", "path", "start", "samples", "split"]
    assert set(manifest.TABLES[task].required) <= set(table.columns)
    assert set(table["split"]) == {"train", "dev", "test"}
    assert table["id"].is_unique
    for row in table.itertuples():
        wave = audio.read(row.path, row.start, row.samples)
        assert len(wave) == row.samples
        assert 0.001 < np.sqrt(np.mean(wave**2)) < 0.2 and np.abs(wave).max() < 0.99, row.path


def test_keywords(made):
    table = corpora.load("ks", made)
    assert set(table["label"]) == set(speech_commands.CLASSES)
    assert (table["samples"] == audio.RATE).all()
    assert (table.loc[table["start"] > 0, "label"] == "_silence_").all() and (table["start"] > 0).any()
    words = table[table["speaker"] != ""]
    assert (words.groupby("speaker")["split"].nunique() == 1).all()


def test_speakers(made):
    table = corpora.load("sid", made)
    assert table["samples"].between(2 * audio.RATE, 4 * audio.RATE).all()
    videos = table["path"].map(lambda p: Path(p).parent)
    assert (table.groupby(videos)["split"].nunique() == 1).all()


def test_sentences(made):
    table = corpora.load("asr", made)
    assert (table.groupby("speaker")["split"].nunique() == 1).all()
    assert not set(table.loc[table["split"] == "train", "text"]) & set(table.loc[table["split"] != "train", "text"])
    per_word = table["samples"] / audio.RATE / table["text"].str.split().str.len()
    assert per_word.between(0.12, 0.7).all()


def test_membership_is_that_of_s3prl(made, tmp_path):
    from s3prl.dataio.corpus.librispeech import LibriSpeech
    from s3prl.dataio.corpus.speech_commands import SpeechCommandsV1
    from s3prl.dataio.corpus.voxceleb1sid import VoxCeleb1SID

    shutil.copy(made / "VoxCeleb1" / "iden_split.txt", tmp_path)
    theirs = {
        "ks": SpeechCommandsV1(str(made / speech_commands.FOLDERS[0]), str(made / speech_commands.TEST_FOLDERS[0])),
        "sid": VoxCeleb1SID(str(made / "VoxCeleb1"), n_jobs=1, cache_root=tmp_path),
        "asr": LibriSpeech(str(made / "LibriSpeech"), n_jobs=1),
    }
    for task, corpus in theirs.items():
        table = corpora.load(task, made)
        for split, items in zip(("train", "dev", "test"), corpus.data_split):
            ours = table[table["split"] == split]
            assert {str(Path(i["wav_path"])) for i in items.values()} == set(ours["path"]), (task, split)
            if task == "ks":
                assert {str(i["wav_path"]): i["class_name"] for i in items.values()} == dict(zip(ours["path"], ours["label"]))
            if task == "asr":
                assert {k: i["transcription"] for k, i in items.items()} == dict(zip(ours["id"], ours["text"]))


def test_silence_pieces_cover_the_noise(copy):
    noise = copy / speech_commands.FOLDERS[0] / speech_commands.NOISE
    shutil.rmtree(noise)
    noise.mkdir()
    soundfile.write(noise / "hum.wav", np.full(40_000, 0.1), audio.RATE)
    table = corpora.load("ks", copy)
    for split in ("train", "dev"):
        rows = table[(table["label"] == "_silence_") & (table["split"] == split)]
        assert list(zip(rows["start"], rows["samples"])) == [(0, 16_000), (16_000, 16_000), (32_000, 8_000)]


def test_other_names_of_the_folders(copy):
    (copy / speech_commands.FOLDERS[0]).rename(copy / "gsc1")
    (copy / speech_commands.TEST_FOLDERS[0]).rename(copy / "gsc1_test")
    assert len(corpora.load("ks", copy))


# Making the mini corpora.


def test_same_seed_same_bytes(tmp_path):
    pytest.importorskip("espeakng_loader")
    first, again, other = (mini.make(tmp_path / name, seed, scale=0.05) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert files(first) == files(again)
    assert files(first) != files(other)


def test_rerun_does_nothing(made):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    mini.make(made, scale=0.15)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_half_made_folder_is_remade(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader")
    whole = files(mini.make(tmp_path / "whole", scale=0.05))

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mini, "_sentences", killed)
        mini.make(tmp_path / "half", scale=0.05)
    (tmp_path / "half" / ".LibriSpeech.1.part").mkdir()
    (tmp_path / "half" / "VoxCeleb1" / "iden_split.txt").unlink()
    assert not json.loads((tmp_path / "half" / "mini.json").read_text())["complete"]
    assert files(mini.make(tmp_path / "half", scale=0.05)) == whole


def test_other_files_are_never_touched(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "mine.flac").write_bytes(b"mine")
    with pytest.raises(StarError, match="not empty and not made by"):
        mini.make(tmp_path)
    assert files(tmp_path) == {"LibriSpeech/mine.flac": b"mine"}


def test_without_espeak(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(StarError, match=r"pip install 'star-upstream\[mini\]'"):
        mini.make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed, scale", [(0, 0.0), (0, float("nan")), (0, 11.0), (-1, 1.0)])
def test_impossible_seed_or_scale(tmp_path, seed, scale):
    with pytest.raises(StarError, match="it must be"):
        mini.make(tmp_path / "new", seed, scale)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_colour(colour):
    wave = synthesis.noise(np.random.default_rng(0), 2**18, colour)
    power = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / audio.RATE)
    low, high = (power[(hertz > f * 0.9) & (hertz < f * 1.1)].mean() for f in (200, 3200))
    assert np.mean(wave**2) == pytest.approx(1.0)
    assert np.log(low / high) / np.log(16) == pytest.approx(colour, abs=0.05)


# Corpora that are not whole.


def spoil_list(root: Path) -> None:
    (root / "speech_commands_v0.01" / "validation_list.txt").unlink()


def spoil_test_set(root: Path) -> None:
    shutil.rmtree(root / "speech_commands_test_set_v0.01")


def spoil_class(root: Path) -> None:
    (root / "speech_commands_test_set_v0.01" / "stop").rename(root / "speech_commands_test_set_v0.01" / "halt")


def spoil_noise(root: Path) -> None:
    shutil.rmtree(root / "speech_commands_v0.01" / "_background_noise_")


def spoil_header(root: Path) -> None:
    next((root / "speech_commands_v0.01" / "yes").iterdir()).write_bytes(b"RIFF")


def spoil_split_file(root: Path) -> None:
    (root / "VoxCeleb1" / "iden_split.txt").unlink()


def spoil_split_line(root: Path) -> None:
    (root / "VoxCeleb1" / "iden_split.txt").write_text("4 id10001/a/00001.wav\n")


def spoil_speaker(root: Path) -> None:
    shutil.rmtree(root / "VoxCeleb1" / "dev" / "wav" / "id10001")


def spoil_utterance(root: Path) -> None:
    next((root / "VoxCeleb1").rglob("00001.wav")).unlink()


def spoil_subset(root: Path) -> None:
    shutil.rmtree(root / "LibriSpeech" / "dev-clean")


def spoil_transcript(root: Path) -> None:
    next((root / "LibriSpeech").rglob("*.trans.txt")).write_text("1001-21001-0000\n")


def spoil_flac(root: Path) -> None:
    next((root / "LibriSpeech").rglob("*.flac")).unlink()


@pytest.mark.parametrize(
    "task, spoil, words",
    [
        ("ks", spoil_list, "validation_list.txt is missing.*unpack"),
        ("ks", spoil_test_set, "put it beside this folder as speech_commands_test_set_v0.01"),
        ("ks", spoil_class, "halt is none of the twelve classes"),
        ("ks", spoil_noise, "no noise recordings"),
        ("ks", spoil_header, "cannot be read as audio"),
        ("sid", spoil_split_file, "iden_split.txt is missing; .* put it in this folder"),
        ("sid", spoil_split_line, "iden_split.txt: line 1: expected '1|2|3"),
        ("sid", spoil_speaker, "iden_split.txt: line 1: no folder of speaker id10001"),
        ("sid", spoil_utterance, "iden_split.txt: .*00001.wav is not there"),
        ("asr", spoil_subset, "dev-clean: no <speaker>"),
        ("asr", spoil_transcript, "trans.txt: line 1: expected an utterance id and its text"),
        ("asr", spoil_flac, "flac is not there; the corpus is incomplete"),
    ],
)
def test_incomplete_corpus(copy, task, spoil, words):
    spoil(copy)
    with pytest.raises(StarError, match=words) as error:
        corpora.load(task, copy)
    assert "\n" not in str(error.value)


def test_missing_corpus(tmp_path):
    for task, name in (("ks", "Speech Commands v0.01"), ("sid", "VoxCeleb1"), ("asr", "LibriSpeech")):
        with pytest.raises(StarError, match=f"manifests/{task}.tsv") as error:
            corpora.load(task, tmp_path)
        assert str(tmp_path) in str(error.value) and name in str(error.value) and "CC BY 4.0" in str(error.value)
    with pytest.raises(StarError, match="no such folder"):
        corpora.load("ks", tmp_path / "nowhere")
    (tmp_path / "LibriSpeech").mkdir()
    with pytest.raises(StarError, match="give the folder that holds it"):
        corpora.load("asr", tmp_path / "LibriSpeech")
    with pytest.raises(StarError, match="unknown task 'ksx'; did you mean 'ks'"):
        corpora.load("ksx", tmp_path)


# Manifests.


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
