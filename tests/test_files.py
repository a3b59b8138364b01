"""Files are whole or absent, whatever happens on the way."""

import json
import os
import resource
import time

import pytest
import torch
from safetensors.torch import load_file

from star_upstream.errors import StarError
from star_upstream.files import home, replacing, write_json, write_tensors


def test_a_file_appears_only_when_whole(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with replacing(target) as part:
        part.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError), replacing(target) as part:
        part.write_text("two")
        raise RuntimeError
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    target = tmp_path / "run"
    for name in ("first", "second"):
        with replacing(target) as part:
            part.mkdir()
            (part / name).touch()
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path):
    old, new, other = (tmp_path / name for name in (".a.json.99999.part", ".a.json.99998.part", ".b.json.99999.part"))
    for path in (old, other):
        path.mkdir()
        os.utime(path, (time.time() - 4000,) * 2)
    new.touch()
    write_json(tmp_path / "a.json", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.json.99998.part", ".b.json.99999.part", "a.json"]


def test_json_refuses_what_json_cannot_hold(tmp_path):
    write_json(tmp_path / "a.json", {"name": "é", "values": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "é", "values": [1, 2.5]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "é"


def test_tensors_can_be_read_by_whoever_may_read_other_files(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"k": "v"})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


@pytest.fixture
def little_room():
    """Files may grow to 20 kB, and fail to as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("a" * 40_000),
        lambda path: write_tensors(path, {"a": torch.zeros(10_000)}),
        lambda path: torch.save({"a": torch.zeros(10_000)}, path),
    ],
    ids=["text", "safetensors", "torch"],
)
def test_a_full_disk_is_one_line_and_loses_nothing(write, tmp_path, little_room):
    (tmp_path / "a").write_text("before")
    with (
        pytest.raises(StarError, match=r"/a: cannot be written \(.*\); what was there is as it was"),
        replacing(tmp_path / "a") as part,
    ):
        write(part)
    assert (tmp_path / "a").read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_a_name_that_no_file_can_have_is_one_line(tmp_path):
    with pytest.raises(StarError, match="cannot be written .File name too long."):
        write_json(tmp_path / ("n" * 250), {})


def test_a_tilde_is_the_home_folder_or_part_of_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    assert [str(home(name)) for name in ("~/a", "~no such user/a", "~x.wav")] == [
        "/home/anna/a", "~no such user/a", "~x.wav"
    ]  # fmt: skip
