"""Slot filling: SuperbSF on audio SNIPS, characters and slot tags, CTC, greedy decoding without a language model."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from star_upstream.data import corpora
from star_upstream.errors import StarError

from ..heads.ctc import CTC, OWN_CHARACTERS, SMALL_SPECAUG, SPECAUG, WIDER_MASKS, characters, lstm_head
from ..heads.probe import Metric, Schedule, Task, protocols

_HARMLESS = str.maketrans(":;", "\ue000\ue001")
"""s3prl's slot metrics join and split slots at these two; other characters in their place leave the scores as they
are."""


PUNCTUATION = "?!.,;-"
"""Words of these the published runs leave out."""


class SlotFilling(CTC):
    """A text with its slots is ``PLAY B-artist ANNA BELL E-artist``; equal neighbours are one slot, as s3prl has it."""

    problem, logged = "SuperbSF", ("slot_type_f1", "slot_value_cer")

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.tokenizer import CharacterSlotTokenizer

        texts = [text.split() for text in table["text"]]
        slots = [[_name(slot) for slot in row.split()] for row in table["slots"]]
        for row, (words, names) in enumerate(zip(texts, slots)):
            if len(words) != len(names) or not names:
                raise StarError(
                    f"{task.name}: utterance {table['id'].iloc[row]!r} has {len(words)} words and {len(names)} slots"
                )
        if not any(name != "O" for row in self.split["test"] for name in slots[row]):
            raise StarError(f"{task.name}: no test utterance has a slot, so there is no slot value to score")
        listed = list(table.attrs.get("slots", ()))
        names = listed + sorted({name for row in self.split["train"] for name in slots[row]} - {"O", *listed})
        known = characters([" ".join(texts[r]) for r in self.split["train"]])
        self.tokenizer = CharacterSlotTokenizer(known, [f"{edge}-{name}" for name in names for edge in "BE"])
        self.tokens = [self._tokens(*pair) for pair in zip(texts, slots)]
        for row, tokens in enumerate(self.tokens):
            if not tokens:
                raise StarError(
                    f"{task.name}: utterance {table['id'].iloc[row]!r} has nothing but punctuation; remove it"
                )
        self.targets = [self.tokenizer.decode(tokens) for tokens in self.tokens]

    @classmethod
    def prepare(cls, task, table, root, stride, limit):
        """``attrs["slots"]``: those of the corpus's list, where it has one."""
        table = super().prepare(task, table, root, stride, limit)
        table.attrs["slots"] = corpora.slots(root) or ()
        return table

    def _tokens(self, words: list[str], names: list[str]) -> list[int]:
        """As the published runs spell it (s3prl/downstream/ctc/text.py, v0.4.18): what begins and ends a slot are its
        neighbours with punctuation, which is then left out, so that a slot may lose its end to it; and a text that ends
        in it ends in a space."""
        symbol, tokens = self.tokenizer.vocab_to_idx, []
        edges = self.tokenizer.slot2id
        before, after = [None, *names[:-1]], [*names[1:], None]
        for place, (word, name) in enumerate(zip(words, names)):
            if word in PUNCTUATION:
                continue
            if name not in ("O", before[place]):
                tokens.append(edges[f"B-{name}"])
            tokens += map(symbol, "AND" if word == "&" else word)
            if name not in ("O", after[place]):
                tokens.append(edges[f"E-{name}"])
            tokens.append(self.tokenizer.eos_idx if after[place] is None else symbol(" "))
        return tokens

    @classmethod
    def labels(cls, task, table):
        return [{("slot", repr(_name(slot))) for slot in row.split() if slot != "O"} for row in table["slots"]]

    def predict(self, head, x_BTD, lengths_B, rows):
        """Without the slot that has no name: s3prl's metrics could not read it."""
        return [
            " ".join(w for w in text.split(" ") if w not in ("B-", "E-"))
            for text in super().predict(head, x_BTD, lengths_B, rows)
        ]

    def value(self, predictions, rows):
        from s3prl.metric.slot_filling import slot_type_f1

        return 100.0 * slot_type_f1(*self._pairs(predictions, rows))

    def counts(self, predictions, rows):
        """F1 is a mean over utterances."""
        from s3prl.metric.slot_filling import slot_type_f1

        return np.array([[slot_type_f1([p], [t]), 1] for p, t in zip(*self._pairs(predictions, rows))], dtype=float)

    def further(self, predictions, rows):
        """The character error rate of slot values, over all slots."""
        from s3prl.metric.slot_filling import get_slot_dict, slot_value_cer

        predictions, targets = self._pairs(predictions, rows)
        counts = np.zeros((len(targets), 2))
        for row, (prediction, target) in enumerate(zip(predictions, targets)):
            values = get_slot_dict(prediction, target)[0].values()
            counts[row, 1] = sum(len(value) for slot in values for value in slot)
            if counts[row, 1]:
                counts[row, 0] = slot_value_cer([prediction], [target]) * counts[row, 1]
        return [(100.0 * slot_value_cer(predictions, targets), counts)]

    def _pairs(self, predictions, rows) -> tuple[list[str], list[str]]:
        return [p.translate(_HARMLESS) for p in predictions], [self.targets[r].translate(_HARMLESS) for r in rows]


def _name(slot: str) -> str:
    """A slot's name without the B- or I- of the table."""
    return re.sub(r"^[BI]-", "", slot)


TASK = Task(
    name="sf",
    title="Slot filling",
    version=3,
    corpus="Audio SNIPS",
    splits="train, valid and test of eight, four and four voices",
    metrics=(Metric("sf_f1", "SF F1", "%", "max"), Metric("sf_cer", "SF CER", "%", "min")),
    features="frames",
    target=("text", "slots"),
    probe=SlotFilling,
    schedules=protocols(
        superb=Schedule(
            steps=200_000,
            batch=32,
            accumulate=1,
            lr=1e-4,
            eval_every=2_000,
            head=lstm_head(1024, [1024, 1024], 0.2, SPECAUG),
        ),
        mini=Schedule(
            steps=400,
            batch=16,
            accumulate=1,
            lr=5e-3,
            eval_every=100,
            scheduler="linear",
            warmup=40,
            head=lstm_head(128, [128], 0.1, SMALL_SPECAUG),
        ),
        warmup=1_400,
    ),
    differences=(OWN_CHARACTERS, WIDER_MASKS, "slots of train that the corpus does not list are symbols too"),
    differences_once=("features are kept in fp16",),
)
