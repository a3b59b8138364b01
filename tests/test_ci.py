"""What CI runs: the README's two commands and every check of .ci/run, all of them targets of the Makefile."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def commands(text):
    return set(re.findall(r"^\s*(?:- run: )?make ([\w-]+)", text, re.MULTILINE))


def test_the_workflow_runs_the_readmes_commands_and_those_of_ci_run():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # yaml reads the key "on" as true
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    run = commands("\n".join(step.get("run", "") for step in steps))
    readme = commands((ROOT / "README.md").read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert run == commands((ROOT / ".ci/run").read_text()) | {"superb-all"} and {"test", "superb-all"} <= readme & run
    assert run <= targets


def test_pre_commit_runs_what_make_lint_runs():
    hooks = [
        hook["id"]
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert hooks == [name.replace(" ", "-") for name in re.findall(r"-m (ruff check|ruff format|mypy)", recipe)]
