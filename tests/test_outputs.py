"""No command replaces, empties or adds to what it did not make: every one that writes, before a folder and a file of
somebody else."""

import os
import sys
from pathlib import Path

import pytest
import speed
import torch

from eval.__main__ import main as evaluate
from eval.data import mini
from star_upstream import cli, outputs
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.files import replacing
from star_upstream.formats import checkpoint
from star_upstream.training.finetune import untrained

ROOT = Path(__file__).resolve().parents[1]
TINY = EncoderConfig(
    conv_layers=((8, 10, 320),), width=8, layers=1, heads=1, head_width=8, ffn=8, position_kernel=4, position_groups=2
)
FOREIGN = {
    "thesis.txt": "mine", "config.json": "{}", "model.safetensors": "mine", "recipe.yaml": "teacher: star_mini\n",
    "data.tsv": "path\tsamples\n", "skipped.tsv": "mine", "measured.json": "{}", ".lock": "mine", "log.csv": "mine",
    "state.pt": "mine", "done.json": "{}", "best/a.txt": "mine", "cache/a.txt": "mine", "logs/a.txt": "mine",
    "table.md": "mine", "table.csv": "mine", "table.json": "{}", "similarity.json": "{}", "similarity.png": "mine",
    "ks.json": "{}", "ks.log": "mine", "ks.error.txt": "mine", ".progress/ks.pt": "mine", "mini.json": "{}",
    "README.md": "mine", "LibriSpeech/a.flac": "mine", "round1/state.pt": "mine", ".cache/a": "mine",
}  # fmt: skip
"""Names that our commands would write, all with other content."""


def fill(folder: Path) -> Path:
    for name, text in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def star(*words) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
    return 0


def called(function, *arguments) -> int:
    try:
        function(*arguments)
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_eval(*words) -> int:
    return evaluate([str(word) for word in words])


