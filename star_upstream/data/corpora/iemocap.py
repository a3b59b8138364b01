"""IEMOCAP as published: ``Session<1-5>`` with ``sentences/wav/<dialogue>/<utterance>.wav`` and
``dialog/EmoEvaluation/<dialogue>.txt``.

A line ``[<start> - <end>]<tab><utterance><tab><emotion><tab>...`` of an EmoEvaluation file is the label that most
annotators gave. SUPERB keeps four: neutral, happy, sad, angry, with excited counted as happy. Its five folds are the
five sessions, each with two speakers of its own. s3prl reads the same utterances from lists that lie in its repository
(downstream/emotion/meta_data); this table is made of the corpus, in the order of those lists, since SUPERB's dev sets
are a random split of them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ...errors import StarError
from .manifest import lengths, lines

NAME = "IEMOCAP"
LICENCE = "IEMOCAP release form of the University of Southern California (on request, academic research)"
FOLDERS = ("IEMOCAP", "IEMOCAP_full_release", "iemocap")
COUNTS = {"er": {1: 1_085, 2: 1_023, 3: 1_151, 4: 1_031, 5: 1_241}}
LABELS = {"neu": "neutral", "hap": "happy", "exc": "happy", "sad": "sad", "ang": "angry"}

DIALOGUES = {
    1: (
        "F_script02_2 F_impro07 F_script03_2 M_impro02 F_impro06 F_script01_3 M_script02_1 M_impro04 M_script01_1 "
        "F_impro01 F_script01_1 F_impro05 M_script01_2 M_script02_2 F_script02_1 M_script03_2 M_impro05 M_impro01 "
        "F_impro03 M_impro03 M_script01_3 F_script03_1 M_impro07 F_impro02 M_impro06 M_script03_1 F_impro04 "
        "F_script01_2"
    ),
    2: (
        "F_impro03 F_script03_2 M_script03_2 M_impro04 M_impro05 F_script02_1 F_script02_2 M_script02_2 M_impro08 "
        "M_impro07 F_script03_1 M_script01_3 F_impro06 F_impro01 F_impro04 F_script01_2 M_impro02 M_impro03 "
        "F_script01_3 F_impro05 F_script01_1 M_impro06 M_script02_1 F_impro08 F_impro02 M_script01_1 M_impro01 "
        "M_script01_2 M_script03_1 F_impro07"
    ),
    3: (
        "F_script02_1 M_impro04 M_script03_2 M_impro05b M_impro02 F_impro05 M_script02_2 M_impro08b F_impro07 "
        "M_script01_1 M_script02_1 M_impro05a M_impro07 M_script03_1 F_script03_1 M_impro01 F_script01_1 F_impro04 "
        "F_script02_2 F_script01_3 M_script01_3 M_impro06 F_impro01 F_impro03 M_script01_2 M_impro08a M_impro03 "
        "F_script03_2 F_script01_2 F_impro08 F_impro06 F_impro02"
    ),
    4: (
        "F_script03_1 F_impro01 M_script02_1 M_script02_2 F_script01_3 M_impro05 F_script02_1 F_impro07 F_impro02 "
        "F_impro03 M_impro02 F_script01_1 M_script01_1 F_script03_2 M_impro06 F_script02_2 M_impro01 M_impro04 "
        "F_impro05 F_script01_2 F_impro08 F_impro06 M_impro03 M_script01_3 M_script01_2 M_script03_1 M_script03_2 "
        "M_impro07 F_impro04 M_impro08"
    ),
    5: (
        "M_script01_3 F_impro04 M_script02_2 F_script01_3 F_script01_2 F_impro06 M_impro06 M_impro01 F_script03_1 "
        "F_impro07 F_script03_2 M_script01_1b F_impro05 M_script01_1 F_impro08 M_script03_1 M_impro05 F_impro01 "
        "F_impro02 M_impro03 F_script01_1 M_impro04 M_script02_1 F_impro03 F_script02_2 F_script02_1 M_script03_2 "
        "M_impro08 M_impro02 M_impro07 M_script01_2"
    ),
}
"""Each session's dialogues (without ``Ses0<session>``) in the order of s3prl's lists, which is that of a folder listing
and follows no rule (read at v0.4.18). Within a dialogue the utterances come by name, and in a training list one session
comes after the other."""


def read(folder: Path, task: str) -> pd.DataFrame:
    """Every utterance of the four classes in the order of s3prl's lists (dialogues that these do not have after the
    others, by name): fold (1 to 5), speaker (``Ses01F`` ...), label. Raises :class:`StarError`."""
    rows = []
    for fold in COUNTS["er"]:
        session = folder / f"Session{fold}"
        files = sorted((session / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
        if not files:
            raise StarError(
                f"{session}: no dialog/EmoEvaluation/Ses*.txt; unpack all five sessions of {NAME} in {folder}"
            )
        rows += [row for file in files for row in _dialogue(file, session, fold)]
    place = {f"Ses{n:02d}{name}": i for n, names in DIALOGUES.items() for i, name in enumerate(names.split())}

    def order(row: tuple) -> tuple:
        dialogue = row[0].rpartition("_")[0]
        return row[2], place.get(dialogue, len(place)), dialogue, row[0]

    table = pd.DataFrame(sorted(rows, key=order), columns=["id", "path", "fold", "speaker", "label"])
    table["samples"] = lengths(table["path"], folder)
    return table


def _dialogue(file: Path, session: Path, fold: int) -> list[tuple[str, str, int, str, str]]:
    rows = []
    for number, line in lines(file, NAME):
        if not line.startswith("["):
            continue  # the header, and the single annotators' labels
        fields = line.split("\t")
        if len(fields) < 4 or "_" not in fields[1]:
            raise StarError(
                f"{file}: line {number}: expected '[start - end]<tab>utterance<tab>emotion<tab>...', got {line!r}"
            )
        name, label = fields[1].strip(), LABELS.get(fields[2].strip())
        if label is not None:
            dialogue, _, turn = name.rpartition("_")
            # The letter in the dialogue's name is who wore the markers; the one of the turn is who speaks.
            wav = session / "sentences" / "wav" / dialogue / f"{name}.wav"
            rows.append((name, str(wav), fold, f"Ses{fold:02d}{turn[:1]}", label))
    return rows
