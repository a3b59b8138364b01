"""LibriSpeech: different voices in each split; no sentence occurs twice, so those of dev and test are not in train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.data.corpora import librispeech

from ..synthesis import WOMEN, Clip, random_channel, recordings, voices, whole_folder
from . import grammar

FOLDERS = (librispeech.FOLDERS[0],)


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    texts = iter(rng.permutation(grammar.every()).tolist())
    sizes = {"train": (count(10), 15), "dev": (count(4), 5), "test": (count(6), 5)}
    cast = voices(rng, sum(speakers for speakers, _ in sizes.values()))
    clips, people = [], []
    transcripts: dict[str, list[str]] = {}
    for (split, (speakers, sentences)), first in zip(sizes.items(), (1001, 4001, 7001)):
        subset = librispeech.SUBSETS[split]
        for speaker in range(first, first + speakers):
            voice, channel = next(cast), random_channel(rng)
            chapter = f"{subset}/{speaker}/{speaker + 20000}/{speaker}-{speaker + 20000}"
            sex = "F" if voice.variant in WOMEN else "M"
            people.append(f"{speaker} | {sex} | {subset} | 1.00 | {voice.language}+{voice.variant}\n")
            for number in range(sentences):
                # A scale above one may ask for more sentences than the grammar has.
                text = next(texts, None) or grammar.text(rng)
                clips.append(Clip(f"{chapter}-{number:04d}.flac", voice.says(text.lower(), rng), channel, (0.5, 8.0)))
                transcripts.setdefault(f"{chapter}.trans.txt", []).append(f"{Path(clips[-1].path).stem} {text}\n")
    with whole_folder(root / librispeech.FOLDERS[0], clips, recordings(clips, rng)) as folder:
        for path, lines in transcripts.items():
            (folder / path).write_text("".join(lines))
        (folder / "SPEAKERS.TXT").write_text(";ID | SEX | SUBSET | MINUTES | NAME\n" + "".join(people))
        (folder / librispeech.LEXICON).write_text(
            "".join(f"{word}\t{phones}\n" for word, phones in sorted(grammar.PHONES.items()))
        )
