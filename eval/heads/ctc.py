"""What the tasks that spell have in common: CTC over tokens, greedy decoding, no language model.

Shapes: B utterances, T frames, D channels, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from . import batches
from .probe import Probe
from .rnn import unpack


class CTC(Probe):
    """s3prl's Speech2TextCTCTask. A subclass sets ``tokenizer`` and, for every row, ``tokens`` (ends with eos)."""

    problem: str
    """Name of the s3prl problem."""
    logged: tuple[str, ...]
    """What its task computes with the loss."""
    tokenizer: Any
    tokens: list[list[int]]

    def head(self, width: int, stride: int) -> nn.Module:
        import s3prl.problem

        problem = getattr(s3prl.problem, self.problem)()
        model = problem.build_downstream(self.schedule.head, width, len(self.tokenizer), stride)
        if "model_conf" in self.schedule.head:  # an LSTM
            unpack(model.model)
        return problem.build_task({"log_metrics": list(self.logged)}, model, self.tokenizer)

    def epoch(self, number: int) -> list[list[int]]:
        rows = self.split["train"]
        tokens, samples = [len(self.tokens[row]) for row in rows], self.table["samples"].iloc[rows].tolist()
        return batches.slices(rows, tokens, samples, self.schedule.batch, self.seed, number)

    def loss(self, head, x_BTD, lengths_B, rows):
        tokens = [torch.tensor(self.tokens[r]) for r in rows]
        class_ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_idx).to(
            x_BTD.device
        )
        labels = np.array([self.targets[r] for r in rows])
        return head("train", x_BTD, lengths_B, labels, class_ids, np.array(rows))[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        """Greedy decoding within each length: what s3prl's task does at batch size one."""
        logits_BTV, lengths_B = head.model(x_BTD, lengths_B)
        special = (self.tokenizer.pad_idx, self.tokenizer.eos_idx)
        best = [
            logits_TV[:length].argmax(-1).unique_consecutive().tolist()
            for logits_TV, length in zip(logits_BTV.cpu(), lengths_B)
        ]
        return [self.tokenizer.decode([token for token in tokens if token not in special]) for tokens in best]


class WordErrorRate(CTC):
    """Scored by edits over what stands between spaces: words, or phones."""

    def value(self, predictions, rows):
        from s3prl.metric import wer

        return 100.0 * wer(list(predictions), [self.targets[r] for r in rows])

    def counts(self, predictions, rows):
        import editdistance

        words = [(p.split(" "), self.targets[r].split(" ")) for p, r in zip(predictions, rows)]
        return np.array([[editdistance.eval(p, t), len(t)] for p, t in words], dtype=float)


def lstm_head(projection: int, hidden: Sequence[int], dropout: float, specaug: dict) -> dict:
    """Arguments of ``SuperbASR.build_downstream`` and ``SuperbSF.build_downstream``: SpecAugment, linear, bidirectional
    LSTMs."""
    layers = len(hidden)
    return {
        "model_conf": {
            "module": "LSTM",
            "bidirectional": True,
            "proj_size": projection,
            "hidden_size": list(hidden),
            "dropout": [dropout] * layers,
            "layer_norm": [False] * layers,
            "proj": [False] * layers,
            "sample_rate": [1] * layers,
            "sample_style": "concat",
        },
        "specaug_conf": specaug,
    }


SPECAUG = {"freq_mask_width_range": (0, 50), "num_freq_mask": 4, "time_mask_width_range": (0, 40), "num_time_mask": 2}
"""The published tasks' SpecAugment."""
SMALL_SPECAUG = {
    "freq_mask_width_range": (0, 10),
    "num_freq_mask": 2,
    "time_mask_width_range": (0, 10),
    "num_time_mask": 1,
}
NO_SPECAUG = {"apply_time_warp": False, "apply_freq_mask": False, "time_mask_width_range": (0, 1), "num_time_mask": 1}
"""At most one frame: s3prl's module wants one kind of mask."""

CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
"""The published tasks' characters: s3prl's downstream/ctc/vocab/character.txt and, with | for the space,
downstream/asr/char.dict."""
FEW = 0.01
"""Share of other characters up to which a text is spelled with :data:`CHARACTERS`: they are one symbol then, as in the
published runs."""

OWN_CHARACTERS = (
    "where more than a hundredth of the training text are other characters than the published 28, its "
    "own are the symbols"
)
"""For the records of the tasks that spell."""
WIDER_MASKS = "widths of SpecAugment's masks are drawn up to the published limits; the published runs drew below them"
"""s3prl/nn/specaug.py, which runs here, against s3prl/downstream/specaug.py (commit ec8064b5)."""


def characters(texts: Sequence[str]) -> list[str]:
    """:data:`CHARACTERS` where ``texts`` have but :data:`FEW` others, else those of ``texts``."""
    from s3prl.dataio.encoder.vocabulary import generate_vocab

    known = set(CHARACTERS)
    others = sum(character not in known for text in texts for character in text)
    if others <= FEW * sum(map(len, texts)):
        return list(CHARACTERS)
    return generate_vocab("character", text_list=list(texts))
