"""Speech recognition: SuperbASR on LibriSpeech, characters, CTC, greedy decoding without a language model."""

from __future__ import annotations

import pandas as pd
from torch import nn

from star_upstream.errors import StarError

from ..ctc import NO_SPECAUG, SPECAUG, WordErrors, lstm_head
from ..probe import Schedule, Task, protocols
from ..rnn import unpack


class SpeechRecognition(WordErrors):
    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.tokenizer import CharacterTokenizer
        from s3prl.dataio.encoder.vocabulary import generate_vocab

        for row, text in enumerate(self.targets):
            if not text.strip():
                raise StarError(f"{task.name}: utterance {table['id'].iloc[row]!r} has no text")
        self.tokenizer = CharacterTokenizer(generate_vocab("character", text_list=[self.targets[r] for r in self.split["train"]]))
        self.tokens = [self.tokenizer.encode(text) for text in self.targets]

    def head(self, width: int, stride: int) -> nn.Module:
        from s3prl.problem import SuperbASR

        problem = SuperbASR()
        model = problem.build_downstream(self.schedule.head, width, len(self.tokenizer), stride)
        unpack(model.model)
        return problem.build_task({"log_metrics": ["wer"]}, model, self.tokenizer)

    def details(self, predictions, rows):
        """Of a weak encoder nearly every word has an error; its characters still tell it from others."""
        from s3prl.metric import cer

        return {"character_error_rate": 100.0 * cer(list(predictions), [self.targets[r] for r in rows])}

    def epoch(self, number):
        from s3prl.dataio.sampler import SortedBucketingSampler

        rows = self.split["train"]
        samples = self.table["samples"].iloc[rows].tolist()
        sampler = SortedBucketingSampler(samples, self.schedule.batch, max_length=max(samples), shuffle=True, seed=self.seed)
        sampler.set_epoch(number)
        return [[rows[i] for i in batch] for batch in sampler]


TASK = Task(
    name="asr",
    title="Speech recognition",
    version=1,
    corpus="LibriSpeech",
    splits="train-clean-100, dev-clean, test-clean",
    metric="asr_wer",
    unit="%",
    direction="min",
    features="frames",
    target="text",
    probe=SpeechRecognition,
    schedules=protocols(
        superb=Schedule(
            steps=200_000, batch=16, accumulate=1, lr=1e-4, eval_every=2_000,
            head=lstm_head(1024, [1024, 1024], 0.2, SPECAUG),
        ),
        mini=Schedule(
            # Many small updates: until a head spells at all, they count, not the utterances in each. No SpecAugment: it underfits.
            steps=3_000, batch=2, accumulate=1, lr=2e-3, eval_every=500, scheduler="linear", warmup=100,
            head=lstm_head(128, [192], 0.0, NO_SPECAUG),
        ),
        warmup=1_400,
    ),
    differences=(
        "the vocabulary is made of the training text (s3prl's problem), where the published runs used a fixed list of 32 symbols",
    ),
    differences_once=("features are kept in fp16",),
)  # fmt: skip
