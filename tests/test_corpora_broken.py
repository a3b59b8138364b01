"""Corpora that are not whole: one clear line each."""

import shutil
from pathlib import Path

import pytest
from small_corpora import small

from star_upstream.data import corpora
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return small(tmp_path_factory)


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """For spoiling: the files are links, which may be removed or replaced, but not written to."""

    def link(source, target):
        Path(target).symlink_to(source)

    return Path(shutil.copytree(made, tmp_path / "data", copy_function=link))


def gone(name: str):
    """Remove the first file or folder of that pattern."""

    def spoil(root: Path) -> None:
        path = sorted(root.glob(name))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def change(name: str, old: str | None, new: str):
    """Replace ``old`` once in the first file of that pattern; None: the whole text."""

    def spoil(root: Path) -> None:
        path = sorted(root.glob(name))[0]
        text = "" if old is None else path.read_text(encoding="utf-8")
        assert old is None or old in text
        path.unlink()
        path.write_text(new if old is None else text.replace(old, new, 1), encoding="utf-8")

    return spoil


def other_class(root: Path) -> None:
    (root / "speech_commands_test_set_v0.01" / "stop").rename(root / "speech_commands_test_set_v0.01" / "halt")


def no_train_speaker(root: Path) -> None:
    for speaker in (root / "VoxCeleb1" / "dev" / "wav").iterdir():
        shutil.rmtree(speaker)


def of(task: str, root: Path):
    links = {"trials": corpora.trials, "segments": corpora.segments, "truth": corpora.truth}
    return links[task](root) if task in links else corpora.load(task, root)


KS, VOX, LIBRI, MIX = "speech_commands_v0.01", "VoxCeleb1", "LibriSpeech", "Libri2Mix"
FLUENT, SNIPS, IEMOCAP, QUESST = "fluent_speech_commands_dataset", "SNIPS", "IEMOCAP", "quesst14Database"


