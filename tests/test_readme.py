"""Every example of the README and of docs/: Python runs as it stands from the repository's root, commands are ones that
the programs take, links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import PATIENCE

import eval.__main__
from star_upstream import cli

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
TEXTS = {page.relative_to(REPO).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
QUICK = {
    "star recipes",
    "star profile star_mini",
    "python -m eval report results/realspeech/fbank results/realspeech/skill_50",
}
"""Commands that are run: they read what the repository holds, and take seconds."""


def blocks(language):
    return [
        (name, found) for name, text in TEXTS.items() for found in re.findall(rf"```{language}\n(.*?)```", text, re.S)
    ]


def commands():
    lines = [(name, line) for name, block in blocks("sh") for line in block.splitlines()]
    return [(name, words) for name, line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_examples():
    assert {" ".join(words) for _, words in commands()} >= QUICK
    assert len(blocks("python")) >= 6 and len(commands()) >= 20


# one process for all: each would import torch anew
def test_python_examples_run():
    code = "\n".join(f"print({name!r}, flush=True)\nexec({block!r}, {{}})" for name, block in blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_notebook_runs():
    cells = json.loads((REPO / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = "import matplotlib\nmatplotlib.use('Agg')\n" + code
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "8 layers, (2, 72, 128)" in done.stdout and "frames: [72, 24]" in done.stdout
    assert float(re.search(r"largest difference: (\S+)", done.stdout)[1]) < 1e-4


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_are_taken(page, words, capsys):
    if words[0] in ("torchrun", "srun"):  # what they start
        words = ["star", *words[next(i for i, word in enumerate(words) if word in ("star", "star_upstream")) + 1 :]]
    program, *rest = words
    if " ".join(words) in QUICK:
        (cli.main if program == "star" else eval.__main__.main)(rest if program == "star" else rest[2:])
        assert capsys.readouterr().out
    elif program == "star":
        parsed, more = cli.parser().parse_known_args(rest)
        assert all("=" in word and not word.startswith("-") for word in more), more
        if rest[0] in ("distill", "pretrain", "finetune") and parsed.recipe:  # its values are of fields that there are
            cli.main([rest[0], parsed.recipe, *parsed.values, *more, "--dry-run"])
    elif program == "star-eval":
        eval.__main__._parser().parse_args(rest)
    elif program == "make":
        rules = re.findall(r"^([a-z%-]+):.*## ", (REPO / "Makefile").read_text(encoding="utf-8"), re.M)
        assert any(re.fullmatch(rule.replace("%", "[a-z]+"), rest[0]) for rule in rules), rest
    elif program == "python":
        assert (REPO / rest[0]).is_file(), rest
    elif "/" in program:
        assert (REPO / program).is_file() and program.endswith(".sh"), words
    elif program in ("podman", "apptainer"):
        assert rest[0] in ("build", "run"), words
    else:
        assert words[:2] == ["pip", "install"], words


def test_links_lead_to_what_git_has():
    """A file that .gitignore keeps out is on the author's machine alone."""
    try:
        said = subprocess.run(["git", "ls-files"], cwd=REPO, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and its repository")
    tracked = {REPO / name for name in said.splitlines()}
    tracked |= {folder for file in tracked for folder in file.parents}
    pages = [file for file in tracked if file.suffix == ".md" and file.is_file()]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:")
    ]
    assert len(links) > 50
    lost = [(page.name, target) for page, target in links if (page.parent / target).resolve() not in tracked]
    assert not lost


def test_named_files_are_there():
    for name, text in TEXTS.items():
        for path in re.findall(r"`((?:star_upstream|eval|tests|results)/[\w./]*)`", text):
            assert (REPO / path).exists(), f"{name}: {path}"
        for module in re.findall(r"`(?:star_upstream|eval)((?:\.\w+)+)`", text):
            inside = module.strip(".").replace(".", "/")
            there = [REPO / top / f"{inside}{end}" for top in ("star_upstream", "eval") for end in ("", ".py")]
            assert any(path.exists() for path in there) or module.count(".") == 1, f"{name}: {module}"
