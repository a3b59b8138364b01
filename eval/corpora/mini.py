"""A small corpus for each task by speech synthesis, in the folder layouts of the real ones: ``python -m eval.corpora.mini ROOT``.

It lets every part of the evaluation run anywhere in minutes. Its scores compare upstreams with one another at best and never with
published ones. Made of it: keywords (Speech Commands layout), speakers (VoxCeleb1 layout), sentences (LibriSpeech layout).

The waveforms depend only on the seed, the scale and the version of espeak-ng.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Callable

import numpy as np

from star_upstream.audio import RATE
from star_upstream.errors import StarError
from star_upstream.files import replacing, write_json

from . import espeak, librispeech, speech_commands, voxceleb1
from .synthesis import WOMEN, Clip, level, noise, random_channel, recordings, voices, write

VERSION = 1
"""Of the recipe below; another one makes the folder anew."""
MARKER = "mini.json"
FOLDERS = (speech_commands.FOLDERS[0], speech_commands.TEST_FOLDERS[0], voxceleb1.FOLDERS[0], librispeech.FOLDERS[0])

OTHER_WORDS = ("bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven", "sheila",
               "six", "three", "tree", "two", "wow", "zero")  # fmt: skip
SENTENCE = (
    ("THE CAT", "THE OLD DOG", "MY SISTER", "A SMALL BOY", "THE TEACHER", "OUR NEIGHBOR"),
    ("SEES", "WANTS", "FINDS", "KEEPS", "BRINGS"),
    ("A RED BOX", "THE GREEN BOAT", "SOME BREAD", "A WARM COAT", "THE LONG LETTER", "TWO APPLES"),
    ("IN THE GARDEN", "BY THE RIVER", "NEAR THE HOUSE", "ON THE HILL", "IN THE MORNING", "BEFORE SUPPER"),
)


def make(root: str | Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Make the small corpora in the folder ``root`` (28 minutes of audio, 50 MB; ``scale`` multiplies the numbers of items).

    Nothing is done when they are there, whole, with this seed, scale and recipe; else they are made anew.
    Raises :class:`StarError` when ``root`` holds other files, and when espeak-ng is not installed.
    """
    if not 0 < scale <= 10:
        raise StarError(f"scale is {scale}; it must be above 0 and at most 10")
    if seed < 0:
        raise StarError(f"seed is {seed}; it must be 0 or more")
    root = Path(root).expanduser().absolute()
    recipe = {"made_by": "eval.corpora.mini", "version": VERSION, "seed": seed, "scale": float(scale)}
    marker = root / MARKER
    if root.exists():
        found = _marker(marker)
        if found is None and (not root.is_dir() or any(root.iterdir())):
            raise StarError(f"{root}: is not empty and not made by eval.corpora.mini, so nothing is written; name a new folder")
        whole = found is not None and found.get("complete") and all((root / name).is_dir() for name in FOLDERS)
        if whole and all(found.get(key) == value for key, value in recipe.items()):
            return root
    if not espeak.available():
        raise StarError("the mini corpora need espeak-ng: pip install 'star-upstream[mini]'")
    root.mkdir(parents=True, exist_ok=True)
    write_json(marker, {**recipe, "complete": False})
    for left in (*root.glob(".*.part"), *root.glob(".*.old")):  # by a killed run
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for number, part in enumerate((_keywords, _speakers, _sentences)):
        part(root, np.random.default_rng([seed, number]), lambda items: max(1, round(items * scale)))
    with replacing(root / "README.md") as part:
        part.write_text(CARD.format(version=VERSION, seed=seed, scale=scale), encoding="utf-8")
    write_json(marker, {**recipe, "complete": True, "espeakng_loader": importlib.metadata.version("espeakng-loader")})
    return root


Count = Callable[[int], int]


