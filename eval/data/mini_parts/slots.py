"""Audio SNIPS: sentences of five patterns with slots, said by sixteen voices under the published voices' names.

No sentence occurs twice, so those of dev and test are not in train.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_upstream.data.corpora import audio_snips

from ..synthesis import Clip, random_channel, recordings, voices, whole_folder

FOLDERS = (audio_snips.FOLDERS[0],)
VALUES = {
    "artist": ("ANNA BELL", "THE RIVER BAND", "JOHN STONE", "OLD PAPER MOON", "MARIA"),
    "playlist": ("MORNING RUN", "RAINY DAYS", "PARTY", "COOKING", "LONG DRIVE"),
    "music_item": ("SONG", "TRACK", "ALBUM", "TUNE"),
    "city": ("LONDON", "NEW YORK", "MÁLAGA", "SAN DIEGO", "BERLIN", "ROME"),
    "timeRange": ("TOMORROW", "NEXT WEEK", "ON FRIDAY", "THIS EVENING", "AT NOON"),
    "party_size_number": ("TWO", "FOUR", "SIX", "TEN"),
    "restaurant_type": ("BAKERY", "PIZZERIA", "TAVERN", "COFFEE HOUSE"),
    "rating_value": ("ONE", "THREE", "FIVE", "ZERO"),
    "object_name": ("THE GREEN DOOR", "WINTER TALES", "A SHORT WALK", "THE LAST ISLAND"),
}
PATTERNS = {
    "AddToPlaylist": "ADD THIS {music_item} BY {artist} TO MY {playlist} LIST",
    "PlayMusic": "PLAY THE {music_item} BY {artist}",
    "GetWeather": "WHAT IS THE WEATHER IN {city} {timeRange}",
    "BookRestaurant": "BOOK A {restaurant_type} IN {city} FOR {party_size_number}",
    "RateBook": "GIVE {object_name} {rating_value} STARS",
}


def make(root: Path, rng: np.random.Generator, count: Callable[[int], int]) -> None:
    # By pattern in turns, so that a few sentences show all slots.
    by_intent = [[sentences[i] for i in rng.permutation(len(sentences))] for sentences in map(_sentences, PATTERNS)]
    texts = (sentence for group in itertools.zip_longest(*by_intent) for sentence in group if sentence is not None)
    sizes = {"train": count(16), "dev": count(8), "test": count(10)}
    cast = voices(rng, sum(map(len, audio_snips.SPEAKERS.values())))
    clips, lines = [], []
    for split, number in sizes.items():
        part = audio_snips.PARTS[split]
        for speaker in audio_snips.SPEAKERS[split]:
            voice = next(cast)
            for index in range(number):
                sentence = next(texts, None)
                if sentence is None:  # a scale above one may ask for more than there are
                    break
                words, tags, intent = sentence
                name = f"{speaker}-snips-{part}-{index}"
                clips.append(
                    Clip(
                        f"{part}/{name}.wav", voice.says(" ".join(words).lower(), rng), random_channel(rng), (1.0, 4.5)
                    )
                )
                lines.append(f"{name} BOS {' '.join(words)} EOS\tO {' '.join(tags)} {intent}\n")
    with whole_folder(root / audio_snips.FOLDERS[0], clips, recordings(clips, rng)) as folder:
        (folder / audio_snips.TEXTS).write_text("".join(lines), encoding="utf-8")


def _sentences(intent: str) -> list[tuple[list[str], list[str], str]]:
    """All sentences of the pattern: words, one tag a word, intent."""
    choices = []
    for part in PATTERNS[intent].split():
        slot = part.strip("{}")
        choices.append([(value, slot) for value in VALUES[slot]] if slot != part else [(part, "O")])
    found = []
    for chosen in itertools.product(*choices):
        words = [word for value, _ in chosen for word in value.split()]
        tags = [tag for value, tag in chosen for _ in value.split()]
        found.append((words, tags, intent))
    return found
