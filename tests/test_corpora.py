"""Each parser on the mini corpora: the table, its agreement with s3prl's own reading, and what it says about a corpus
not whole."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from small_corpora import small

from star_upstream import audio, compat
from star_upstream.data import corpora
from star_upstream.data.corpora import audio_snips, manifest, speech_commands, voxceleb1

TASKS = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return small(tmp_path_factory)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same, for spoiling: the files are links, which may be removed or replaced, but not written to."""

    def link(source, target):
        Path(target).symlink_to(source)

    return Path(shutil.copytree(made, tmp_path / "data", copy_function=link))


def rewrite(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_table(made, task):
    table, spec = corpora.load(task, made), manifest.TABLES[task]
    assert list(table.columns[:5]) == ["id", "path", "start", "samples", spec.group]
    assert set(spec.required) <= set(table.columns)
    groups = spec.groups or tuple(corpora.BY_TASK[task].COUNTS[task])  # of er, whatever folds there are
    assert set(table[spec.group]) == {*groups, *(["both"] if task == "qbe" else [])}
    assert table["id"].is_unique
    assert set(corpora.sizes(table)) == set(corpora.BY_TASK[task].COUNTS[task])
    for row in table.itertuples():
        wave = audio.read(row.path, row.start, row.samples)
        assert len(wave) == row.samples
        assert 0.001 < np.sqrt(np.mean(wave**2)) < 0.2 and np.abs(wave).max() < 0.99, row.path


def test_keywords(made):
    table = corpora.load("ks", made)
    assert set(table["label"]) == set(speech_commands.CLASSES)
    assert (table["samples"] == audio.RATE).all()
    words = table[table["speaker"] != ""]
    assert (words.groupby("speaker")["split"].nunique() == 1).all()


def test_silence_pieces_cover_the_noise(copy):
    noise = copy / speech_commands.FOLDERS[0] / speech_commands.NOISE
    shutil.rmtree(noise)
    noise.mkdir()
    soundfile.write(noise / "hum.wav", np.full(40_000, 0.1), audio.RATE)
    table = corpora.load("ks", copy)
    for split in ("train", "dev"):
        rows = table[(table["label"] == "_silence_") & (table["split"] == split)]
        assert list(zip(rows["start"], rows["samples"])) == [(0, 16_000), (16_000, 16_000), (32_000, 8_000)]


def test_speakers(made):
    table = corpora.load("sid", made)
    assert table["samples"].between(2 * audio.RATE, 4 * audio.RATE).all()
    videos = table["path"].map(lambda p: Path(p).parent)
    assert (table.groupby(videos)["split"].nunique() == 1).all()


@pytest.mark.parametrize("task", ["asr", "asv", "ic", "sf", "pr"])
def test_speakers_are_in_one_split(made, task):
    table = corpora.load(task, made)
    assert (table.groupby("speaker")["split"].nunique() == 1).all()


def test_sentences(made):
    table = corpora.load("asr", made)
    assert not set(table.loc[table["split"] == "train", "text"]) & set(table.loc[table["split"] != "train", "text"])
    per_word = table["samples"] / audio.RATE / table["text"].str.split().str.len()
    assert per_word.between(0.12, 0.7).all()


def test_phones_of_a_sentence(copy):
    lexicon = copy / "LibriSpeech" / "librispeech-lexicon.txt"
    table = corpora.load("pr", copy).set_index("id")
    row = table.iloc[0]
    said = dict(line.split("\t") for line in lexicon.read_text().splitlines())
    assert row["phones"] == " ".join(said[word] for word in row["text"].split())
    # Of several pronunciations the first counts, of several files the first by name.
    rewrite(lexicon, "THE\tDH IY0\n" + "".join(f"{word} {phones}\n" for word, phones in said.items()))
    (copy / "LibriSpeech" / "librispeech-lexicon-extra.txt").write_text("IN\tQ Q\n")
    again = corpora.load("pr", copy).set_index("id")
    assert again["text"].str.contains("THE ").any()
    for before, after, text in zip(table["phones"], again["phones"], table["text"]):
        words = text.split()
        assert after.split().count("IY0") == before.split().count("IY0") + words.count("THE")
        assert after.split().count("Q") == 2 * words.count("IN")


def test_trials(made):
    table, trials = corpora.load("asv", made).set_index("id"), corpora.trials(made)
    assert list(trials.columns) == ["target", "enroll", "test"]
    assert set(trials["enroll"]) | set(trials["test"]) == set(table.index[table["split"] == "test"])
    speaker = table["speaker"]
    same = speaker[trials["enroll"]].to_numpy() == speaker[trials["test"]].to_numpy()
    assert (same == (trials["target"] == 1)).all() and 0 < same.sum() < len(trials)
    assert not trials.duplicated().any() and (trials["enroll"] != trials["test"]).all()


def test_both_parts_of_voxceleb_in_one_folder(copy):
    before = corpora.load("asv", copy)
    for part in ("dev", "test"):
        shutil.copytree(
            copy / "VoxCeleb1" / part / "wav", copy / "VoxCeleb1" / "wav", symlinks=True, dirs_exist_ok=True
        )
        shutil.rmtree(copy / "VoxCeleb1" / part)
    assert corpora.load("asv", copy).drop(columns="path").equals(before.drop(columns="path"))


def test_segments(made):
    table, segments = corpora.load("sd", made), corpora.segments(made)
    assert list(segments.columns) == ["id", "start", "end", "speaker"]
    assert set(segments["id"]) == set(table["id"])
    assert (segments.groupby("id")["speaker"].nunique() == 2).all()
    seconds = table.set_index("id")["samples"] / audio.RATE
    assert (segments["end"] <= segments["id"].map(seconds)).all() and (segments["start"] < segments["end"]).all()


def test_truth(made):
    table, truth = corpora.load("qbe", made), corpora.truth(made)
    assert list(truth.columns) == ["query", "doc", "relevant"]
    queries, docs = (set(table.loc[table["kind"] == kind, "id"]) for kind in ("query", "doc"))
    assert len(truth) == len(queries) * len(docs) and set(truth["query"]) == queries and set(truth["doc"]) == docs
    assert (truth.groupby("query")["relevant"].max() == 1).all() and (truth["relevant"] == 0).any()


def test_only_the_english_part_of_quesst(copy):
    listing = copy / "quesst14Database" / "scoring" / "language_key_utterances.lst"
    whole = corpora.load("qbe", copy)
    lines = listing.read_text().splitlines()
    rewrite(
        listing,
        "\n".join([lines[0].replace("nnenglish", "czech"), *lines[1:], "quesst14Database/Audio/gone.wav basque"]),
    )
    table, truth = corpora.load("qbe", copy), corpora.truth(copy)
    assert set(whole["id"]) - set(table["id"]) == {"quesst14_00001"} and len(table) == len(whole) - 1
    assert "quesst14_00001" not in set(truth["doc"])


def test_excited_is_happy_and_other_emotions_are_left_out(made):
    table = corpora.load("er", made)
    text = "".join(p.read_text() for p in made.glob("IEMOCAP/Session*/dialog/EmoEvaluation/*.txt"))
    assert set(table["label"]) == {"neutral", "happy", "sad", "angry"}
    assert (
        (table["label"] == "happy").sum() == text.count("\texc\t") + text.count("\thap\t") > text.count("\thap\t") > 0
    )
    assert text.count("\tfru\t") and len(table) == text.count("[2.5000") - text.count("\tfru\t")
    assert (table["speaker"] == [f"{uid[:5]}{uid.split('_')[-1][0]}" for uid in table["id"]]).all()
    assert table["speaker"].nunique() == 10


@pytest.mark.parametrize(
    "line, text, slots",
    [
        ("BOS PLAY SONG EOS\tO O music_item PlayMusic", "PLAY SONG", "O B-music_item"),
        (
            "BOS IN NEW YORK , ROME EOS\tO O city city city city X",
            "IN NEW YORK , ROME",
            "O B-city I-city I-city I-city",
        ),
        ("BOS A B C EOS\tO a b b X", "A B C", "B-a B-b I-b"),
        ("BOS A ? B EOS\tO a O a X", "A ? B", "B-a O B-a"),
        ("BOS ØRE ÇÉ–Ñ EOS\tO O O X", "ØRE ÇÉ–Ñ", "O O"),
        ("BOS A 官方杂志 B EOS\tO O a X", "A B", "O B-a"),  # only the problem package's text has a slot for each word
    ],
)
def test_slots(line, text, slots):
    assert audio_snips._sentence(line, "here") == (text, slots)


def test_other_names_of_the_folders(copy):
    (copy / speech_commands.FOLDERS[0]).rename(copy / "gsc1")
    (copy / speech_commands.TEST_FOLDERS[0]).rename(copy / "gsc1_test")
    assert len(corpora.load("ks", copy))


# Membership is that of s3prl's own corpus classes.


def splits(table: pd.DataFrame, column: str) -> list[dict]:
    """Of each split, {path: the column}."""
    return [
        dict(zip(part["path"], part[column])) for part in (table[table["split"] == s] for s in ("train", "dev", "test"))
    ]


def test_keywords_of_s3prl(made):
    from s3prl.dataio.corpus.speech_commands import SpeechCommandsV1

    theirs = SpeechCommandsV1(str(made / speech_commands.FOLDERS[0]), str(made / speech_commands.TEST_FOLDERS[0]))
    ours = splits(corpora.load("ks", made), "label")
    assert [{str(i["wav_path"]): i["class_name"] for i in part.values()} for part in theirs.data_split] == ours


def test_speakers_of_s3prl(made, tmp_path):
    from s3prl.dataio.corpus.voxceleb1sid import VoxCeleb1SID

    shutil.copy(made / "VoxCeleb1" / "iden_split.txt", tmp_path)
    theirs = VoxCeleb1SID(str(made / "VoxCeleb1"), n_jobs=1, cache_root=tmp_path)
    ours = splits(corpora.load("sid", made), "speaker")
    assert [{str(i["wav_path"]) for i in part.values()} for part in theirs.data_split] == [set(part) for part in ours]


def test_verification_of_s3prl(made, tmp_path):
    from s3prl.dataio.corpus.voxceleb1sv import VoxCeleb1SV

    # The published list names every utterance; that of the mini corpora only those of identification.
    everything = [str(p.relative_to(p.parents[2])) for p in (made / "VoxCeleb1").rglob("*.wav")]
    (tmp_path / "iden_split.txt").write_text("".join(f"1 {name}\n" for name in everything))
    shutil.copy(made / "VoxCeleb1" / voxceleb1.TRIAL_FILE, tmp_path)
    train, dev, test, trials = VoxCeleb1SV(str(made / "VoxCeleb1"), str(tmp_path), force_download=False).all_data
    table = corpora.load("asv", made)
    paths = {split: set(part["path"]) for split, part in table.groupby("split")}
    assert {i["wav_path"] for i in (train | dev).values()} == paths["train"]
    assert {i["wav_path"] for i in test.values()} >= paths["test"]
    ours = [
        (target, f"{enroll}.wav", f"{test}.wav")
        for target, enroll, test in corpora.trials(made).itertuples(index=False)
    ]
    assert trials == ours


def test_sentences_of_s3prl(made):
    from s3prl.dataio.corpus.librispeech import LibriSpeech
    from s3prl.dataio.encoder.g2p import G2P

    phones = G2P([str(made / "LibriSpeech" / "librispeech-lexicon.txt")])
    theirs = LibriSpeech(str(made / "LibriSpeech"), n_jobs=1).data_split
    for task, column, label in (("asr", "text", str), ("pr", "phones", phones.encode)):
        assert [{str(i["wav_path"]): label(i["transcription"]) for i in part.values()} for part in theirs] == splits(
            corpora.load(task, made), column
        )


def test_recordings_of_s3prl(made, tmp_path):
    compat.apply()
    from s3prl.problem.diarization.util import kaldi_dir_to_csv

    table, segments = corpora.load("sd", made), corpora.segments(made)
    for split in ("train", "dev", "test"):
        kaldi_dir_to_csv(made / "Libri2Mix" / split, tmp_path / "out.csv")
        theirs = pd.read_csv(tmp_path / "out.csv")
        rows = table[table["split"] == split].set_index("id")
        ours = segments[segments["id"].isin(rows.index)]
        for ours_name, name in (
            ("id", "record_id"),
            ("speaker", "speaker"),
            ("start", "start_sec"),
            ("end", "end_sec"),
        ):
            assert ours[ours_name].tolist() == theirs[name].tolist()
        assert rows["samples"][theirs["record_id"]].tolist() == (theirs["duration"] * audio.RATE).round().tolist()


def test_commands_of_s3prl(made):
    compat.apply()
    from s3prl.dataio.corpus.fluent_speech_commands import FluentSpeechCommands

    theirs, table = (
        FluentSpeechCommands(str(made / "fluent_speech_commands_dataset")).data_split,
        corpora.load("ic", made),
    )
    names = {
        "action": "action",
        "object": "object",
        "location": "location",
        "text": "transcription",
        "speaker": "speakerId",
    }
    for column, name in names.items():
        assert [{str(i["path"]): i[name] for i in part.values()} for part in theirs] == splits(table, column)


def test_slots_of_s3prl(copy, tmp_path):
    compat.apply()
    from s3prl.problem.asr.superb_sf import audio_snips_for_slot_filling

    listing = copy / "SNIPS" / audio_snips.TEXTS
    first, *lines = listing.read_text(encoding="utf-8").splitlines()
    said, tags = first.removesuffix(" EOS").split(" EOS\t")
    tags, intent = tags.rsplit(" ", 1)
    lines += [f"{said} , & ÉÞ EOS\t{tags} O x x {intent}", "Ivy-snips-train-99999 BOS NO RECORDING EOS\tO O O X"]
    rewrite(listing, "\n".join(lines))
    (copy / "SNIPS" / "train" / "Ivy-nobody-said-1.wav").write_bytes(b"")
    shutil.copy(next((copy / "SNIPS" / "train").glob("Joey*")), copy / "SNIPS" / "valid" / "Joey-snips-train-0.wav")
    voices = {f"{part}_speakers": list(audio_snips.SPEAKERS[split]) for split, part in audio_snips.PARTS.items()}
    train, dev, (test,) = audio_snips_for_slot_filling(tmp_path, None, copy / "SNIPS", **voices)
    table = corpora.load("sf", copy)

    def bare_text(text, slots):  # s3prl's problem package leaves out accents and punctuation; the table has both
        words, names = audio_snips._plain(text).split(), re.sub(r"\b[BI]-", "", slots).split()
        return tuple(zip(*(pair for pair in zip(words, names, strict=True) if pair[0] not in "?!.,;-–…")))

    pairs = [bare_text(t, s) for t, s in zip(table["text"], table["slots"])]
    bare = table.assign(text=[" ".join(words) for words, _ in pairs], slots=[" ".join(slots) for _, slots in pairs])
    for column, name in (("text", "transcription"), ("slots", "iob")):
        theirs = [pd.read_csv(path) for path in (train, dev, test)]
        assert [dict(zip(part["wav_path"], part[name])) for part in theirs] == splits(bare, column)


def test_emotions_of_s3prl(made):
    from s3prl.dataio.corpus.iemocap import IEMOCAP

    theirs = IEMOCAP(str(made / "IEMOCAP"))
    table = corpora.load("er", made)
    names = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}
    for fold in range(1, 6):
        items = {i["wav_path"]: names.get(i["emotion"]) for i in theirs.get_whole_session(fold).values()}
        ours = table[table["fold"] == fold]
        assert {path: label for path, label in items.items() if label} == dict(zip(ours["path"], ours["label"]))


