"""Speech Commands: speakers of train, dev and test are different voices; each says the ten words and a few others."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.audio import RATE
from star_upstream.data.corpora import speech_commands

from ..synthesis import Clip, level, noise, random_channel, recordings, voices, whole_folder, write

FOLDERS = (speech_commands.FOLDERS[0], speech_commands.TEST_FOLDERS[0])
OTHER_WORDS = (
    "bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven", "sheila",
    "six", "three", "tree", "two", "wow", "zero",
)  # fmt: skip


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    people = {"train": count(30), "dev": count(6), "test": count(8)}
    cast = voices(rng, sum(people.values()))
    words, tests = [], []
    names: set[str] = set()
    lists: dict[str, list[str]] = {"dev": [], "test": []}
    others = itertools.cycle(rng.permutation(OTHER_WORDS).tolist())
    for split, number in people.items():
        for _ in range(number):
            voice, name = next(cast), _name(rng, split, names)
            for word in (*speech_commands.WORDS, next(others), next(others)):
                clip = Clip(f"{word}/{name}_nohash_0.wav", voice.says(word, rng), random_channel(rng), (1.0, 1.0))
                words.append(clip)
                if split in lists:
                    lists[split].append(clip.path)
                if split == "test":
                    tests.append(clip)
    waves = recordings(words, rng)
    noise_seconds = count(12)
    noises = {
        name: noise(rng, noise_seconds * RATE, colour)
        for name, colour in (("white", 0.0), ("pink", 1.0), ("brown", 2.0))
    }
    with whole_folder(root / speech_commands.FOLDERS[0], words, waves) as folder:
        for name, wave in noises.items():
            write(folder / speech_commands.NOISE / f"{name}_noise.wav", level(wave, -35.0))
        (folder / "validation_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["dev"])))
        (folder / "testing_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["test"])))
    with whole_folder(root / speech_commands.TEST_FOLDERS[0]) as folder:
        wave_of = {clip.path: wave for clip, wave in zip(words, waves)}
        for clip in tests:
            word, file = clip.path.split("/")
            known = word in speech_commands.WORDS
            write(
                folder / (word if known else speech_commands.UNKNOWN) / (file if known else f"{word}_{file}"),
                wave_of[clip.path],
            )
        for number in range(people["test"]):
            wave = noise(rng, RATE, rng.uniform(0.0, 2.0))
            write(folder / speech_commands.SILENCE / f"noise_{number:04d}.wav", level(wave, rng.uniform(-50.0, -30.0)))


def _name(rng: np.random.Generator, split: str, taken: set[str]) -> str:
    """Eight hexadecimal digits of a speaker whom the corpus's rule (its README: by hash, 10 % dev, 10 % test) puts in
    ``split``."""
    while True:
        name = f"{int(rng.integers(16**8)):08x}"
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if name not in taken and split == ("dev" if share < 10 else "test" if share < 20 else "train"):
            taken.add(name)
            return name
