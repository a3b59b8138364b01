import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from small_corpora import SCALE, small

from eval.data import mini, synthesis
from eval.data.mini_parts import commands, emotions, grammar, mixtures, queries, sentences, slots
from star_upstream import audio
from star_upstream.data import corpora
from star_upstream.data.corpora import iemocap
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return small(tmp_path_factory)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_half_made_folder_is_remade_to_the_same_bytes(made, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sentences, "make", killed)
        mini.make(tmp_path, scale=SCALE)
    (tmp_path / ".LibriSpeech.1.part").mkdir()
    (tmp_path / "VoxCeleb1" / "iden_split.txt").unlink()
    assert not json.loads((tmp_path / "mini.json").read_text())["complete"]
    assert files(mini.make(tmp_path, scale=SCALE)) == files(made)


def test_other_seed_other_bytes(made, tmp_path):
    queries.make(
        tmp_path, np.random.default_rng([1, mini.parts().index(queries)]), lambda items: max(1, round(items * SCALE))
    )
    other, ours = files(tmp_path / "quesst14Database"), files(made / "quesst14Database")
    assert other.keys() == ours.keys()
    assert all(other[name] != ours[name] for name in ours if name.endswith(".wav"))


def test_rerun_does_nothing(made):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    mini.make(made, scale=SCALE)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_other_files_are_never_touched(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    (tmp_path / "LibriSpeech" / "mine.flac").write_bytes(b"mine")
    with pytest.raises(StarError, match="is not empty and was not made by eval.data.mini"):
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


# What is said, and that the labels are those of what is heard.


def test_every_word_has_its_phones():
    words = {word for text in grammar.every() for word in text.split()}
    assert words == grammar.PHONES.keys()


def test_every_label_is_in_train_at_any_scale():
    assert len(commands.intents()) == 18
    assert {emotion for _, labels, _ in emotions.PLAN.values() for emotion in labels} == set(iemocap.LABELS)


def test_slots_are_those_of_the_values():
    for intent in slots.PATTERNS:
        for words, tags, _ in slots._sentences(intent):
            for slot, group in itertools.groupby(zip(words, tags), key=lambda pair: pair[1]):
                said = " ".join(word for word, _ in group)
                assert slot == "O" or said in slots.VALUES[slot]


def test_mixture_is_loud_where_somebody_speaks():
    rng = np.random.default_rng(0)
    said = [rng.standard_normal(22_050) for _ in range(mixtures.TURNS)]
    for _ in range(5):
        wave, turns = mixtures._mixture(said, rng)
        active = np.zeros(len(wave), dtype=bool)
        for number, (start, end) in enumerate(turns):
            assert 0 <= start < end <= len(wave) and start % mixtures.STEP == end % mixtures.STEP == 0
            active[start:end] = True
            if number > 1:
                assert start > turns[number - 2][1]  # the same speaker's turn before
        assert np.mean(wave[active] ** 2) > 10 * np.mean(wave[~active] ** 2)


def test_emotions_differ_in_level(made):
    table = corpora.load("er", made)
    power = [10 * np.log10(np.mean(audio.read(row.path) ** 2)) for row in table.itertuples()]
    mean = {
        label: np.mean([p for p, other in zip(power, table["label"]) if other == label])
        for label in set(table["label"])
    }
    assert mean["sad"] + 3 < mean["neutral"] < mean["angry"] - 3


def test_card_names_every_folder(made):
    card = (made / "README.md").read_text()
    assert all(name in card for name in mini.folders())
    assert {p.name for p in made.iterdir()} == {*mini.folders(), "README.md", mini.MARKER}


def test_damaged_marker_means_nothing_is_touched(made, tmp_path):
    root = Path(shutil.copytree(made / "IEMOCAP", tmp_path / "data" / "IEMOCAP")).parent
    (root / mini.MARKER).write_text("{")
    with pytest.raises(StarError, match="is not empty and was not made by eval.data.mini"):
        mini.make(root)


def test_a_file_among_the_corpora_stays_when_they_are_made_anew(made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "mini"))
    (root / "IEMOCAP" / "Session1" / "notes.txt").write_text("mine")
    before = files(root)
    with pytest.raises(
        StarError, match="IEMOCAP: is to be made anew, but eval.data.mini did not make Session1/notes.txt in it"
    ):
        mini.make(root, seed=1, scale=SCALE)
    assert files(root) == before
