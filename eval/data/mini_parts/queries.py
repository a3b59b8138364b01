"""QUESST 2014: a query is two digits, a document six; other voices say the queries of dev, those of eval and the
documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.audio import RATE
from star_upstream.data.corpora import quesst14

from ..synthesis import Clip, random_channel, recordings, voices, whole_folder

FOLDERS = (quesst14.FOLDERS[0],)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TERMS = ("seven four", "one nine", "five zero", "eight six", "two three", "zero seven", "nine five", "three eight")
"""What the queries say; a document has two of them and two digits more, so each term is in about a quarter of the
documents."""


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    cast = list(voices(rng, 18))
    clips: list[Clip] = []
    texts: dict[str, dict[str, str]] = {}
    keys: dict[str, list[str]] = {}
    for key, part, prefix, people, number in (
        ("utterances", "Audio", "quesst14", cast[:10], max(len(TERMS), count(60))),
        ("dev", "dev_queries", "quesst14_dev", cast[10:14], max(2, count(14))),
        ("eval", "eval_queries", "quesst14_eval", cast[14:], max(2, count(16))),
    ):
        for index in range(number):
            # Each term is the first of some document, so every query is in one.
            text = TERMS[index % len(TERMS)]
            if part == "Audio":
                digits = [DIGITS[int(rng.integers(len(DIGITS)))] for _ in range(2)]
                text = f"{digits[0]} {text} {digits[1]} {TERMS[int(rng.integers(len(TERMS)))]}"
            name = f"{prefix}_{index + 1:05d}" if part == "Audio" else f"{prefix}_{index + 1:04d}"
            seconds = (1.5, 5.0) if part == "Audio" else (0.5, 1.6)
            clips.append(
                Clip(f"{part}/{name}.wav", people[index % len(people)].says(text, rng), random_channel(rng), seconds)
            )
            texts.setdefault(key, {})[name] = text
            keys.setdefault(key, []).append(f"{quesst14.FOLDERS[0]}/{part}/{name}.wav {quesst14.LANGUAGE}\n")
    waves = recordings(clips, rng)
    lengths = {Path(clip.path).stem: len(wave) / RATE for clip, wave in zip(clips, waves)}
    with whole_folder(root / quesst14.FOLDERS[0], clips, waves) as folder:
        for key, lines in keys.items():
            (folder / "scoring").mkdir(exist_ok=True)
            (folder / "scoring" / f"language_key_{key}.lst").write_text("".join(lines))
        for split in ("dev", "eval"):
            truth = folder / "scoring" / f"groundtruth_quesst14_{split}" / f"quesst14_{split}.rttm"
            truth.parent.mkdir()
            truth.write_text(
                "".join(
                    f"LEXEME {doc} 1 0.00 {lengths[doc]:.2f} {query} lex <NA> <NA>\n"
                    for doc, said in texts["utterances"].items()
                    for query, text in texts[split].items()
                    if f" {text} " in f" {said} "
                )
            )