FOLDERS = {
    "star convert": lambda out, here: star("convert", "star_mini", out),
    "star cut": lambda out, here: star("cut", here / "model", out),
    "star distill": lambda out, here: star("distill", "star_mini", f"data.train={here}", "--out", out),
    "star pretrain": lambda out, here: star("pretrain", "hubert_mini", f"data.train={here}", "--out", out),
    "star distill, pruning": lambda out, here: star("distill", "dphubert_mini", f"data.train={here}", "--out", out),
    "star finetune": lambda out, here: star("finetune", "multitask_mini", f"data={here}", "--out", out),
    "star finetune --grid": lambda out, here: star(
        "finetune", "multitask_mini", f"data={here}", "--grid", "a=star_mini", "--out", out
    ),
    "star finetune --table": lambda out, here: star("finetune", "--table", here / "model", "--out", out),
    "star similarity": lambda out, here: star("similarity", "star_mini", here, "--out", out),
    "eval run": lambda out, here: run_eval(
        "run", "--upstream", "fbank", "--tasks", "ks,sid", "--data", here, "--out", out
    ),
    "eval run --overwrite": lambda out, here: run_eval(
        "run", "--upstream", "fbank", "--data", here, "--out", out, "--overwrite"
    ),
    "eval.data.mini": lambda out, here: mini.main([str(out)]),
    "checkpoint.save": lambda out, here: called(checkpoint.save, out, Encoder(TINY), {}),
}
FILES = {  # the suffixes that are written beside one another
    "eval report": (
        ("", ".md", ".csv", ".html"),
        lambda out, here: run_eval("report", ROOT / "results/realspeech/fbank", "--out", out),
    ),
    "speed.py": ((".md", ".json"), lambda out, here: speed.main(["--tasks", "ks", "--out", f"{out}.md"])),
    "speed.py --overwrite": ((".md", ".json"), lambda out, here: speed.main(["--overwrite", "--out", f"{out}.md"])),
    "untrained": (
        (".safetensors",),
        lambda out, here: called(untrained, "star_mini", f"{out}.safetensors", ["yes", "no"]),
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a checkpoint, in which the commands run."""
    checkpoint.save(tmp_path / "model", Encoder(TINY), {"made_by": "star distill"})
    monkeypatch.setenv("STAR_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(run, out, here: Path, capsys, name: str) -> None:
    before = content(here)
    assert run(out, here) == 2
    assert content(here) == before
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and name in lines[0] and lines[0].startswith(("star: ", "error: ")), lines


@pytest.mark.parametrize("command", FOLDERS)
def test_somebody_elses_folder_and_file_stay(command, here, capsys):
    run = FOLDERS[command]
    refused(run, fill(here / "theirs"), here, capsys, "theirs: is not empty and was not made by")
    (here / "alone").mkdir()
    (here / "alone" / "data.tsv").write_text("path\tsamples\n")
    refused(run, here / "alone", here, capsys, "alone: is not empty and was not made by")
    (here / "file").write_text("mine")
    refused(run, here / "file", here, capsys, "file: is a file, where")
    refused(run, here / "file" / "below", here, capsys, "file is a file; choose another name")


@pytest.mark.parametrize("command", [name for name in FOLDERS if "." not in name])
@pytest.mark.parametrize("place", [".", "..", "model/.."])
def test_the_folder_that_one_works_in_stays(command, place, here, capsys):
    refused(FOLDERS[command], place, here, capsys, f"{place}: is the folder that you work in, or one above it")


@pytest.mark.parametrize("command", FILES)
def test_somebody_elses_files_stay(command, here, capsys):
    suffixes, run = FILES[command]
    for suffix in filter(None, suffixes):
        place = here / f"theirs{suffix}"
        place.write_text("mine")
        refused(run, here / "theirs", here, capsys, f"theirs{suffix}: is there and was not made by")
        place.unlink()
        place.mkdir()
        refused(run, here / "theirs", here, capsys, f"theirs{suffix}: is a folder, where")
        place.rmdir()


# what may be replaced


def test_a_conversion_is_made_again_and_no_other_takes_its_place(here, capsys):
    assert star("convert", "star_mini", here / "out") == star("convert", "star_mini", here / "out") == 0
    capsys.readouterr()
    refused(
        lambda out, _: star("convert", here / "model", out), here / "out", here, capsys, "holds another conversion, of "
    )
    refused(
        FOLDERS["star convert"], here / "model", here, capsys, "model: is not empty and was not made by star convert"
    )
    refused(lambda out, _: star("convert", out, out), here / "out", here, capsys, "is the source itself")
    (here / "out" / "notes.txt").write_text("mine")
    assert star("convert", "star_mini", here / "out") == 0 and (here / "out" / "notes.txt").read_text() == "mine"


def test_a_run_is_not_another_commands_folder(here, capsys):
    outputs.claim_folder(here / "run", "star finetune")
    refused(FOLDERS["star distill"], here / "run", here, capsys, "run: was made by star finetune, not by star distill")
    refused(
        FOLDERS["star similarity"], here / "run", here, capsys, "run: was made by star finetune, not by star similarity"
    )


def test_trained_heads_are_not_replaced_by_untrained_ones(here, capsys):
    untrained("star_mini", "a.safetensors", ["yes", "no"])
    untrained("star_mini", "a.safetensors", ["yes", "no"])
    weights, stated = checkpoint.load_single("a.safetensors"), checkpoint.describe("a.safetensors")
    checkpoint.save_single("b.safetensors", weights, {**stated, "provenance": {"made_by": "star finetune"}})
    run = FILES["untrained"][1]
    refused(
        run,
        here / "b",
        here,
        capsys,
        "b.safetensors: is there and was not made by star_upstream.training.finetune.untrained",
    )


def test_a_report_is_made_again_over_an_earlier_one(here, capsys):
    run = FILES["eval report"][1]
    assert run(here / "table", here) == 0
    before = content(here)
    for suffix in (".md", ".csv", ".html"):
        assert (here / f"table{suffix}").is_file()
    assert run(here / "table.md", here) == 0 and content(here) == before
    (here / "table.csv").write_text("mine")
    capsys.readouterr()
    refused(run, here / "table", here, capsys, "table.csv: is there and was not made by python -m eval report")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_place_without_permission_is_one_line(here, capsys):
    (here / "locked").mkdir()
    (here / "locked").chmod(0o500)
    refused(FOLDERS["star convert"], here / "locked" / "out", here, capsys, "no permission in")


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with replacing(tmp_path / "link.txt") as part:
        part.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["link", "link/in it"])
def test_a_link_to_nothing_is_no_place_for_results(name, tmp_path):
    (tmp_path / "link").symlink_to("gone")
    for check in (outputs.check_folder, outputs.claim_folder):
        with pytest.raises(StarError, match="link is a link to gone, which is not there; name another place"):
            check(tmp_path / name, "star convert")


def test_hidden_files_that_only_look_like_ours_stay(tmp_path):
    mine = tmp_path / ".a.txt.notes.part"
    mine.write_text("mine")
    os.utime(mine, (0, 0))
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("x")
    assert mine.read_text() == "mine"


def test_a_cache_removes_its_own_files_alone(tmp_path):
    from eval.features.store import Store

    other = tmp_path / "bert" / "model.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    os.utime(other, (0, 0))
    store = Store(tmp_path, 1e-9)
    for key in ("00", "01"):
        store.put(key, {"x": torch.zeros(200)})
        store._written = store.budget + 1
    assert other.read_bytes() == b"mine" and "00" not in store and "01" in store
