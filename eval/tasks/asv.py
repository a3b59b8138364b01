"""Speaker verification: SuperbASV on VoxCeleb1, an x-vector trained with AM-softmax, cosine scores.

Shapes: B utterances, T frames, D channels, K trials.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from star_upstream import metrics
from star_upstream.audio import RATE
from star_upstream.data import corpora
from star_upstream.errors import StarError

from ..features.upstreams import OFF
from ..heads import batches
from ..heads.probe import Metric, Probe, Schedule, Task, protocols

LOSS = {"margin": 0.4, "scale": 30}
LEAST_FRAMES = 16
"""The x-vector's layers look 14 frames beyond each, and a standard deviation needs two."""


class SpeakerVerification(Probe):
    """There is no dev split: :meth:`dev_rows` are those of the trials. A prediction is an utterance's embedding."""

    resampled = "trials"

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        self.task, self.table, self.schedule, self.seed = task, table, schedule, seed
        rows = {name: np.flatnonzero(table["split"] == name).tolist() for name in ("train", "test")}
        self.split = {"train": rows["train"], "dev": rows["test"], "test": rows["test"]}
        row_of = {uid: row for row, uid in enumerate(table["id"])}
        self.trials = [
            (target, row, row_of[other]) for row, pairs in enumerate(table["trials"]) for target, other in pairs
        ]
        self.same = np.array([target for target, _, _ in self.trials])
        """Of each trial, 1 for one speaker and 0 for two."""
        if not rows["train"]:
            raise StarError(f"{task.name}: the train split is empty")
        for target, meaning in ((1, "of one speaker"), (0, "of two speakers")):
            if not (self.same == target).any():
                raise StarError(f"{task.name}: no trial {meaning}; an error rate needs both kinds")
        from s3prl.dataio.encoder.category import CategoryEncoder

        self.encoder = CategoryEncoder([str(table["speaker"].iloc[row]) for row in rows["train"]])
        self._scored: tuple | None = None

    @classmethod
    def prepare(cls, task, table, root, stride, limit):
        """``trials``: of an utterance that is enrolled, (target, id of the other) pairs. With ``limit``: so many
        training utterances, spread over the speakers, and so many trials of each kind."""
        trials, train = corpora.trials(root), table.index[table["split"] == "train"]
        if limit is not None:
            trials = trials[trials.groupby("target").cumcount() < limit]
            turn = table.groupby(["split", "speaker"], sort=False).cumcount().sort_values(kind="stable").index
            train = table.loc[turn].query("split == 'train'").index[:limit]
        # what no trial names is not read: it may be too short, or silent
        tested = (table["split"] == "test") & table["id"].isin({*trials["enroll"], *trials["test"]})
        table = table[table.index.isin(train) | tested].reset_index(drop=True)
        pairs: dict[str, list] = {}
        for row in trials.itertuples(index=False):
            pairs.setdefault(row.enroll, []).append((int(row.target), row.test))
        return table.assign(trials=[tuple(pairs.get(uid, ())) for uid in table["id"]])

    def ready(self, features):
        """Leaves out training utterances that are too short once the silence is cut, and refuses such trials."""
        least = round(self.schedule.min_seconds * RATE)
        self.split["train"] = [
            row
            for row in self.split["train"]
            if features.samples(row) > least and self._frames(features, row) >= LEAST_FRAMES
        ]
        if not self.split["train"]:
            least_s = f"{self.schedule.min_seconds:g} s"
            raise StarError(f"{self.task.name}: no training utterance is longer than {least_s} once silence is cut")
        for row in self.split["test"]:
            if (frames := self._frames(features, row)) < LEAST_FRAMES:
                uid = self.table["id"].iloc[row]
                raise StarError(
                    f"{self.task.name}: utterance {uid!r} has {frames} frames once silence is cut, and the x-vector "
                    "needs "
                    f"{LEAST_FRAMES}; remove its trials"
                )

    @staticmethod
    def _frames(features: Any, row: int) -> int:
        """The utterance's frames, or for one that surely has enough of them a number that is."""
        surely = features.samples(row) // features.upstream.stride - OFF
        return surely if surely >= LEAST_FRAMES else features.length(row)

    def head(self, width: int, stride: int) -> nn.Module:
        from s3prl.nn.speaker_model import TDNN
        from s3prl.problem import SuperbASV
        from s3prl.task.speaker_verification_task import SpeakerVerification as Verification

        sizes = dict(self.schedule.head)
        channels = sizes.pop("tdnn_size", None)
        model = SuperbASV().build_downstream(sizes, width, len(self.encoder), stride)
        if channels is not None:
            shape = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
            ends = [model.projector.out_features, *[channels] * 4, model.tdnns.output_size]
            model.tdnns.module = nn.Sequential(
                *(
                    TDNN(ends[i], ends[i + 1], context, dilation, batch_norm=False)
                    for i, (context, dilation) in enumerate(shape)
                )
            )
        return Verification(model, self.encoder, None, "amsoftmax", LOSS)

    def epoch(self, number):
        return batches.shuffled(self.split["train"], self.schedule.batch, self.seed, number)

    def loss(self, head, x_BTD, lengths_B, rows):
        """The published runs pool a frame more of a padded utterance, whose context ends with the first frame of the
        padding."""
        speakers = [self.encoder.encode(str(self.table["speaker"].iloc[row])) for row in rows]
        inside_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < lengths_B[:, None]
        x_BTD, lengths_B = x_BTD * inside_BT[..., None], (lengths_B + 1).clamp(max=x_BTD.shape[1])
        return head.loss(head.predict(x_BTD, lengths_B), torch.tensor(speakers, device=x_BTD.device))[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        return list(nn.functional.normalize(head.predict(x_BTD, lengths_B), dim=1).cpu().numpy())

    def value(self, predictions, rows):
        return 100.0 * self._trials(predictions, rows).eer()

    def counts(self, predictions, rows):
        trials = self._trials(predictions, rows)
        return lambda generator: 100.0 * trials.eer(trials.resample(generator))

    def items(self, rows):
        return len(self.trials)

    def details(self, predictions, rows):
        return {
            "minimum_detection_cost_at_prior_0.01": self._trials(predictions, rows).min_dcf(),
            "utterances_tested": len(rows),
            "training_utterances": len(self.split["train"]),
            "training_speakers": len(self.encoder),
        }

    def _trials(self, predictions, rows) -> metrics.Trials:
        if self._scored is None or self._scored[0] is not predictions:
            place = {row: i for i, row in enumerate(rows)}
            embeddings = np.stack(predictions)
            first, second = (np.array([place[trial[side]] for trial in self.trials]) for side in (1, 2))
            scores_K = np.einsum("kd,kd->k", embeddings[first], embeddings[second])
            self._scored = (predictions, metrics.Trials(self.same, scores_K))
        return self._scored[1]


TASK = Task(
    name="asv",
    title="Speaker verification",
    version=3,
    corpus="VoxCeleb1, 1211 training speakers",
    splits="dev speakers for training, voxceleb1_test_v2.txt trials",
    metrics=(Metric("asv_eer", "ASV EER", "%", "min"),),
    features="frames",
    target="speaker",
    probe=SpeakerVerification,
    crop_seconds=8.0,
    effects=(
        ("channels", "1"),
        ("rate", "16000"),
        ("gain", "-3.0"),
        ("silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"),
    ),
    schedules=protocols(
        superb=Schedule(
            steps=200_000,
            batch=10,
            accumulate=5,
            lr=1e-4,
            eval_every=20_000,
            optimizer="AdamW",
            clip=1e3,
            min_seconds=2.0,
        ),
        mini=Schedule(
            steps=300,
            batch=16,
            accumulate=1,
            lr=1e-3,
            eval_every=300,
            optimizer="AdamW",
            clip=1e3,
            scheduler="linear",
            warmup=15,
            crop_seconds=2.0,
            head={"hidden_size": 128, "tdnn_size": 128, "aggregation_size": 256, "output_size": 128},
        ),
        warmup=6_000,
    ),
    differences=(
        "silence is cut by an own implementation of SoX's effect",
        "there is no dev split: the checkpoint, and of several learning rates the best, is chosen by the error "
        "rate on the "
        "trials, as in the published runs; schedule mini looks once, at the end",
    ),
    differences_once=(
        "a training utterance over 8 s is encoded whole and 8 s of its frames are drawn at random; s3prl draws 8 s "
        "of sound",
        "features are kept in fp16",
    ),
)
