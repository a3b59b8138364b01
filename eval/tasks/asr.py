"""Speech recognition: SuperbASR on LibriSpeech, characters, CTC, greedy decoding without a language model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from star_upstream.errors import StarError

from ..probe import Probe, Schedule, Task
from ..rnn import unpack


class SpeechRecognition(Probe):
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

    def epoch(self, number):
        from s3prl.dataio.sampler import SortedBucketingSampler

        rows = self.split["train"]
        samples = self.table["samples"].iloc[rows].tolist()
        sampler = SortedBucketingSampler(samples, self.schedule.batch, max_length=max(samples), shuffle=True, seed=self.seed)
        sampler.set_epoch(number)
        return [[rows[i] for i in batch] for batch in sampler]

    def loss(self, head, x_BTD, lengths_B, rows):
        tokens = [torch.tensor(self.tokens[r]) for r in rows]
        class_ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_idx).to(x_BTD.device)
        labels = np.array([self.targets[r] for r in rows])
        return head("train", x_BTD, lengths_B, labels, class_ids, np.array(rows))[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        """Greedy decoding within each length: what s3prl's task does at batch size one."""
        logits_BTV, lengths_B = head.model(x_BTD, lengths_B)
        special = (self.tokenizer.pad_idx, self.tokenizer.eos_idx)
        best = [
            logits_TV[:length].argmax(-1).unique_consecutive().tolist() for logits_TV, length in zip(logits_BTV.cpu(), lengths_B)
        ]
        return [self.tokenizer.decode([token for token in tokens if token not in special]) for tokens in best]

    def value(self, predictions, rows):
        from s3prl.metric import wer

        return 100.0 * wer(list(predictions), [self.targets[r] for r in rows])

    def counts(self, predictions, rows):
        import editdistance

        words = [(p.split(" "), self.targets[r].split(" ")) for p, r in zip(predictions, rows)]
        return np.array([[editdistance.eval(p, t), len(t)] for p, t in words], dtype=float)


def _head(projection: int, hidden: list[int], dropout: float, specaug: dict) -> dict:
    per_layer = len(hidden)
    return {
        "model_conf": {
            "module": "LSTM", "bidirectional": True, "proj_size": projection, "hidden_size": hidden,
            "dropout": [dropout] * per_layer, "layer_norm": [False] * per_layer, "proj": [False] * per_layer,
            "sample_rate": [1] * per_layer, "sample_style": "concat",
        },
        "specaug_conf": specaug,
    }  # fmt: skip


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
    schedules={
        "superb": Schedule(
            steps=200_000, batch=16, accumulate=1, lr=1e-4, eval_every=2_000,
            head=_head(1024, [1024, 1024], 0.2, {
                "freq_mask_width_range": (0, 50), "num_freq_mask": 4, "time_mask_width_range": (0, 40), "num_time_mask": 2,
            }),
        ),
        "mini": Schedule(
            steps=400, batch=16, accumulate=1, lr=3e-3, eval_every=50, scheduler="linear", warmup=40,
            head=_head(256, [256], 0.1, {
                "freq_mask_width_range": (0, 10), "num_freq_mask": 2, "time_mask_width_range": (0, 10), "num_time_mask": 1,
            }),
        ),
    },
    differences=(
        "the vocabulary is made of the training text (s3prl's problem), where the published runs used a fixed list of 32 symbols",
        "features are kept in fp16",
    ),
)  # fmt: skip
