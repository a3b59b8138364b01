"""The container file keeps to what the Makefile installs, and takes nothing along that is not the repository's."""

import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FILE = (REPO / "Containerfile").read_text()


def test_the_versions_are_the_makefiles():
    version = re.search(r"^TORCH \?= (\S+)$", (REPO / "Makefile").read_text(), re.MULTILINE)[1]
    assert f'ARG PACKAGES="torch=={version} torchaudio=={version}"' in FILE and "RUN make setup" in FILE


def test_no_tracked_file_is_left_out():
    if not (REPO / ".git").exists():
        pytest.skip("not a clone")
    names = subprocess.run(
        ["git", "ls-files"], cwd=REPO, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    ignored = [line.removeprefix("**/") for line in (REPO / ".dockerignore").read_text().splitlines() if line]
    assert ".git" in ignored and ".venv" in ignored
    for line in ignored:
        assert not [name for name in names if name == line or name.startswith(f"{line}/")], line
