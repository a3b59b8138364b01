"""make clean removes what make made, and nothing else."""

import shutil

import pytest
import tiny_corpus
from small_corpora import small

from eval import clean
from eval.__main__ import main
from star_upstream import outputs
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint

TINY = EncoderConfig(
    conv_layers=((8, 10, 320),), width=8, layers=1, heads=1, head_width=8, ffn=8, position_kernel=4, position_groups=2
)


def names(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_corpora_go_and_notes_among_them_stay(tmp_path_factory, tmp_path, capsys):
    root = tmp_path / "mini"
    shutil.copytree(small(tmp_path_factory), root)
    (root / "IEMOCAP" / "Session1" / "notes.txt").write_text("mine")
    (root / "thesis.txt").write_text("mine")
    (root / "LibriSpeech" / "mine.flac").write_bytes(b"mine")
    assert clean.main([str(root), str(tmp_path / "none")]) == 0
    assert names(root) == ["IEMOCAP/Session1/notes.txt", "LibriSpeech/mine.flac", "thesis.txt"]
    assert "mini: kept 3 files that make did not make, such as IEMOCAP/Session1/notes.txt" in capsys.readouterr().err
    assert {p.name for p in root.rglob("*") if p.is_dir()} == {"IEMOCAP", "Session1", "LibriSpeech"}
    whole = tmp_path / "whole"
    shutil.copytree(small(tmp_path_factory), whole)
    assert clean.main([str(whole)]) == 0 and not whole.exists()


@pytest.mark.parametrize("mark", [True, False])
def test_a_run_goes_only_if_it_is_one(tmp_path, mark):
    run = tmp_path / "mini"
    if mark:
        outputs.claim_folder(run, "star distill")
    else:
        run.mkdir()
    for name in ("best", "last"):
        checkpoint.save(run / name, Encoder(TINY), {})
    for name in ("recipe.yaml", "data.tsv", "notes.txt", "best/notes.txt"):
        (run / name).write_text("x")
    before = names(run)
    clean.main([str(run)])
    assert names(run) == (["best/notes.txt", "notes.txt"] if mark else before)


def test_results_and_reports_go(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    data, results = tiny_corpus.make(tmp_path / "data"), tmp_path / "mini"
    options = ["--upstream", "tiny_corpus:upstream", "--data", str(data), "--tasks", "ks", "--steps", "2"]
    assert main(["run", *options, "--out", str(results / "tones")]) == 0
    assert main(["report", str(results / "tones"), "--out", str(results / "table")]) == 0
    for name in ("notes.md", "tones/sid.json", "mine.csv"):
        (results / name).write_text("{}")
    clean.main([str(results)])
    assert names(results) == ["mine.csv", "notes.md", "tones/sid.json"]


def test_empty_folders_of_others_stay(tmp_path):
    run = outputs.claim_folder(tmp_path / "data" / "mini", "star distill")
    (tmp_path / "data" / "mine").mkdir()
    clean.main([str(tmp_path / "data")])
    assert not run.exists() and (tmp_path / "data" / "mine").is_dir()
