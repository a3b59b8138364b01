"""VoxCeleb1: voices; a "video" is one channel, and is in one split only.

Twelve voices with seven videos each are in ``iden_split.txt``. Verification needs more speakers, so there are others
besides, who are not in that list (in the real corpus everybody is): most in dev, and in test those of the trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.data.corpora import voxceleb1

from ..synthesis import MEN, WOMEN, Clip, Speaker, random_channel, recordings, voices, whole_folder
from . import grammar

FOLDERS = (voxceleb1.FOLDERS[0],)
TEST_SPEAKERS = 10270
"""In the published corpus the numbers from here to 10309 are the test speakers of verification."""


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    others = rng.spawn(1)[0]
    clips, lines, cast = [], [], {}
    number = max(3, count(12))
    for index, voice in enumerate(voices(rng, number)):
        part, name = ("test", f"id{TEST_SPEAKERS + index}") if index % 4 == 3 else ("dev", f"id{10001 + index}")
        cast[name] = voice
        videos = [("1", count(2))] * 5 + [("2", count(3)), ("3", count(3))]
        for split, files in videos:
            clips += _video(part, name, voice, files, rng)
            lines += [f"{split} {clip.path.partition('/wav/')[2]}\n" for clip in clips[-files:]]
    waves = recordings(clips, rng)
    more = _verification(cast, others, count)
    tested = [clip.path.partition("/wav/")[2] for clip in (*clips, *more) if clip.path.startswith("test/")]
    trials = _trials(tested, others, count(300))
    waves += recordings(more, others)
    with whole_folder(root / voxceleb1.FOLDERS[0], [*clips, *more], waves) as folder:
        (folder / voxceleb1.SPLIT_FILE).write_text("".join(lines))
        (folder / voxceleb1.TRIAL_FILE).write_text(
            "".join(f"{target} {enroll} {test}\n" for target, enroll, test in trials)
        )


def _verification(cast: dict[str, Speaker], rng: np.random.Generator, count: Callable[[int], int]) -> list[Clip]:
    """Speakers for training, and in the part ``test`` speakers who have a variant of their own, as long as there are
    some."""
    used = {voice.variant for voice in cast.values()}
    new = sorted(voices(rng, len(MEN) + len(WOMEN)), key=lambda voice: voice.variant in used)
    numbers = (number for number in itertools.count(TEST_SPEAKERS) if f"id{number}" not in cast)
    tested, trained = max(3, count(9)), count(14)
    clips = []
    for index, voice in enumerate(new[: tested + trained]):
        part, name = ("test", f"id{next(numbers)}") if index < tested else ("dev", f"id{11001 + index}")
        for _ in range(3):
            clips += _video(part, name, voice, 2, rng)
    return clips


def _video(part: str, name: str, voice: Speaker, files: int, rng: np.random.Generator) -> list[Clip]:
    channel, video = random_channel(rng), "".join(rng.choice(list("abcdefghijkmnpqrstuvwxyz23456789"), 11))
    clips = []
    for file in range(1, files + 1):
        text = f"{grammar.text(rng)}. {grammar.text(rng)}.".lower()
        path = f"{part}/wav/{name}/{video}/{file:05d}.wav"
        clips.append(Clip(path, voice.says(text, rng), channel, (2.0, rng.uniform(2.5, 4.0))))
    return clips


def _trials(names: list[str], rng: np.random.Generator, number: int) -> list[tuple[int, str, str]]:
    """Half of the pairs are of one speaker, but not of one video; none occurs twice."""
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if a.rpartition("/")[0] != b.rpartition("/")[0]]
    trials = []
    for target in (1, 0):
        of_kind = [pair for pair in pairs if (pair[0].split("/")[0] == pair[1].split("/")[0]) == bool(target)]
        chosen = rng.permutation(len(of_kind))[: max(2, number // 2)]
        trials += [(target, *of_kind[index]) for index in chosen.tolist()]
    return [trials[index] for index in rng.permutation(len(trials)).tolist()]
