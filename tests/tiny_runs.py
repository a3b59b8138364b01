"""Tiny distillation runs: audio that takes no time, and runs as processes that can be killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATIENCE = 3600.0
"""Seconds after which a test gives up waiting: no machine is so slow, something hangs."""


class Clock:
    """A clock for budgets of time that goes on by ``step`` seconds whenever somebody looks at it, on any machine."""

    def __init__(self, step: float):
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def voice(seconds: float, random: np.random.Generator) -> np.ndarray:
    """Noise through two moving resonances, pulsed: as little like speech as will do."""
    n = int(seconds * 16_000)
    time_N = np.arange(n) / 16_000
    glides = (3 * np.sin(2 * np.pi * random.uniform(1, 4) * time_N) for _ in range(2))
    tones = sum(np.sin(2 * np.pi * f * time_N + glide) for f, glide in zip(random.uniform(200, 3000, 2), glides))
    pulses = np.sin(2 * np.pi * random.uniform(2, 5) * time_N) ** 2
    return (0.1 * pulses * (tones + 0.3 * random.standard_normal(n))).astype(np.float32)


def write_audio(folder: Path, count: int = 30) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        soundfile.write(folder / f"{i:02}.wav", voice(random.uniform(0.5, 1.2), random), 16_000)


def log(run: Path) -> list[dict[str, str]]:
    """The log's rows as text, without what the clock decides."""
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "audio_seconds_per_second")} for row in rows]


def start(words: list, run: Path, rows: int = 0, log: str = "log.csv") -> subprocess.Popen:
    """``star WORDS --out RUN`` as a process; with ``rows`` one that goes no further than so many rows of its log."""
    paused = [HERE / "paused.py", run / log, rows] if rows else ["-m", "star_upstream"]
    command = [sys.executable, *map(str, [*paused, *words, "--out", run])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=run.parent, env=environment, start_new_session=True, **pipes)


def killed(words: list, run: Path, rows: int, log: str = "log.csv") -> None:
    """Start ``star WORDS --out RUN``; SIGKILL for it and its workers when its log has that many rows."""
    process, limit = start(words, run, rows, log), time.monotonic() + PATIENCE
    while not (run / log).is_file() or len((run / log).read_text().splitlines()) <= rows:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (run / "done.json").exists()
