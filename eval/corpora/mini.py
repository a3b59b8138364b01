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
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import numpy as np
import soundfile

from star_upstream.audio import RATE
from star_upstream.errors import StarError
from star_upstream.files import replacing, write_json

from . import espeak, librispeech, speech_commands, voxceleb1

VERSION = 1
"""Of the recipe below; another one makes the folder anew."""
MARKER = "mini.json"
FOLDERS = (speech_commands.FOLDERS[0], speech_commands.TEST_FOLDERS[0], voxceleb1.FOLDERS[0], librispeech.FOLDERS[0])

LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
MEN = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Denis", "Gene", "Hugo", "Lee", "Mike", "adam", "boris", "david", "ian", "quincy")
WOMEN = ("f1", "f2", "f3", "f4", "f5", "Alicia", "Annie", "Andrea", "belinda", "linda", "steph", "shelby", "aunty", "anika")
OTHER_WORDS = ("bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven", "sheila", "six",
               "three", "tree", "two", "wow", "zero")  # fmt: skip
EQUALISER_DB = 6.0
"""Standard deviation of a channel's gains: without it a voice is told by its mean spectrum alone."""
SNR_DB = (10.0, 30.0)
SENTENCE = (
    ("THE CAT", "THE OLD DOG", "MY SISTER", "A SMALL BOY", "THE TEACHER", "OUR NEIGHBOR"),
    ("SEES", "WANTS", "FINDS", "KEEPS", "BRINGS"),
    ("A RED BOX", "THE GREEN BOAT", "SOME BREAD", "A WARM COAT", "THE LONG LETTER", "TWO APPLES"),
    ("IN THE GARDEN", "BY THE RIVER", "NEAR THE HOUSE", "ON THE HILL", "IN THE MORNING", "BEFORE SUPPER"),
)


class Speaker(NamedTuple):
    """A synthetic voice; see :class:`eval.corpora.espeak.Job`."""

    language: str
    variant: str
    rate: int
    pitch: int
    range: int

    def says(self, text: str, rng: np.random.Generator) -> espeak.Job:
        """The text, a little faster or slower, higher or lower than this speaker's average."""
        rate, pitch = self.rate * rng.uniform(0.93, 1.07), self.pitch + rng.integers(-3, 4)
        return espeak.Job(text, self.language, self.variant, round(rate), int(np.clip(pitch, 0, 99)), self.range)


@dataclass(frozen=True)
class Channel:
    """How a recording sounds: ``gains`` in dB at ``BANDS``, noise ``colour`` (power falls as 1 / f ** colour), ``snr`` in dB."""

    gains: tuple[float, ...]
    colour: float
    snr: float


BANDS = (100.0, 250.0, 500.0, 1000.0, 2000.0, 3500.0, 5500.0, 8000.0)
"""Hz; between them a channel's gain in dB is linear over the logarithm of the frequency."""


class Clip(NamedTuple):
    """A file to be made: what is said through which channel, and its length in seconds (least, most)."""

    path: str
    job: espeak.Job
    channel: Channel
    seconds: tuple[float, float]


