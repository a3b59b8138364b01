"""What several test modules share."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "results" / "bench"))  # scripts, which tests import

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Reference material that stands beside the repository on the authors' machines; tests that need it are skipped
elsewhere."""


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    return SHARED
