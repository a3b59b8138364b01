"""What a result depends on besides its recipe: versions, commit, machine; and where caches live."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchaudio", "lightning-fabric", "numpy")


def cache_home() -> Path:
    """``$STAR_CACHE``, or ``star_upstream`` in the user's cache folder."""
    named = os.environ.get("STAR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "star_upstream"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python, of this package and of ``packages``."""
    from . import __version__

    found = {"python": platform.python_version(), "star-upstream": __version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the checkout that this package lies in, ``-dirty`` behind it where files have changed; None outside
    one."""
    where = Path(__file__).resolve().parent
    if not (where.parent / ".git").exists():
        return None
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, commit, host, devices, command and time of a start."""
    import torch

    return {
        "versions": versions(),
        "commit": commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