def make(root: str | Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Make the small corpora in the folder ``root`` (about 28 minutes of audio, some 50 MB; ``scale`` multiplies the numbers of items).

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
    for part in root.glob(".*.part"):  # what a killed run left behind
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    for number, write in enumerate((_keywords, _speakers, _sentences)):
        write(root, np.random.default_rng([seed, number]), lambda items: max(1, round(items * scale)))
    with replacing(root / "README.md") as part:
        part.write_text(CARD.format(version=VERSION, seed=seed, scale=scale), encoding="utf-8")
    write_json(marker, {**recipe, "complete": True, "espeakng_loader": importlib.metadata.version("espeakng-loader")})
    return root


Count = Callable[[int], int]


def _keywords(root: Path, rng: np.random.Generator, count: Count) -> None:
    """Speech Commands: speakers of train, dev and test are different voices; each says the ten words and a few others."""
    people = {"train": count(30), "dev": count(6), "test": count(8)}
    voices = _voices(rng, sum(people.values()))
    words, tests, names = [], [], set()
    lists: dict[str, list[str]] = {"dev": [], "test": []}
    others = itertools.cycle(rng.permutation(OTHER_WORDS).tolist())
    for split, number in people.items():
        for _ in range(number):
            voice, name = next(voices), _name(rng, split, names)
            for word in (*speech_commands.WORDS, next(others), next(others)):
                clip = Clip(f"{word}/{name}_nohash_0.wav", voice.says(word, rng), _channel(rng), (1.0, 1.0))
                words.append(clip)
                if split in lists:
                    lists[split].append(clip.path)
                if split == "test":
                    tests.append(clip)
    waves = _waves(words, rng)
    noise_seconds = count(12)
    noises = {name: noise(rng, noise_seconds * RATE, colour) for name, colour in (("white", 0.0), ("pink", 1.0), ("brown", 2.0))}
    with replacing(root / speech_commands.FOLDERS[0]) as folder:
        for clip, wave in zip(words, waves):
            _write(folder / clip.path, wave)
        for name, wave in noises.items():
            _write(folder / speech_commands.NOISE / f"{name}_noise.wav", _level(wave, -35.0))
        (folder / "validation_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["dev"])))
        (folder / "testing_list.txt").write_text("".join(f"{path}\n" for path in sorted(lists["test"])))
    with replacing(root / speech_commands.TEST_FOLDERS[0]) as folder:
        wave_of = {clip.path: wave for clip, wave in zip(words, waves)}
        for clip in tests:
            word, file = clip.path.split("/")
            known = word in speech_commands.WORDS
            _write(folder / (word if known else speech_commands.UNKNOWN) / (file if known else f"{word}_{file}"), wave_of[clip.path])
        for number in range(people["test"]):
            wave = noise(rng, RATE, rng.uniform(0.0, 2.0))
            _write(folder / speech_commands.SILENCE / f"noise_{number:04d}.wav", _level(wave, rng.uniform(-50.0, -30.0)))


def _speakers(root: Path, rng: np.random.Generator, count: Count) -> None:
    """VoxCeleb1: twelve voices, seven videos each; a video is one channel, and is in one split only."""
    clips, lines = [], []
    number = max(3, count(12))
    for index, voice in enumerate(itertools.islice(_voices(rng, number), number)):
        part, name = ("test", f"id{10270 + index}") if index % 4 == 3 else ("dev", f"id{10001 + index}")
        videos = [("1", count(2))] * 5 + [("2", count(3)), ("3", count(3))]
        for split, files in videos:
            channel, video = _channel(rng), "".join(rng.choice(list("abcdefghijkmnpqrstuvwxyz23456789"), 11))
            for file in range(1, files + 1):
                text = f"{_text(rng)}. {_text(rng)}.".lower()
                uid = f"{name}/{video}/{file:05d}.wav"
                clips.append(Clip(f"{part}/wav/{uid}", voice.says(text, rng), channel, (2.0, rng.uniform(2.5, 4.0))))
                lines.append(f"{split} {uid}\n")
    with replacing(root / voxceleb1.FOLDERS[0]) as folder:
        for clip, wave in zip(clips, _waves(clips, rng)):
            _write(folder / clip.path, wave)
        (folder / voxceleb1.SPLIT_FILE).write_text("".join(lines))


def _sentences(root: Path, rng: np.random.Generator, count: Count) -> None:
    """LibriSpeech: different voices in each split; no sentence occurs twice, so those of dev and test are not in train."""
    texts = iter(rng.permutation([" ".join(parts) for parts in itertools.product(*SENTENCE)]).tolist())
    sizes = {"train": (count(10), 15), "dev": (count(4), 5), "test": (count(6), 5)}
    voices = _voices(rng, sum(speakers for speakers, _ in sizes.values()))
    clips, transcripts, people = [], {}, []
    for (split, (speakers, sentences)), first in zip(sizes.items(), (1001, 4001, 7001)):
        subset = librispeech.SUBSETS[split]
        for speaker in range(first, first + speakers):
            voice, channel, chapter = next(voices), _channel(rng), f"{subset}/{speaker}/{speaker + 20000}/{speaker}-{speaker + 20000}"
            people.append(f"{speaker} | {'F' if voice.variant in WOMEN else 'M'} | {subset} | 1.00 | {voice.language}+{voice.variant}\n")
            for number in range(sentences):
                # A scale above one may ask for more sentences than the grammar has.
                text = next(texts, None) or _text(rng)
                clips.append(Clip(f"{chapter}-{number:04d}.flac", voice.says(text.lower(), rng), channel, (0.5, 8.0)))
                transcripts.setdefault(f"{chapter}.trans.txt", []).append(f"{Path(clips[-1].path).stem} {text}\n")
    with replacing(root / librispeech.FOLDERS[0]) as folder:
        for clip, wave in zip(clips, _waves(clips, rng)):
            _write(folder / clip.path, wave)
        for path, lines in transcripts.items():
            (folder / path).write_text("".join(lines))
        (folder / "SPEAKERS.TXT").write_text(";ID | SEX | SUBSET | MINUTES | NAME\n" + "".join(people))


def _voices(rng: np.random.Generator, number: int) -> Iterator[Speaker]:
    """``number`` voices, no variant twice before all were used, men and women about as often."""
    men, women = (itertools.cycle(rng.permutation(names).tolist()) for names in (MEN, WOMEN))
    for index in range(number):
        variant = next(women if index % 2 else men)
        language = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
        yield Speaker(language, variant, int(rng.integers(135, 200)), int(rng.integers(20, 80)), int(rng.integers(30, 80)))


def _channel(rng: np.random.Generator) -> Channel:
    return Channel(tuple(rng.normal(0.0, EQUALISER_DB, len(BANDS))), rng.uniform(0.0, 2.0), rng.uniform(*SNR_DB))


def _text(rng: np.random.Generator) -> str:
    return " ".join(parts[int(rng.integers(len(parts)))] for parts in SENTENCE)


def _name(rng: np.random.Generator, split: str, taken: set[str]) -> str:
    """A speaker's eight hexadecimal digits that Speech Commands' rule (its README: 10 % dev, 10 % test by hash) puts into ``split``."""
    while True:
        name = f"{int(rng.integers(16**8)):08x}"
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if name not in taken and split == ("dev" if share < 10 else "test" if share < 20 else "train"):
            taken.add(name)
            return name


def _waves(clips: list[Clip], rng: np.random.Generator) -> list[np.ndarray]:
    """What each clip's file holds: float64, 1-D, 16 kHz."""
    return [recording(wave, clip.channel, clip.seconds, rng) for clip, wave in zip(clips, espeak.speak([clip.job for clip in clips]))]


def recording(wave: np.ndarray, channel: Channel, seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """espeak-ng's waveform without its outer silence, at 16 kHz, placed at random in (at least, at most) ``seconds`` of noise."""
    from scipy.signal import resample_poly

    wave = resample_poly(wave.astype(np.float64), 320, 441)  # in one thread, so the same bytes everywhere; 22,050 Hz to 16 kHz
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=0))
    if not len(loud):
        raise StarError("espeak-ng returned silence; install another version of espeakng-loader")
    least, most = (round(s * RATE) for s in seconds)
    wave = wave[loud[0] : loud[-1] + 1][:most]
    spectrum, frequencies = np.fft.rfft(wave), np.fft.rfftfreq(len(wave), 1 / RATE)
    gains = np.interp(np.log(np.maximum(frequencies, BANDS[0])), np.log(BANDS), channel.gains)
    wave = np.fft.irfft(spectrum * 10 ** (gains / 20), len(wave))
    wave = _level(wave, rng.uniform(-30.0, -20.0))
    # A tenth of a second around the speech at most, where the length is free.
    total = max(least, min(most, len(wave) + int(rng.integers(RATE // 10))))
    start = int(rng.integers(total - len(wave) + 1))
    power = np.mean(wave**2)
    background = noise(rng, total, channel.colour) * np.sqrt(power / 10 ** (channel.snr / 10))
    background[start : start + len(wave)] += wave
    return background * min(1.0, 0.95 / np.abs(background).max())


def noise(rng: np.random.Generator, samples: int, colour: float) -> np.ndarray:
    """Gaussian noise of unit power whose power spectrum falls as 1 / f ** colour above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 50.0) ** (-colour / 2)
    wave = np.fft.irfft(spectrum, samples)
    return wave / np.sqrt(np.mean(wave**2))


def _level(wave: np.ndarray, decibels: float) -> np.ndarray:
    """``wave`` with that root mean square, relative to full scale."""
    return wave * (10 ** (decibels / 20) / np.sqrt(np.mean(wave**2)))


def _write(path: Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.round(wave * 32767).astype(np.int16), RATE, subtype="PCM_16")


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
| speech_commands_v0.01, speech_commands_test_set_v0.01 | Speech Commands v0.01 | KS | ten words, twenty others, noise; one second each |
| VoxCeleb1 | VoxCeleb1 | SID | synthetic voices, 2 to 4 s an utterance |
| LibriSpeech | LibriSpeech | ASR | sentences of a small grammar |

How: espeak-ng says each text with a voice variant, an English accent, a pitch and a rate; then come a random equaliser curve, a random
level and coloured noise 10 to 30 dB below the speech. Splits: KS and ASR have different voices in train, dev and test; in SID each "video" (one
equaliser curve, one kind of noise) is in one split.

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
    parser = argparse.ArgumentParser(prog="python -m eval.corpora.mini", description="Make the small synthetic corpora in a folder.")
    parser.add_argument("root", help="folder to make; a finished one is left as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of items (default 1)")
    arguments = parser.parse_args()
    try:
        print(f"mini corpora: {make(arguments.root, arguments.seed, arguments.scale)}", file=sys.stderr)
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
