"""What a record says of the machine: memory, versions, commit."""

from __future__ import annotations

import platform
import resource
import sys
import time
from typing import Any

import torch

from star_upstream.environment import commit, versions

PACKAGES = ("torch", "torchaudio", "s3prl", "numpy", "pandas", "soundfile", "safetensors", "editdistance")


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """MB: of the device where it is a GPU, else of the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    scale = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def environment() -> dict[str, Any]:
    """Versions, commit, platform and time, for records."""
    found = versions(PACKAGES)
    return {
        "python": found.pop("python"),
        "versions": found,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git_commit": commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
