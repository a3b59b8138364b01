"""Libri2Mix: two voices take turns and interrupt each other; voices differ between the splits. Segments are exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.audio import RATE
from star_upstream.data.corpora import libri2mix

from .. import espeak
from ..synthesis import level, noise, random_channel, spoken, voices, whole_folder, write
from . import grammar

FOLDERS = (libri2mix.FOLDERS[0],)
TURNS = 6
END = 6.0
"""Seconds after which no turn begins."""
STEP = RATE // 100
"""Turns begin and end on hundredths of a second, which is how the segments are written."""


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    sizes = {
        "train": (max(2, count(12)), count(36)),
        "dev": (max(2, count(4)), count(8)),
        "test": (max(2, count(6)), count(16)),
    }
    cast = voices(rng, sum(people for people, _ in sizes.values()))
    jobs: list[espeak.Job] = []
    recordings = []
    for split, (people, number) in sizes.items():
        pool = [(f"{split}{index:02d}", next(cast)) for index in range(people)]
        for index in range(number):
            pair = [pool[i] for i in rng.permutation(people)[:2]]
            for turn in range(TURNS):
                # Without the place, so that a turn is short.
                jobs.append(pair[turn % 2][1].says(grammar.text(rng, 3).lower(), rng))
            recordings.append((split, f"mix-{split}-{index:03d}", [name for name, _ in pair]))
    said = espeak.speak(jobs)
    with whole_folder(root / libri2mix.FOLDERS[0]) as folder:
        lists: dict[str, list[str]] = {}
        for index, (split, name, pair) in enumerate(recordings):
            wave, turns = _mixture(said[index * TURNS : (index + 1) * TURNS], rng)
            write(folder / split / "wav" / f"{name}.wav", wave)
            lists.setdefault(f"{split}/wav.scp", []).append(f"{name} wav/{name}.wav")
            lists.setdefault(f"{split}/reco2dur", []).append(f"{name} {len(wave) / RATE}")
            for number, (start, end) in enumerate(turns):
                segment = f"{pair[number % 2]}-{name}-{number}"
                lists.setdefault(f"{split}/segments", []).append(
                    f"{segment} {name} {start / RATE:.2f} {end / RATE:.2f}"
                )
                lists.setdefault(f"{split}/utt2spk", []).append(f"{segment} {pair[number % 2]}")
        for path, lines in lists.items():
            (folder / path).write_text("".join(f"{line}\n" for line in lines))


def _mixture(said: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The waveform, and where each turn begins and ends: it begins from 1 s before to 0.2 s after the end of the last
    one."""
    channels, loudness = [random_channel(rng) for _ in range(2)], [-24.0, -24.0 + rng.uniform(-4.0, 4.0)]
    placed: list[np.ndarray] = []
    turns: list[tuple[int, int]] = []
    start = int(rng.integers(5, 40)) * STEP
    for number, wave in enumerate(said):
        wave = level(spoken(wave, channels[number % 2], 2 * RATE), loudness[number % 2])
        placed.append(wave[: len(wave) // STEP * STEP])
        turns.append((start, start + len(placed[-1])))
        if turns[-1][1] >= END * RATE:
            break
        start = turns[-1][1] + int(rng.integers(-100, 20)) * STEP
        if number:  # nobody interrupts himself
            start = max(start, turns[-2][1] + 10 * STEP)
    total = max(end for _, end in turns) + int(rng.integers(5, 40)) * STEP
    mixed = noise(rng, total, channels[0].colour) * 10 ** ((-24.0 - rng.uniform(15.0, 30.0)) / 20)
    for (start, end), wave in zip(turns, placed):
        mixed[start:end] += wave
    return mixed * min(1.0, 0.95 / np.abs(mixed).max()), turns