def test_emotions_are_in_the_order_of_s3prls_lists(tmp_path):
    """By session; dialogues as its lists have them, then those it has not, by name; utterances by name."""
    for session in range(1, 6):
        folder = tmp_path / "IEMOCAP" / f"Session{session}"
        (folder / "dialog" / "EmoEvaluation").mkdir(parents=True)
        for dialogue in ("F_impro01", "F_script02_2", "Z_other", "F_impro07"):
            name = f"Ses0{session}{dialogue}"
            lines = [f"[0.0 - 1.0]\t{name}_{turn}\tneu\t[2.5, 2.5, 2.5]" for turn in ("M001", "F000")]
            (folder / "dialog" / "EmoEvaluation" / f"{name}.txt").write_text("\n".join(lines))
            (folder / "sentences" / "wav" / name).mkdir(parents=True)
            for turn in ("M001", "F000"):
                soundfile.write(folder / "sentences" / "wav" / name / f"{name}_{turn}.wav", np.zeros(800), 16_000)
    ids = corpora.load("er", tmp_path)["id"].tolist()
    dialogues = ["F_script02_2", "F_impro07", "F_impro01", "Z_other"]
    assert ids[:8] == [f"Ses01{dialogue}_{turn}" for dialogue in dialogues for turn in ("F000", "M001")]
    assert [uid[:5] for uid in ids] == [f"Ses0{session}" for session in range(1, 6) for _ in range(8)]
    assert [uid[5:-5] for uid in ids[8:16:2]] == ["F_script02_2", "F_impro01", "F_impro07", "Z_other"]


def test_queries_of_s3prl(made):
    from s3prl.dataio.corpus.quesst14 import Quesst14

    theirs, table = Quesst14(str(made / "quesst14Database")), corpora.load("qbe", made)
    for split, paths in (("dev", theirs.valid_queries), ("eval", theirs.test_queries), ("both", theirs.docs)):
        assert [str(path) for path in paths] == table.loc[table["split"] == split, "path"].tolist()


def test_csv_with_quotes(copy):
    """A transcription with a comma, as the published files have them."""
    file = copy / "fluent_speech_commands_dataset" / "data" / "train_data.csv"
    rows = list(csv.reader(file.open(newline="")))
    rows[1][3] = 'Lights, "on"'
    file.unlink()
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    assert corpora.load("ic", copy)["text"].iloc[0] == 'Lights, "on"'
