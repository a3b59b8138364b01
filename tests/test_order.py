"""The order of a run's data is what it was when runs began: values that were written down, not computed anew."""

import hashlib
import json
from itertools import islice

import numpy as np
import pytest
from tiny_audio import write

from star_upstream.crops import CropSampler
from star_upstream.data.batches import BatchStream, BucketSampler
from star_upstream.data.clips import Clip, scan
from star_upstream.errors import StarError
from star_upstream.training.config import DataConfig
from star_upstream.training.start import find_clips

LENGTHS = np.sort(np.random.default_rng(7).integers(8_000, 160_000, 203))
CLIPS = [Clip(f"{i}", int(n)) for i, n in enumerate(LENGTHS)]


def digest(found) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"items": 9}, "a784f01d2d4f0958"),
        ({"rank": 1, "world": 3, "together": 6}, "bb157436301012f2"),
        ({"batches": "sorted", "counted": "lengths"}, "2ed751dd0334e90b"),
        ({"batches": "repeated", "longest": 100_000}, "a0e5e7998fa1e06d"),
        ({"shuffle": False}, "b36afef5ba347ac6"),
    ],
)
def test_batches(options, expected):
    stream = BatchStream(BucketSampler(CLIPS, 20.0, seed=3, **options))
    for _ in range(5):
        stream.advance()
    assert digest(list(islice(stream, 100))) == expected


def test_crops():
    stream = BatchStream(CropSampler(CLIPS, 4.0, 20.0, seed=3, items=9))
    assert digest(list(islice(stream, 100))) == "2ffc70225311e491"


def test_clips_and_those_held_out(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    for i, name in enumerate(["b/2", "b/10", "b.c/1", "ä", "a", "z", "b/1"]):
        write(tmp_path / "in" / f"{name}.wav", (1.0, 0.5, 0.75)[i % 3])
    (tmp_path / "in" / "list.tsv").write_text(
        "path\tsamples\tstart\n" + "".join(f"{n}.wav\t4000\t{s}\n" for n in ("z", "b/1", "ä", "a") for s in (99, 5, 0))
    )
    parts, _, _ = find_clips(DataConfig(train=(str(tmp_path / "in"),), valid_share=0.3, min_seconds=0.2))
    sources = [tmp_path / "in" / "list.tsv", tmp_path / "in", tmp_path / "in" / "list.tsv"]
    parts["both"] = scan(sources, 0.2, progress=False).clips
    names = {
        part: ", ".join(f"{clip.path.removeprefix(f'{tmp_path}/in/')} {clip.samples}+{clip.start}" for clip in clips)
        for part, clips in parts.items()
    }
    assert names["train"] == "a.wav 8000+0, b/10.wav 8000+0, z.wav 12000+0, b/2.wav 16000+0, ä.wav 16000+0"
    assert names["valid"] == "b.c/1.wav 12000+0, b/1.wav 16000+0"
    assert names["both"] == (
        "a.wav 4000+0, a.wav 4000+5, a.wav 4000+99, b/1.wav 4000+0, b/1.wav 4000+5, b/1.wav 4000+99, "
        "z.wav 4000+0, z.wav 4000+5, z.wav 4000+99, ä.wav 4000+0, ä.wav 4000+5, ä.wav 4000+99, "
        "a.wav 8000+0, b/10.wav 8000+0, b.c/1.wav 12000+0, z.wav 12000+0, b/1.wav 16000+0, b/2.wav 16000+0, "
        "ä.wav 16000+0"
    )


def test_clips_of_validation_are_not_trained_on(tmp_path, capsys):
    names = ("train-clean-100", "train-other-500", "dev-clean")
    for name in names:
        write(tmp_path / name / "1" / "a.wav", 1.0)
    whole = DataConfig(train=(str(tmp_path),), valid=(str(tmp_path / "dev-clean"),), min_seconds=0.2)
    parts, _, _ = find_clips(whole)
    assert [len(parts[name]) for name in ("train", "valid")] == [2, 1]
    assert all("dev-clean" not in clip.path for clip in parts["train"])
    said = capsys.readouterr().err
    assert "1 clips are data.valid's too, and are not trained on" in said and "LibriSpeech" not in said
    find_clips(DataConfig(train=(str(tmp_path),), valid=(str(tmp_path / "train-other-500"),), min_seconds=0.2))
    assert "trains on LibriSpeech's dev-clean, of which SUPERB's scores are" in capsys.readouterr().err
    parts, _, _ = find_clips(DataConfig(train=(str(tmp_path / "train-*"),), valid=whole.valid, min_seconds=0.2))
    assert len(parts["train"]) == 2 and "LibriSpeech" not in capsys.readouterr().err
    with pytest.raises(StarError, match="data.train: holds nothing beside data.valid"):
        find_clips(DataConfig(train=whole.valid, valid=whole.valid, min_seconds=0.2))
    with pytest.raises(StarError, match=r"nothing-\*: matches nothing"):
        find_clips(DataConfig(train=(str(tmp_path / "nothing-*"),), min_seconds=0.2))
