"""What is imported is declared, and what is not installed is named with the extra that brings it."""

import ast
import configparser
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import PATIENCE

from star_upstream import extras
from star_upstream.errors import StarError

REPO = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(REPO / "setup.cfg", encoding="utf-8")
PROJECTS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Modules whose project has another name."""
TRACKERS = {"wandb", "mlflow"}
IMPORTED_BY_OTHERS = {"tensorboard", *TRACKERS}
"""By Lightning's loggers; s3prl asks for less than it imports, too, all of which is imported here as well."""

# runs what follows it as if only the base requirements were there
BARE = f"""
import sys
class Bare:
    names = {sorted({module for brought in extras.BRINGS.values() for module in brought})!r}
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Bare, sys.meta_path)
"""


def declared(text):
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return {re.match(r"[\w.-]+", line).group().lower() for line in lines}


BASE = declared(SETUP["options"]["install_requires"])
EXTRAS = {name: declared(text) for name, text in SETUP["options.extras_require"].items()}


def project(module):
    return PROJECTS.get(module, module.replace("_", "-"))


@functools.cache
def imported(*folders):
    files = [file for folder in folders for file in (REPO / folder).rglob("*.py")]
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], file.relative_to(REPO))
    own = {"star_upstream", "eval", *sys.stdlib_module_names}
    return {project(module): file for module, file in found.items() if module not in own}


def test_what_is_imported_is_declared():
    everything = BASE.union(*(EXTRAS[name] for name in extras.BRINGS))
    assert {name: file for name, file in imported("star_upstream", "eval").items() if name not in everything} == {}


def test_what_is_declared_is_imported():
    everything = BASE.union(*(EXTRAS[name] for name in extras.BRINGS))
    assert everything - set(imported("star_upstream", "eval", "results")) <= IMPORTED_BY_OTHERS


def test_the_table_of_extras_is_that_of_setup_cfg():
    for extra, modules in extras.BRINGS.items():
        assert {project(module) for module in modules} == EXTRAS[extra]
    assert (
        set(re.search(r"\[(.*)\]", SETUP["options.extras_require"]["all"]).group(1).split(","))
        == {*extras.BRINGS} - TRACKERS
    )


def test_torch_hub_asks_for_the_base_requirements_alone():
    names = ast.literal_eval(re.search(r"dependencies = (\[.*\])", (REPO / "hubconf.py").read_text()).group(1))
    assert {project(name) for name in names} == BASE


def test_need_names_what_is_missing_and_the_extra(monkeypatch):
    monkeypatch.setitem(extras.BRINGS, "toys", ("json", "no_such_module", "nor_this.part"))
    with pytest.raises(
        StarError,
        match=r"not installed: no_such_module, nor_this\.part; pip install 'star-upstream\[toys\]' brings them",
    ):
        extras.need("toys")
    with pytest.raises(StarError, match="not installed: nothing_here; .*brings it "):
        extras.need("toys", "nothing_here")
    extras.need("toys", "json")


COMMANDS = {
    "train": [
        ["distill", "star_mini", "data.train=.", "--out", "x"],
        ["pretrain", "hubert_mini", "data.train=.", "--out", "x"],
        ["finetune", "multitask_mini", "data=.", "--out", "x"],
        ["finetune", "--table", "x"],
        ["cut", "x", "y"],
        ["similarity", "star_mini", "."],
    ],
    "teachers": [["profile", "HUBERT_BASE"], ["profile", "facebook/hubert-base-ls960"]],
    "eval": [
        ["run", "--upstream", "star_mini", "--out", "x"],
        ["data", "--root", "."],
        ["report", "results/realspeech/fbank", "--out", "x"],
    ],
    "export": [["export", "star_mini", "x.onnx"], ["listen", "x.onnx", "a.wav"], ["profile", "x.onnx"]],
}


def test_base_requirements_load_run_and_write_models_and_the_rest_names_its_extra(tmp_path):
    code = f"""
import hubconf, numpy, torch, star_upstream
from eval.__main__ import main as evaluate
from star_upstream import audio, cli
model = star_upstream.load("star_mini")
assert model([torch.randn(16000)])["last_hidden_state"].shape == (1, 49, 128)
for command in ("recipes", "profile star_mini", "profile star_hubert"):
    cli.main(command.split())
cli.main(["convert", "star_mini", sys.argv[1]])
star_upstream.load(sys.argv[1])
for extra, commands in {COMMANDS!r}.items():
    for command in commands:
        try:
            code = (evaluate if extra == "eval" else cli.main)(command)
        except SystemExit as end:
            code = end.code
        assert code == 2, command
for call in (star_upstream.register, lambda: audio.resample(numpy.zeros(800, "float32"), 8000)):
    try:
        call()
    except star_upstream.StarError as error:
        print(error, file=sys.stderr)
"""
    command = [sys.executable, "-c", BARE + code, tmp_path / "model"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    wanted = [extra for extra, commands in COMMANDS.items() for _ in commands] + ["eval", "train"]
    assert len(lines) == len(wanted), done.stderr
    assert all(f"pip install 'star-upstream[{extra}]'" in line for extra, line in zip(wanted, lines)), done.stderr


MODULES = {
    "star_upstream.analysis.phone_probe": ("train", ["star_mini", "--manifest", "x"]),
    "star_upstream.mini.leaks": ("train", ["x", "y"]),
    "star_upstream.mini.study": ("train", ["x", "--phones", "y", "--out", "z"]),
    "eval.clean": ("eval", ["x"]),
    "eval.data.mini": ("mini", ["x"]),
}
"""What else is run as ``python -m``."""
OTHERS = {"star_upstream.__main__", "eval.__main__", "eval.data.espeak"}
"""The commands, tested above, and what only another process of ours runs."""


def test_modules_that_are_run_name_their_extra(tmp_path):
    found = {
        ".".join(file.relative_to(REPO).with_suffix("").parts)
        for folder in ("star_upstream", "eval")
        for file in (REPO / folder).rglob("*.py")
        if "__name__ ==" in file.read_text(encoding="utf-8")
    }
    assert found == MODULES.keys() | OTHERS
    code = f"""
import os, runpy
os.chdir({str(tmp_path)!r})
for name, (extra, words) in {MODULES!r}.items():
    sys.argv[:] = [name, *words]
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        assert end.code == 2, name
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", BARE + code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    lines = [line for line in done.stderr.splitlines() if "RuntimeWarning" not in line and "warn" not in line]
    assert done.returncode == 0 and len(lines) == len(MODULES), done.stderr
    for line, (extra, _) in zip(lines, MODULES.values()):
        assert "not installed: " in line and f"pip install 'star-upstream[{extra}]'" in line


def test_the_commit_hook_formats_as_make_lint_does():
    hook = re.search(r"rev: v(\S+)", (REPO / ".pre-commit-config.yaml").read_text()).group(1)
    assert f"ruff=={hook}" in SETUP["options.extras_require"]["lint"]
