import json
import shutil
from pathlib import Path

import pytest
from small_corpora import small

from eval.data import inventory
from star_upstream.data.corpora import BY_TASK
from star_upstream.errors import StarError


def test_whole(tmp_path_factory, capsys):
    root = small(tmp_path_factory)
    assert inventory.main(root) == 0
    out = capsys.readouterr().out
    assert "10 of 10 tasks can run" in out
    for task, corpus in BY_TASK.items():
        assert corpus.NAME in out and corpus.LICENCE in out
        assert all(f"(published: {n})" in out for n in corpus.COUNTS[task].values() if n is not None)


def test_what_is_missing_and_what_is_not_whole(tmp_path_factory, tmp_path, capsys):
    root = small(tmp_path_factory)
    (tmp_path / "SNIPS").mkdir()
    (tmp_path / "IEMOCAP").symlink_to(root / "IEMOCAP")
    assert inventory.main(tmp_path, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(BY_TASK)
    assert [task for task, entry in found.items() if entry["error"] is None] == ["er"]
    assert sum(found["er"]["rows"].values()) == 80 and found["er"]["expected"]["1"] == 1085
    assert "all.iob.snips.txt is missing" in found["sf"]["error"]
    assert "not found: put it into" in found["ks"]["error"] and found["ks"]["folder"] is None
    assert inventory.main(tmp_path) == 1
    out = capsys.readouterr().out
    assert f"search for '{BY_TASK['ks'].NAME}'; nothing is downloaded" in out and "1 of 10 tasks can run" in out


def test_own_data(shared, capsys):
    assert inventory.main(shared / "realspeech", ("asv", "qbe")) == 0
    out = capsys.readouterr().out
    assert "own data, in place of VoxCeleb1" in out and "train: 4214, test: 1288" in out and "published" not in out
    assert "trials: 2600" in out and "pairs: 24700" in out


def test_no_folder(tmp_path):
    with pytest.raises(StarError, match="no such folder"):
        inventory.main(tmp_path / "nowhere")


def test_the_corpus_itself(tmp_path, capsys):
    (tmp_path / "VoxCeleb1").mkdir()
    assert inventory.main(Path(tmp_path / "VoxCeleb1")) == 1
    assert "give the folder that holds it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "VoxCeleb1")
