"""Audio SNIPS as s3prl's data set has it: ``all.iob.snips.txt`` and
``{train,valid,test}/<speaker>-snips-<split>-<number>.wav``.

A line of the text file is ``<name> BOS <words> EOS<tab>O <slots> <intent>``: after the tab one slot name or ``O`` for
BOS and for each word, then the intent in the place of EOS. The slots have no B- and I-: equal neighbours are one slot,
and so they become ``B-x I-x`` here (s3prl's form is what remains without those prefixes). SUPERB takes eight, four and
four of the sixteen synthetic voices for train, dev and test, each from the sentences of that split; sentences and
voices differ between the splits.

The table has words and slots as the file has them, punctuation too: what becomes of it is the task's. Where a line has
a slot for every word only once accents, quotation marks and ``&`` are words of plain letters, the table has its text
so.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import lengths, lines

NAME = "Audio SNIPS (SUPERB slot filling)"
LICENCE = "SNIPS text CC0; the audio is synthetic (Amazon Polly), terms with the data set"
FOLDERS = ("SNIPS", "snips", "audio_snips")
COUNTS = {"sf": {"train": 104_672, "dev": 2_800, "test": 2_800}}
TEXTS, SLOTS = "all.iob.snips.txt", "slots.txt"
PARTS = {"train": "train", "dev": "valid", "test": "test"}
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
LETTERS = str.maketrans({"Æ": "A", "Ð": "D", "Ø": "O", '"': " ", "–": "-", "&": " AND "})
REPLACED = {"楽園追放": "EXPELLED", "官方杂志": ""}


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every recording of the sixteen voices that has a text, by name: speaker, text, slots. Raises
    :class:`StarError`."""
    texts = {}
    for number, line in lines(folder / TEXTS, NAME):
        name, _, rest = line.partition(" ")
        texts[name] = (number, rest)
    rows = []
    for split, part in PARTS.items():
        files = sorted((folder / part).rglob("*.wav"), key=lambda file: file.stem)
        files = [file for file in files if file.stem in texts and file.stem.split("-")[0] in SPEAKERS[split]]
        if not files:
            voices = ", ".join(SPEAKERS[split])
            raise StarError(f"{folder / part}: no recording of {voices} with a line in {TEXTS}; unpack {NAME} there")
        for file in files:
            number, rest = texts[file.stem]
            text, slots = _sentence(rest, f"{folder / TEXTS}: line {number}")
            rows.append((file.stem, str(file), split, file.stem.split("-")[0], text, slots))
    table = pd.DataFrame(rows, columns=["id", "path", "split", "speaker", "text", "slots"])
    table["samples"] = lengths(table["path"], folder)
    return table


def slots(folder: Path) -> tuple[str, ...] | None:
    """The slots that ``slots.txt`` lists, as the published runs read it: its lines but the first, which is O. None
    where it is not there."""
    file = folder / SLOTS
    if not file.is_file():
        return None
    return tuple(file.read_text(encoding="utf-8").split("\n")[1:])


def _sentence(line: str, place: str) -> tuple[str, str]:
    """The text and the slots, one a word, of ``BOS <words> EOS<tab>O <slots> <intent>``."""
    said, tab, tags = line.partition("\t")
    words, names = said.split()[1:-1], tags.split()[1:-1]
    if len(words) != len(names):
        words = _plain(" ".join(words)).split()
    if not tab or not words or len(words) != len(names):
        raise StarError(f"{place}: {len(words)} words and {len(names)} slots between BOS and EOS; unpack {NAME} again")
    before, bio = "O", []
    for name in names:
        bio.append("O" if name == "O" else f"{'I' if name == before else 'B'}-{name}")
        before = name
    return " ".join(words), " ".join(bio)


def _plain(text: str) -> str:
    """Letters without accents, a space for a quotation mark, AND for ``&``, and two words in Chinese characters
    replaced."""
    for words, other in REPLACED.items():
        text = text.replace(words, other)
    return re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFD", text.translate(LETTERS)))
