"""Fluent Speech Commands: eighteen intents, each said in a few ways; speakers of train, dev and test are different
voices."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.data.corpora import fluent_commands

from ..synthesis import Clip, random_channel, recordings, voices, whole_folder

FOLDERS = (fluent_commands.FOLDERS[0],)
HEADER = ("", "path", "speakerId", "transcription", "action", "object", "location")
LIGHTS = {
    "activate": ("Turn on the lights{}", "Switch the lights on{}", "Lights on{}"),
    "deactivate": ("Turn off the lights{}", "Switch the lights off{}", "Lights out{}"),
}
HEAT = {
    "increase": ("Turn up the heat{}", "Make it warmer{}", "More heat{}"),
    "decrease": ("Turn down the heat{}", "Make it cooler{}", "Less heat{}"),
}
PLACES = {"none": "", "kitchen": " in the kitchen", "bedroom": " in the bedroom"}
OTHERS = {
    ("activate", "music", "none"): ("Play some music", "Start the music"),
    ("deactivate", "music", "none"): ("Stop the music", "Music off"),
    ("increase", "volume", "none"): ("Turn the sound up", "Louder please"),
    ("decrease", "volume", "none"): ("Turn the sound down", "It is too loud"),
    ("bring", "newspaper", "none"): ("Bring me the newspaper", "Get the newspaper"),
    ("bring", "shoes", "none"): ("Bring me my shoes", "Get my shoes"),
}


def intents() -> dict[tuple[str, str, str], tuple[str, ...]]:
    """(action, object, location) and its wordings."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = {**OTHERS}
    for thing, wordings in (("lights", LIGHTS), ("heat", HEAT)):
        for action, texts in wordings.items():
            for place, words in PLACES.items():
                found[action, thing, place] = tuple(text.format(words) for text in texts)
    return found


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    wordings = intents()
    known = list(wordings)
    # In train everyone says each intent, so that each is there at any scale.
    sizes = {"train": (count(10), len(known)), "dev": (count(4), 8), "test": (count(6), 8)}
    cast = voices(rng, sum(people for people, _ in sizes.values()))
    clips: list[Clip] = []
    rows: dict[str, list] = {split: [] for split in sizes}
    for split, (people, number) in sizes.items():
        for _ in range(people):
            voice, name = next(cast), rng.bytes(8).hex()
            for index in rng.permutation(len(known))[:number].tolist():
                texts = wordings[known[index]]
                text, path = texts[int(rng.integers(len(texts)))], f"wavs/speakers/{name}/{rng.bytes(8).hex()}.wav"
                clips.append(Clip(path, voice.says(text.lower(), rng), random_channel(rng), (0.6, 3.0)))
                rows[split].append((len(rows[split]), path, name, text, *known[index]))
    with whole_folder(root / fluent_commands.FOLDERS[0], clips, recordings(clips, rng)) as folder:
        (folder / "data").mkdir()
        for split, name in fluent_commands.FILES.items():
            with (folder / "data" / name).open("w", newline="") as file:
                csv.writer(file).writerows([HEADER, *rows[split]])
