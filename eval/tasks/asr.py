"""Speech recognition: SuperbASR on LibriSpeech, characters, CTC, greedy decoding without a language model."""

from __future__ import annotations

import pandas as pd

from star_upstream.errors import StarError

from ..heads import batches
from ..heads.ctc import NO_SPECAUG, OWN_CHARACTERS, SPECAUG, WIDER_MASKS, WordErrorRate, characters, lstm_head
from ..heads.probe import Metric, Schedule, Task, protocols

UNUSED = "<s>"
"""The published runs' list of symbols has the start of a sentence too, which no text has."""


class SpeechRecognition(WordErrorRate):
    problem, logged = "SuperbASR", ("wer",)

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.tokenizer import CharacterTokenizer

        for row, text in enumerate(self.targets):
            if not text.strip():
                raise StarError(f"{task.name}: utterance {table['id'].iloc[row]!r} has no text")
        known = characters([self.targets[r] for r in self.split["train"]])
        known = known if " " in known else [" ", *known]  # every text ends with one
        self.tokenizer = CharacterTokenizer([*known, UNUSED])
        ends = [self.tokenizer.vocab_to_idx(" "), self.tokenizer.eos_idx]
        self.tokens = [[*self.tokenizer.encode(text)[:-1], *ends] for text in self.targets]

    def details(self, predictions, rows):
        """Of a weak encoder nearly every word has an error; its characters still tell it from others."""
        from s3prl.metric import cer

        return {"character_error_rate": 100.0 * cer(list(predictions), [self.targets[r] for r in rows])}

    def predict(self, head, x_BTD, lengths_B, rows):
        """The published runs count words, whatever the number of spaces between and around them."""
        texts = super().predict(head, x_BTD, lengths_B, rows)
        return [" ".join(text.split()) for text in texts]

    def epoch(self, number):
        rows = self.split["train"]
        samples = self.table["samples"].iloc[rows].tolist()
        return batches.buckets(rows, samples, self.schedule.batch, self.seed, number)


TASK = Task(
    name="asr",
    title="Speech recognition",
    version=3,
    corpus="LibriSpeech",
    splits="train-clean-100, dev-clean, test-clean",
    metrics=(Metric("asr_wer", "ASR WER", "%", "min"),),
    features="frames",
    target="text",
    probe=SpeechRecognition,
    schedules=protocols(
        superb=Schedule(
            steps=200_000,
            batch=16,
            accumulate=1,
            lr=1e-4,
            eval_every=2_000,
            head=lstm_head(1024, [1024, 1024], 0.2, SPECAUG),
        ),
        mini=Schedule(
            # Many small updates: until a head spells at all, they count, not the utterances in each. No SpecAugment: it
            # underfits.
            steps=3_000,
            batch=2,
            accumulate=1,
            lr=2e-3,
            eval_every=500,
            scheduler="linear",
            warmup=100,
            head=lstm_head(128, [192], 0.0, NO_SPECAUG),
        ),
        warmup=1_400,
    ),
    differences=(OWN_CHARACTERS, WIDER_MASKS),
    differences_once=("features are kept in fp16",),
)
