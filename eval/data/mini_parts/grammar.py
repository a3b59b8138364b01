"""The sentences of one pattern that several of the mini corpora say, and how their words are pronounced."""

from __future__ import annotations

import itertools

import numpy as np

SENTENCE = (
    ("THE CAT", "THE OLD DOG", "MY SISTER", "A SMALL BOY", "THE TEACHER", "OUR NEIGHBOR"),
    ("SEES", "WANTS", "FINDS", "KEEPS", "BRINGS"),
    ("A RED BOX", "THE GREEN BOAT", "SOME BREAD", "A WARM COAT", "THE LONG LETTER", "TWO APPLES"),
    ("IN THE GARDEN", "BY THE RIVER", "NEAR THE HOUSE", "ON THE HILL", "IN THE MORNING", "BEFORE SUPPER"),
)
PHONES = {
    "A": "AH0",
    "APPLES": "AE1 P AH0 L Z",
    "BEFORE": "B IH0 F AO1 R",
    "BOAT": "B OW1 T",
    "BOX": "B AA1 K S",
    "BOY": "B OY1",
    "BREAD": "B R EH1 D",
    "BRINGS": "B R IH1 NG Z",
    "BY": "B AY1",
    "CAT": "K AE1 T",
    "COAT": "K OW1 T",
    "DOG": "D AO1 G",
    "FINDS": "F AY1 N D Z",
    "GARDEN": "G AA1 R D AH0 N",
    "GREEN": "G R IY1 N",
    "HILL": "HH IH1 L",
    "HOUSE": "HH AW1 S",
    "IN": "IH0 N",
    "KEEPS": "K IY1 P S",
    "LETTER": "L EH1 T ER0",
    "LONG": "L AO1 NG",
    "MORNING": "M AO1 R N IH0 NG",
    "MY": "M AY1",
    "NEAR": "N IH1 R",
    "NEIGHBOR": "N EY1 B ER0",
    "OLD": "OW1 L D",
    "ON": "AA1 N",
    "OUR": "AW1 ER0",
    "RED": "R EH1 D",
    "RIVER": "R IH1 V ER0",
    "SEES": "S IY1 Z",
    "SISTER": "S IH1 S T ER0",
    "SMALL": "S M AO1 L",
    "SOME": "S AH1 M",
    "SUPPER": "S AH1 P ER0",
    "TEACHER": "T IY1 CH ER0",
    "THE": "DH AH0",
    "TWO": "T UW1",
    "WANTS": "W AA1 N T S",
    "WARM": "W AO1 R M",
}
"""American English, ARPAbet with stress."""


def every() -> list[str]:
    """All the sentences there are."""
    return [" ".join(parts) for parts in itertools.product(*SENTENCE)]


def text(rng: np.random.Generator, parts: int = len(SENTENCE)) -> str:
    """A sentence drawn at random, or its first parts."""
    return " ".join(choice[int(rng.integers(len(choice)))] for choice in SENTENCE[:parts])
