"""The known published checkpoints: the table, the download into torch.hub's cache and what it says when there is no way to it."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from tiny_student import student

from star_upstream import published, teachers
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.published import known


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "star_upstream"


def local(folder: Path, **changes) -> known.Known:
    """An entry whose addresses are those of a tiny student in ``folder``."""
    path = student(folder)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = known.File(".ckpt", "https://example.org/page", path.as_uri(), changes.pop("sha256", sha256))
    config = known.File(".yaml", "https://example.org/page2", path.with_suffix(".yaml").as_uri())
    return known.Known("tiny", "starhubert", changes.pop("parameters", 3_924), (weights, config), **changes)


def test_a_known_checkpoint_is_fetched_once(tmp_path, cache, monkeypatch, capfd):
    entry = local(tmp_path)
    path = known.fetch(entry)
    assert path == cache / "tiny" / "tiny.ckpt" and sorted(f.name for f in path.parent.iterdir()) == ["tiny.ckpt", "tiny.yaml"]
    captured = capfd.readouterr()
    assert captured.out == "" and "100%" in captured.err
    (tmp_path / "tiny.ckpt").unlink()
    assert known.fetch(entry) == path
    monkeypatch.setitem(known.KNOWN, "tiny", entry)
    encoder = teachers.load("tiny")
    assert encoder.config.width == 16 and not any(p.requires_grad for p in encoder.parameters())
    assert teachers.convert("tiny", tmp_path / "ours")["converted_from"]["name"] == "tiny"


def test_a_wrong_digest_leaves_nothing_behind(tmp_path, cache):
    with pytest.raises(
        StarError, match="tiny.ckpt could not be downloaded: invalid hash value.*fetch https://example.org/page and save"
    ):
        known.fetch(local(tmp_path, sha256="0" * 64), progress=False)
    assert [f.name for f in (cache / "tiny").iterdir()] == ["tiny.yaml"]


def test_offline_says_which_files_to_fetch_and_where_to_put_them(tmp_path, cache):
    entry = local(tmp_path)
    (tmp_path / "tiny.ckpt").unlink(), (tmp_path / "tiny.yaml").unlink()
    with pytest.raises(StarError) as error:
        known.fetch(entry, progress=False)
    for part in ("https://example.org/page ", "https://example.org/page2 ", f"save it as {cache / 'tiny' / 'tiny.ckpt'}"):
        assert part in str(error.value)
    assert not list((cache / "tiny").iterdir())


def test_a_web_page_in_place_of_the_file_is_recognised(tmp_path, cache):
    entry = local(tmp_path)
    (tmp_path / "tiny.yaml").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(StarError, match="answered with a web page in place of the file"):
        known.fetch(entry, progress=False)
    assert not list((cache / "tiny").iterdir())


def test_another_model_under_the_name_is_recognised(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(known.KNOWN, "tiny", local(tmp_path, parameters=5_000, note="one link for two models"))
    with pytest.raises(StarError, match="3,924 parameters, but tiny has 5,000: this is another model; one link for two models"):
        teachers.load("tiny")


def test_unknown_names_and_files_without_an_address(cache):
    with pytest.raises(StarError, match="did you mean 'star_hubert'"):
        known.fetch("star_huber")
    with pytest.raises(
        StarError, match="no address that a program could use.*one and the same file.*save it as .*star_hubert_xs.ckpt"
    ):
        known.fetch("star_hubert_xs")


def test_the_table_is_consistent():
    for name, entry in known.KNOWN.items():
        assert entry.name == name and entry.format in (*published.FORMATS, "transformers")
        assert entry.parameters is None and entry.note or entry.parameters > 9e6
        assert bool(entry.files) == (entry.format != "transformers")
        assert (".yaml" in [file.suffix for file in entry.files]) == (entry.format in published.STUDENTS)
        for file in entry.files:
            assert file.page.startswith("https://") and (file.url or "https://").startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize(
    "name, width, ffn, reuse",
    [("armhubert_960h", 480, 864, True), ("armhubert_s_960h", 432, 816, True), ("maskhubert_960h", 480, 640, False)],
)
def test_parameters_of_the_table_are_those_of_the_published_architectures(name, width, ffn, reuse):
    config = EncoderConfig(
        conv_layers=((128, 10, 5), (256, 1, 1), *[(256, 3, 2)] * 4, (width, 1, 1), *[(width, 2, 2)] * 2),
        projection=False,
        width=width,
        head_width=width // 12,
        ffn=ffn,
        reuse_attention=(False, True) * 6 if reuse else None,
        output_projection=768,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in Encoder(config).parameters()) == known.get(name).parameters
