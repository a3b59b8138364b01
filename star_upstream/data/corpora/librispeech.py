"""LibriSpeech as published: ``<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac``, one ``.trans.txt`` a
chapter.

SUPERB's split: train-clean-100, dev-clean, test-clean.

Phone recognition takes its phones from lexicon files, ``librispeech-lexicon*.txt`` in the LibriSpeech folder, each line
a word and its ARPAbet phones; of several pronunciations the first counts, of several files the first by name. s3prl
reads ``librispeech-lexicon-200k-g2p.txt`` and ``librispeech-lexicon-allothers-g2p.txt`` (data set s3prl/g2p), which
cover every word. ``librispeech-lexicon.txt``, published with LibriSpeech's language models (OpenSLR 11), lacks some;
add those in a file of your own.

Stress digits stay, as they are in the lexicon: 39 phones become up to 69 symbols (24 consonants and 15 vowels with
three stresses). The published scores have a fixed list of 71 symbols, those and two (silence and noise) that no
transcript has.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import lengths, lines

NAME = "LibriSpeech ASR corpus"
LICENCE = "CC BY 4.0"
FOLDERS = ("LibriSpeech",)
SUBSETS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
COUNTS = {task: {"train": 28_539, "dev": 2_703, "test": 2_620} for task in ("pr", "asr")}
LEXICON = "librispeech-lexicon.txt"
LEXICONS = "librispeech-lexicon*.txt"


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every transcribed utterance of the three subsets, by id: upper-case text, speaker number, for pr also the phones
    of the text.

    Raises :class:`StarError`, for pr also without a lexicon file and for words that no lexicon file has.
    """
    rows = []
    lexicon = _lexicon(folder) if task == "pr" else {}
    for split, subset in SUBSETS.items():
        files = sorted((folder / subset).glob("*/*/*.trans.txt"))
        if not files:
            raise StarError(f"{folder / subset}: no <speaker>/<chapter>/*.trans.txt; unpack that part of {NAME} there")
        rows += [row for file in files for row in _chapter(file, split)]
    table = pd.DataFrame(rows, columns=["id", "path", "split", "speaker", "text"])
    if task == "pr":
        table["phones"] = _phones(table["text"], lexicon, folder)
    table["samples"] = lengths(table["path"], folder)
    return table


def _chapter(file: Path, split: str) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for number, line in lines(file, NAME):
        name, *words = line.split()
        if not words:
            raise StarError(f"{file}: line {number}: expected an utterance id and its text, got {line!r}")
        rows.append((name, str(file.parent / f"{name}.flac"), split, name.split("-")[0], " ".join(words)))
    return sorted(rows)


def _lexicon(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob(LEXICONS))
    if not files:
        raise StarError(
            f"{folder}: no lexicon, so no phones: get librispeech-lexicon-200k-g2p.txt "
            "and librispeech-lexicon-allothers-g2p.txt "
            f"(data set s3prl/g2p), or {LEXICON} (OpenSLR 11), and put them in this folder"
        )
    phones: dict[str, str] = {}
    for file in files:
        for number, line in lines(file, "the lexicon"):
            word, *said = line.split()
            if not said:
                raise StarError(f"{file}: line {number}: expected a word and its phones, got {line!r}")
            phones.setdefault(word.upper(), " ".join(said))
    return phones


def _phones(texts: pd.Series, lexicon: dict[str, str], folder: Path) -> list[str]:
    unknown = sorted({word for text in texts for word in text.upper().split()} - lexicon.keys())
    if unknown:
        some = ", ".join(unknown[:5]) + " ..." * (len(unknown) > 5)
        raise StarError(
            f"{folder}: {len(unknown)} words of the transcripts are in no {LEXICONS} ({some});"
            " add s3prl's librispeech-lexicon-allothers-g2p.txt, or write their phones to librispeech-lexicon-extra.txt"
        )
    return [" ".join(lexicon[word] for word in text.upper().split()) for text in texts]