def _keywords(root: Path, rng: np.random.Generator, count: Count) -> None:
    """Speech Commands: speakers of train, dev and test are different voices; each says the ten words and a few others."""
    people = {"train": count(30), "dev": count(6), "test": count(8)}
    cast = voices(rng, sum(people.values()))
    words, tests, names = [], [], set()
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
    noises = {name: noise(rng, noise_seconds * RATE, colour) for name, colour in (("white", 0.0), ("pink", 1.0), ("brown", 2.0))}
    with replacing(root / speech_commands.FOLDERS[0]) as folder:
        for clip, wave in zip(words, waves):
            write(folder / clip.path, wave)
        for name, wave in noises.items():
            write(folder / speech_commands.NOISE / f"{name}_noise.wav", level(wave, -35.0))
        (folder / "validation_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["dev"])))
        (folder / "testing_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["test"])))
    with replacing(root / speech_commands.TEST_FOLDERS[0]) as folder:
        wave_of = {clip.path: wave for clip, wave in zip(words, waves)}
        for clip in tests:
            word, file = clip.path.split("/")
            known = word in speech_commands.WORDS
            write(folder / (word if known else speech_commands.UNKNOWN) / (file if known else f"{word}_{file}"), wave_of[clip.path])
        for number in range(people["test"]):
            wave = noise(rng, RATE, rng.uniform(0.0, 2.0))
            write(folder / speech_commands.SILENCE / f"noise_{number:04d}.wav", level(wave, rng.uniform(-50.0, -30.0)))


def _speakers(root: Path, rng: np.random.Generator, count: Count) -> None:
    """VoxCeleb1: twelve voices, seven videos each; a video is one channel, and is in one split only."""
    clips, lines = [], []
    number = max(3, count(12))
    for index, voice in enumerate(itertools.islice(voices(rng, number), number)):
        part, name = ("test", f"id{10270 + index}") if index % 4 == 3 else ("dev", f"id{10001 + index}")
        videos = [("1", count(2))] * 5 + [("2", count(3)), ("3", count(3))]
        for split, files in videos:
            channel, video = random_channel(rng), "".join(rng.choice(list("abcdefghijkmnpqrstuvwxyz23456789"), 11))
            for file in range(1, files + 1):
                text = f"{_text(rng)}. {_text(rng)}.".lower()
                uid = f"{name}/{video}/{file:05d}.wav"
                clips.append(Clip(f"{part}/wav/{uid}", voice.says(text, rng), channel, (2.0, rng.uniform(2.5, 4.0))))
                lines.append(f"{split} {uid}\n")
    with replacing(root / voxceleb1.FOLDERS[0]) as folder:
        for clip, wave in zip(clips, recordings(clips, rng)):
            write(folder / clip.path, wave)
        (folder / voxceleb1.SPLIT_FILE).write_text("".join(lines))


def _sentences(root: Path, rng: np.random.Generator, count: Count) -> None:
    """LibriSpeech: different voices in each split; no sentence occurs twice, so those of dev and test are not in train."""
    texts = iter(rng.permutation([" ".join(parts) for parts in itertools.product(*SENTENCE)]).tolist())
    sizes = {"train": (count(10), 15), "dev": (count(4), 5), "test": (count(6), 5)}
    cast = voices(rng, sum(speakers for speakers, _ in sizes.values()))
    clips, transcripts, people = [], {}, []
    for (split, (speakers, sentences)), first in zip(sizes.items(), (1001, 4001, 7001)):
        subset = librispeech.SUBSETS[split]
        for speaker in range(first, first + speakers):
            voice, channel = next(cast), random_channel(rng)
            chapter = f"{subset}/{speaker}/{speaker + 20000}/{speaker}-{speaker + 20000}"
            sex = "F" if voice.variant in WOMEN else "M"
            people.append(f"{speaker} | {sex} | {subset} | 1.00 | {voice.language}+{voice.variant}\n")
            for number in range(sentences):
                # A scale above one may ask for more sentences than the grammar has.
                text = next(texts, None) or _text(rng)
                clips.append(Clip(f"{chapter}-{number:04d}.flac", voice.says(text.lower(), rng), channel, (0.5, 8.0)))
                transcripts.setdefault(f"{chapter}.trans.txt", []).append(f"{Path(clips[-1].path).stem} {text}\n")
    with replacing(root / librispeech.FOLDERS[0]) as folder:
        for clip, wave in zip(clips, recordings(clips, rng)):
            write(folder / clip.path, wave)
        for path, lines in transcripts.items():
            (folder / path).write_text("".join(lines))
        (folder / "SPEAKERS.TXT").write_text(";ID | SEX | SUBSET | MINUTES | NAME\n" + "".join(people))


def _text(rng: np.random.Generator) -> str:
    return " ".join(parts[int(rng.integers(len(parts)))] for parts in SENTENCE)


def _name(rng: np.random.Generator, split: str, taken: set[str]) -> str:
    """Eight hexadecimal digits of a speaker whom the corpus's rule (its README: by hash, 10 % dev, 10 % test) puts in ``split``."""
    while True:
        name = f"{int(rng.integers(16**8)):08x}"
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if name not in taken and split == ("dev" if share < 10 else "test" if share < 20 else "train"):
            taken.add(name)
            return name


def _marker(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == "eval.corpora.mini" else None


CARD = """# Mini corpora (synthetic)

Made by `python -m eval.corpora.mini`, recipe {version}, seed {seed}, scale {scale}. Nothing here is a recording of a person.

| folder | layout of | task | content |
| --- | --- | --- | --- |
| speech_commands_v0.01, speech_commands_test_set_v0.01 | Speech Commands | KS | ten words, twenty others, noise; 1 s each |
| VoxCeleb1 | VoxCeleb1 | SID | synthetic voices, 2 to 4 s an utterance |
| LibriSpeech | LibriSpeech | ASR | sentences of a small grammar |

How: espeak-ng says each text with a voice variant, an English accent, a pitch and a rate; then come a random equaliser curve,
a random level and coloured noise 10 to 30 dB below the speech. Splits: KS and ASR have different voices in train, dev and test;
in SID each "video" (one equaliser curve, one kind of noise) is in one split.

**Scores on these corpora are not comparable with published SUPERB scores, nor with scores on any real corpus.** They show that an
evaluation runs, and at most which of two upstreams does better here.

What the labels mean less than on real speech:

- SID: a "speaker" is a setting of one synthesiser (variant, accent, pitch, rate), not a person; the sex in `SPEAKERS.TXT` is that
  which the variant's name suggests.
- KS: every voice pronounces a word by the same rules, and the silence class is generated noise.
- ASR: few words in one sentence pattern; a low error rate says little about open vocabulary.

espeak-ng is free software under the GPL (version 3 or later), used here as a tool through the pip package `espeakng-loader`; it is
not part of star_upstream. To remake this folder, run the command above again; `mini.json` says what it was made from.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.corpora.mini", description="Make small synthetic corpora in a folder.")
    parser.add_argument("root", help="folder to make; a finished one is left as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of items (default 1)")
    arguments = parser.parse_args()
    try:
        print(f"mini corpora: {make(arguments.root, arguments.seed, arguments.scale)}", file=sys.stderr)
    except (StarError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
