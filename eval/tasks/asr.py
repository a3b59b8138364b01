"""Speech recognition: SuperbASR on LibriSpeech, characters, CTC, greedy decoding without a language model."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from eval.ctc import NO_SPECAUG, SPECAUG, WordErrors, characters, lstm_head
from eval.probe import Choice, Schedule, Task, protocols
from eval.rnn import unpack
from star_upstream.errors import StarError

UNUSED = "<s>"
"""The published runs' list of symbols has one more than s3prl's problem: the start of a sentence, which no text has."""


class SpeechRecognition(WordErrors):
    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        from s3prl.dataio.encoder.tokenizer import CharacterTokenizer

        for row, text in enumerate(self.targets):
            if not text.strip():
                raise StarError(f"{task.name}: utterance {table['id'].iloc[row]!r} has no text")
        published = schedule.generation == "downstream"
        known = characters([self.targets[r] for r in self.split["train"]], fixed=published)
        self.tokenizer = CharacterTokenizer([*known, UNUSED] if published else known)
        self.tokens = [self.tokenizer.encode(text) for text in self.targets]
        if published:
            last = [self.tokenizer.vocab_to_idx(" "), self.tokenizer.eos_idx]
            self.tokens = [[*tokens[:-1], *last] for tokens in self.tokens]

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

    def predict(self, head, x_BTD, lengths_B, rows):
        """The published runs count words, whatever the number of spaces between and around them."""
        texts = super().predict(head, x_BTD, lengths_B, rows)
        return [" ".join(text.split()) for text in texts] if self.schedule.generation == "downstream" else texts

    def epoch(self, number):
        """Buckets of neighbours by audio length in random order. The published runs made buckets of twice the batch and halved those
        that are whole; the rest of train is one bucket, and none if it is a single utterance."""
        from s3prl.dataio.sampler import SortedBucketingSampler

        rows = self.split["train"]
        samples = self.table["samples"].iloc[rows].tolist()
        sampler = SortedBucketingSampler(samples, self.schedule.batch, max_length=max(samples), shuffle=True, seed=self.seed)
        sampler.set_epoch(number)
        batches = [[rows[i] for i in batch] for batch in sampler]
        count = len(rows) % (2 * self.schedule.batch)
        if self.schedule.generation == "problem" or not count:
            return batches
        rest = [rows[i] for i in sampler.sorted_ids[-count:]]
        kept = [batch for batch in batches if batch[0] not in rest]
        if count > 1 or not kept:
            generator = torch.Generator().manual_seed(self.seed + number)
            kept.insert(int(torch.randint(len(kept) + 1, (1,), generator=generator)), rest)
        return kept


TASK = Task(
    name="asr",
    title="Speech recognition",
    version=3,
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
    choices=(
        Choice(
            "32 fixed symbols: 28 characters, one for all others (where those are more than a hundredth, the corpus's own), and three; a"
            " text ends in a space",
            "the characters of the training text and three more; no space at the end",
        ),
        Choice(
            "what is left of train after buckets of twice the batch, which are halved, is one batch",
            "buckets have the size of the batch",
        ),
    ),
    differences_once=("features are kept in fp16",),
)  # fmt: skip
