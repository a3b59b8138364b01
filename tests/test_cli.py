"""The command line: results on stdout, one line for a mistake, exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from star_upstream import cli, say
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint
from star_upstream.training import recipe
from star_upstream.training.config import Recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe
from star_upstream.training.pretrain_recipe import PretrainRecipe

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"width": 8, "layers": 1, "heads": 1, "head_width": 8, "ffn": 8, "position_kernel": 4, "position_groups": 2}
TINY = EncoderConfig(conv_layers=((8, 10, 320),), **SIZES)


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "tiny", Encoder(TINY), {"made_by": "a test"})
    return tmp_path / "tiny"


def fails(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["star_upstream recipes", "star_upstream distill star_hubert --dry-run", "star_upstream.mini.leaks --help"]
)
def test_a_reader_that_leaves_ends_a_command_without_a_word(words, buffered):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffered}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *words.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    # argparse passes over what it cannot write
    assert done.returncode == 141 or (done.returncode == 0 and "--help" in words)
    assert done.stderr == ""


def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "star_upstream", "recipes"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")


def test_another_pipe_that_breaks_is_an_error():
    with pytest.raises(BrokenPipeError), say.quiet_pipe():
        raise BrokenPipeError


def test_recipes_are_listed_with_what_they_are(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split() for line in lines if line.startswith("  ")]
    kinds = (Recipe, PretrainRecipe, FinetuneRecipe)
    assert [words[0] for words in shown] == [name for kind in kinds for name in recipe.names(kind)]
    assert all(len(words) > 3 for words in shown)
    assert [line for line in lines if not line.startswith("  ")] == [
        "star distill:",
        "star pretrain:",
        "star finetune:",
    ]


def test_dry_run_prints_the_resolved_recipe(capsys):
    # words may stand on both sides of an option
    cli.main(["distill", "star_mini", "training.minutes=2", "--dry-run", "data.train=[/a, /b]"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert (
        values["training"]["minutes"] == 2.0
        and values["data"]["train"] == ["/a", "/b"]
        and len(values["student"]["heads"]) == 8
    )


def test_profile_of_a_recipe_and_of_a_checkpoint(capsys, tiny):
    cli.main(["profile", "star_hubert", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert (values["parameters"], values["macs_g"]) == (22_308_592, 463.50)
    cli.main(["profile", str(tiny)])
    parameters = sum(p.numel() for p in Encoder(TINY).parameters())
    assert f"{parameters:,}" in capsys.readouterr().out.splitlines()[0]


def test_convert_writes_a_checkpoint(capsys, tiny, tmp_path):
    cli.main(["convert", str(tiny), str(tmp_path / "copy")])
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(tmp_path / "copy")
    cli.main(["convert", str(tiny), str(tmp_path / "half"), "--dtype", "float16"])
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "copy")]
    assert sizes[0] < sizes[1]
    assert checkpoint.digest(checkpoint.load(tmp_path / "copy")) == checkpoint.digest(checkpoint.load(tiny))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "star_huber", "--out", "x"], "did you mean 'star_hubert'"),
        (["distill", "star_mini"], "--out: name the run's folder"),
        (["distill", "star_mini", "training.minuts=3", "--dry-run"], "did you mean 'minutes'"),
        (["distill", "star_mini", "--dry-run", "--force"], "unrecognized arguments: --force"),
        (["recipes", "all"], "unrecognized arguments: all"),
        (["distil"], "invalid choice"),
        (["profile", "star_mini", "--time", "--seconds", "nan"], "--seconds: expected a number above 0, got 'nan'"),
        (["profile", "star_mini", "--time", "--seconds", "inf"], "--seconds: expected a number above 0, got 'inf'"),
        (["profile", "star_mini", "--time", "--threads", "-2"], "--threads: expected a whole number of 1 or more"),
        (["similarity", "star_mini", "a", "--seed", "-1"], "--seed: expected a whole number from 0 to 4294967295"),
        (["distill", "star_mini", "training.seed=4294967296"], "training.seed: must be at least 0 and below"),
        (["convert", "", "there"], "source: an empty text, where something is to be named"),
        (["export", "star_mini", "--layers", "0", ""], "OUT.onnx: an empty text"),
        (["distill", "star_mini", "--out", ""], "--out: an empty text"),
        ([], "required"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(capsys, words, message):
    err = fails(capsys, *words)
    assert message in err and len([line for line in err.splitlines() if line.startswith("star")]) == 1


def test_missing_teacher_is_one_line(capsys, tmp_path):
    (tmp_path / "audio").mkdir()
    values = ("teacher=/no/teacher", f"data.train={tmp_path / 'audio'}")
    err = fails(capsys, "distill", "star_mini", *values, "--out", tmp_path / "run")
    assert "/no/teacher" in err and err.count("\n") == 1


def test_interruption_exits_with_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "names", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["recipes"])
    assert stop.value.code == 130 and capsys.readouterr().err.startswith("star: stopped")


def test_help_does_not_wait_for_torch():
    code = "import sys; from star_upstream import cli; cli.parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