@pytest.mark.parametrize(
    "task, spoil, words",
    [
        ("ks", gone(f"{KS}/validation_list.txt"), "validation_list.txt is missing.*unpack"),
        ("ks", gone("speech_commands_test_set_v0.01"), "put it beside this folder as speech_commands_test_set_v0.01"),
        ("ks", other_class, "halt is none of the twelve classes"),
        ("ks", gone(f"{KS}/_background_noise_"), "no noise recordings"),
        ("ks", change(f"{KS}/yes/*.wav", None, "RIFF"), "cannot be read as audio"),
        ("sid", gone(f"{VOX}/iden_split.txt"), "iden_split.txt is missing; .* put it in this folder"),
        (
            "sid",
            change(f"{VOX}/iden_split.txt", None, "4 id10001/a/00001.wav"),
            r"iden_split.txt: line 1: expected '1\|2\|3",
        ),
        ("sid", gone(f"{VOX}/dev/wav/id10001"), "iden_split.txt: line 1: no folder of speaker id10001"),
        ("sid", gone(f"{VOX}/dev/wav/id10001/*/00001.wav"), "iden_split.txt: .*00001.wav is not there"),
        ("asr", gone(f"{LIBRI}/dev-clean"), "dev-clean: no <speaker>"),
        ("asr", change(f"{LIBRI}/*/*/*/*.txt", None, "1001-21001-0000"), "txt: line 1: expected an utterance id"),
        ("asr", gone(f"{LIBRI}/*/*/*/*.flac"), "flac is not there; the corpus is incomplete"),
        ("pr", gone(f"{LIBRI}/librispeech-lexicon.txt"), "no lexicon.*OpenSLR 11.*put them in this folder"),
        ("pr", change(f"{LIBRI}/*lexicon.txt", "BEFORE\t", "AFTER\t"), r"1 words .*lexicon\*.txt \(BEFORE\)"),
        (
            "pr",
            change(f"{LIBRI}/*lexicon.txt", "A\tAH0", "A"),
            "lexicon.txt: line 1: expected a word and its phones, got 'A'",
        ),
        ("asv", gone(f"{VOX}/voxceleb1_test_v2.txt"), "voxceleb1_test_v2.txt is missing; .* put it in this folder"),
        (
            "asv",
            change(f"{VOX}/voxceleb1_test_v2.txt", None, "1 id1/a/1.wav"),
            r"line 1: expected '0\|1 <path> <path>'",
        ),
        ("asv", gone(f"{VOX}/test/wav/*"), "voxceleb1_test_v2.txt: line .*: no folder of speaker"),
        ("asv", gone(f"{VOX}/test/wav/*/*/*.wav"), "voxceleb1_test_v2.txt: .* is not there"),
        ("asv", no_train_speaker, "no speakers besides those of voxceleb1_test_v2.txt"),
        ("trials", change(f"{VOX}/voxceleb1_test_v2.txt", None, "0 a/b/c.wav d/e/f.wav"), "no trial has target 1"),
        ("sd", gone(f"{MIX}/dev"), "no folder dev with wav.scp"),
        ("sd", gone(f"{MIX}/train/wav.scp"), "wav.scp is missing"),
        ("sd", change(f"{MIX}/train/wav.scp", None, "a sox x.wav -t wav - |"), "a is a command, which is not run"),
        (
            "sd",
            change(f"{MIX}/train/wav.scp", None, "a"),
            "wav.scp: line 1: expected a recording and its file, got 'a'",
        ),
        ("sd", gone(f"{MIX}/train/wav/*.wav"), "wav is not there"),
        ("segments", change(f"{MIX}/train/segments", None, "s mix-train-000 0.5"), "line 1: expected '<segment>"),
        (
            "segments",
            change(f"{MIX}/train/segments", " mix-train-000 ", " mixed "),
            "line 1: recording mixed is not in wav.scp",
        ),
        ("segments", change(f"{MIX}/train/utt2spk", "train", "brain"), "line 1: segment train.* is not in utt2spk"),
        (
            "segments",
            change(f"{MIX}/train/segments", "mix-train-000 0.", "mix-train-000 9."),
            "line 1: from 9.* is no segment",
        ),
        ("segments", change(f"{MIX}/train/reco2dur", "000 ", "000 -"), "line 1: ends at .* gives mix-train-000 -"),
        ("segments", change(f"{MIX}/train/reco2dur", "000 ", "000 x"), "reco2dur: no length of mix-train-000"),
        ("segments", change(f"{MIX}/test/wav.scp", "mix-test-000", "a a\nmix-test-000"), "no segment of recording 'a'"),
        ("ic", gone(f"{FLUENT}/data/valid_data.csv"), "valid_data.csv is missing; it comes with Fluent"),
        ("ic", change(f"{FLUENT}/data/test_data.csv", "action", "act"), "test_data.csv: column 'action' is missing"),
        ("ic", change(f"{FLUENT}/data/test_data.csv", None, ""), "test_data.csv: no table"),
        ("ic", gone(f"{FLUENT}/wavs/speakers/*/*.wav"), "wav is not there"),
        ("sf", gone(f"{SNIPS}/all.iob.snips.txt"), "all.iob.snips.txt is missing"),
        ("sf", gone(f"{SNIPS}/valid"), "valid: no recording of Aditi, Amy, Geraint, Nicole"),
        ("sf", change(f"{SNIPS}/all.iob.snips.txt", "\tO ", "\t"), "line 1: .* words and .* slots between"),
        ("er", gone(f"{IEMOCAP}/Session3"), "Session3: no dialog/EmoEvaluation"),
        (
            "er",
            change(f"{IEMOCAP}/Session2/dialog/*/*impro*", "\tneu", " neu"),
            "expected '.start - end.<tab>utterance",
        ),
        ("er", gone(f"{IEMOCAP}/Session1/sentences/wav/Ses01M_script01_1/*"), "wav is not there"),
        ("qbe", gone(f"{QUESST}/scoring/language_key_dev.lst"), "language_key_dev.lst is missing"),
        (
            "qbe",
            change(f"{QUESST}/scoring/language_key_dev.lst", None, "a/b.wav czech"),
            "no line has the language nnenglish",
        ),
        (
            "qbe",
            change(f"{QUESST}/scoring/language_key_dev.lst", None, "a/../b.wav czech"),
            "line 1: expected 'quesst14Database",
        ),
        ("qbe", gone(f"{QUESST}/Audio/*.wav"), "wav is not there"),
        ("truth", gone(f"{QUESST}/scoring/groundtruth_quesst14_eval"), "groundtruth_quesst14_eval: no rttm file"),
        (
            "truth",
            change(f"{QUESST}/scoring/groundtruth_quesst14_dev/*", None, "LEXEME a 1"),
            "line 1: expected 'LEXEME",
        ),
        (
            "truth",
            change(f"{QUESST}/scoring/groundtruth_quesst14_dev/*", None, "LEXEME a 1 0 1 b"),
            "no query of dev is in any",
        ),
    ],
)
def test_incomplete_corpus(copy, task, spoil, words):
    spoil(copy)
    with pytest.raises(StarError, match=words) as error:
        of(task, copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, split", [("valid_data.csv", "dev"), ("test_data.csv", "test")])
@pytest.mark.parametrize("column", ["action", "object", "location"])
def test_label_out_of_train(copy, name, split, column):
    file = copy / FLUENT / "data" / name
    header, first, *rest = file.read_text().splitlines()
    fields = first.split(",")
    fields[header.split(",").index(column)] = "unheard"
    file.unlink()
    file.write_text("\n".join([header, ",".join(fields), *rest]))
    with pytest.raises(StarError, match=f"{column} 'unheard' is in {split} but not in train, so it cannot be learnt"):
        corpora.load("ic", copy)


def test_emotion_in_one_session_alone(copy):
    for file in (copy / IEMOCAP).glob("Session[2-5]/dialog/EmoEvaluation/*.txt"):
        text = file.read_text()
        file.unlink()
        file.write_text(text.replace("\tsad\t", "\tfru\t"))
    with pytest.raises(StarError, match="label 'sad' is in fold 1 alone, so it cannot be learnt"):
        corpora.load("er", copy)


@pytest.mark.parametrize("task", sorted(corpora.BY_TASK))
def test_missing_corpus(tmp_path, task):
    corpus = corpora.BY_TASK[task]
    with pytest.raises(StarError) as error:
        corpora.load(task, tmp_path)
    for words in (str(tmp_path), f"manifests/{task}", corpus.NAME, corpus.LICENCE, corpus.FOLDERS[0]):
        assert words in str(error.value)
    with pytest.raises(StarError, match="no such folder"):
        corpora.load(task, tmp_path / "nowhere")
    (tmp_path / corpus.FOLDERS[0]).mkdir()
    with pytest.raises(StarError, match="give the folder that holds it"):
        corpora.load(task, tmp_path / corpus.FOLDERS[0])


def test_what_links_a_missing_corpus(tmp_path):
    for link in (corpora.trials, corpora.segments, corpora.truth):
        with pytest.raises(StarError, match="no data for"):
            link(tmp_path)


def test_unknown_task(tmp_path):
    with pytest.raises(StarError, match="unknown task 'ksx'; did you mean 'ks'"):
        corpora.load("ksx", tmp_path)
