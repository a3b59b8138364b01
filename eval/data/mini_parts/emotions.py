"""IEMOCAP: two voices a session say plain sentences in styles of pitch, rate, range and loudness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from star_upstream.audio import RATE
from star_upstream.data.corpora import iemocap

from ..synthesis import Clip, random_channel, recordings, voices, whole_folder
from . import grammar

FOLDERS = (iemocap.FOLDERS[0],)


class Style(NamedTuple):
    """How a voice departs from its average: factors of rate and of pitch range, steps of pitch, decibels."""

    rate: float
    pitch: int
    range: float
    gain: float


STYLES = {
    "neu": Style(1.0, 0, 0.7, 0.0),
    "hap": Style(1.1, 20, 1.8, 3.0),
    "exc": Style(1.2, 24, 1.8, 4.0),
    "sad": Style(0.7, -14, 0.3, -7.0),
    "ang": Style(1.25, 6, 1.1, 7.0),
    "fru": Style(1.05, 0, 1.0, 3.0),
}
PLAN = {"impro01": (3, ("neu", "hap", "sad", "ang"), ("fru",)), "script01_1": (2, ("neu", "exc", "sad", "ang"), ())}
"""A dialogue; how often each speaker has each of four labels in it; and once a label that SUPERB leaves out
(frustrated)."""
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    cast = voices(rng, 2 * len(iemocap.COUNTS["er"]))
    clips, gains = [], []
    labels: dict[str, list[tuple[str, str]]] = {}
    for session in iemocap.COUNTS["er"]:
        people = [("M", next(cast)), ("F", next(cast))]
        for plan, (times, emotions, others) in PLAN.items():
            dialogue = f"Ses{session:02d}{'F' if plan.startswith('impro') else 'M'}_{plan}"
            lines = labels.setdefault(f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt", [])
            for letter, voice in people:
                turns = [*emotions * count(times), *others]
                for number, index in enumerate(rng.permutation(len(turns)).tolist()):
                    name, style = f"{dialogue}_{letter}{number:03d}", STYLES[turns[index]]
                    job = voice._replace(
                        rate=round(voice.rate * style.rate),
                        range=min(99, round(voice.range * style.range)),
                        pitch=int(np.clip(voice.pitch + style.pitch, 0, 99)),
                    )
                    path = f"Session{session}/sentences/wav/{dialogue}/{name}.wav"
                    clips.append(
                        Clip(path, job.says(grammar.text(rng, 3).lower(), rng), random_channel(rng), (0.8, 3.0))
                    )
                    gains.append(style.gain + rng.normal(0.0, 2.0))
                    lines.append((name, turns[index]))
    waves = [_louder(wave, gain) for wave, gain in zip(recordings(clips, rng), gains)]
    seconds = {Path(clip.path).stem: len(wave) / RATE for clip, wave in zip(clips, waves)}
    with whole_folder(root / iemocap.FOLDERS[0], clips, waves) as folder:
        for path, said in labels.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(HEADER + "".join(_evaluation(said, seconds)))


def _louder(wave: np.ndarray, decibels: float) -> np.ndarray:
    return wave * min(10 ** (decibels / 20), 0.95 / np.abs(wave).max())


def _evaluation(turns: list[tuple[str, str]], seconds: dict[str, float]) -> list[str]:
    """The blocks of an EmoEvaluation file: when, who, what, and one annotator's opinion."""
    blocks, start = [], 0.0
    for name, emotion in turns:
        end = start + seconds[name]
        blocks.append(
            f"\n[{start:.4f} - {end:.4f}]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]\nC-E1:\tSynthetic;\t()\n"
        )
        start = end
    return blocks
