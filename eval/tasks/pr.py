"""Phone recognition: SuperbPR on LibriSpeech, CTC, greedy decoding."""

from __future__ import annotations

import pandas as pd

from ..heads.ctc import WordErrorRate
from ..heads.probe import Metric, Schedule, Task, protocols


class PhoneRecognition(WordErrorRate):
    """The symbols are s3prl's fixed list where the corpus keeps to it, else those of the training text."""

    problem, logged = "SuperbPR", ("per",)

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.tokenizer import PHONEME_VOCAB, PhonemeTokenizer
        from s3prl.dataio.encoder.vocabulary import generate_vocab

        self.targets = [" ".join(phones.split()) for phones in self.targets]
        used = generate_vocab("phoneme", text_list=[self.targets[r] for r in self.split["train"]])
        self.tokenizer = PhonemeTokenizer(list(PHONEME_VOCAB) if set(used) <= set(PHONEME_VOCAB) else used)
        self.tokens = [self.tokenizer.encode(phones) for phones in self.targets]

    @classmethod
    def labels(cls, task, table):
        return [{("phone", repr(phone)) for phone in phones.split()} for phones in table[task.columns[0]]]


TASK = Task(
    name="pr",
    title="Phone recognition",
    version=2,
    corpus="LibriSpeech, phones of s3prl's lexica",
    splits="train-clean-100, dev-clean, test-clean",
    metrics=(Metric("pr_per", "PR PER", "%", "min"),),
    features="frames",
    target="phones",
    probe=PhoneRecognition,
    schedules=protocols(
        superb=Schedule(steps=100_000, batch=16, accumulate=2, lr=1e-2, eval_every=1_000, head={"hidden_size": 256}),
        mini=Schedule(
            steps=400,
            batch=16,
            accumulate=1,
            lr=1e-2,
            eval_every=100,
            head={"hidden_size": 128},
            scheduler="linear",
            warmup=20,
        ),
        warmup=1_400,
    ),
    differences=("where the training text has other phones than the published 71, its own are the symbols",),
    differences_once=("features are kept in fp16",),
)
