"""Speaker diarization: SuperbSD on Libri2Mix, an LSTM that says for each frame and speaker whether they talk.

Shapes: B chunks, T frames, D channels, S speakers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn

from star_upstream import metrics
from star_upstream.audio import RATE
from star_upstream.data import corpora
from star_upstream.errors import StarError

from ..heads import batches
from ..heads.probe import Metric, Probe, Schedule, Task, protocols

CHUNK = 2000
"""Frames; longer recordings are cut, and what remains is a chunk too."""
THRESHOLDS, MEDIANS = (0.3, 0.4, 0.5, 0.6, 0.7), (1, 11)
"""Of the probabilities, and frames of the filter over the decisions; the best pair on test is reported, as
published."""
MOST_SPEAKERS = 4
"""In a recording: the loss tries all orders of them."""


class SpeakerDiarization(Probe):
    """A row is a chunk of a recording; a prediction is its T x S logits."""

    resampled = "recordings"
    selection = ("sd_frame_accuracy", "max")

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        super().__init__(task, table, schedule, seed)
        self.speakers = max(len({name for _, _, name in segments}) for segments in table["segments"])
        if self.speakers > MOST_SPEAKERS:
            most = next(
                r for r, s in zip(table["recording"], table["segments"]) if len({n for *_, n in s}) == self.speakers
            )
            raise StarError(
                f"{task.name}: {self.speakers} speakers in recording {most!r}; at most {MOST_SPEAKERS}: remove it"
            )

    @classmethod
    def prepare(cls, task, table, root, stride, limit):
        """A row a chunk, with its ``recording``, ``first_frame``, ``frames`` and ``stride``, and the recording's
        ``segments``."""
        if limit is not None:
            table = table[table.groupby("split").cumcount() < limit]
        segments = defaultdict(list)
        for row in corpora.segments(root).itertuples(index=False):
            segments[row.id].append((row.start, row.end, row.speaker))
        rows = []
        for row in table.to_dict("records"):
            frames = row["samples"] // stride
            if not frames:
                raise StarError(
                    f"{task.name}: recording {row['id']!r} is shorter than one frame of {stride} samples; remove it"
                )
            for first in range(0, frames, CHUNK):
                part = {
                    "first_frame": first,
                    "frames": min(CHUNK, frames - first),
                    "stride": stride,
                    "recording": row["id"],
                }
                place = {"start": row["start"] + first * stride, "samples": part["frames"] * stride}
                rows.append(
                    {**row, "id": f"{row['id']}#{first}", **place, **part, "segments": tuple(segments[row["id"]])}
                )
        return pd.DataFrame(rows)

    def head(self, width: int, stride: int) -> nn.Module:
        from s3prl.problem import SuperbSD

        problem = SuperbSD()
        return problem.build_task({}, problem.build_downstream(self.schedule.head, width, self.speakers, stride))

    def epoch(self, number):
        return batches.shuffled(self.split["train"], self.schedule.batch, self.seed, number)

    def labels_of(self, row: int) -> np.ndarray:
        """T x S, 1 where a speaker talks; speakers by name."""
        chunk = self.table.iloc[row]
        labels_TS = np.zeros((chunk["frames"], self.speakers), dtype=np.float32)
        names = sorted({name for _, _, name in chunk["segments"]})
        for start, end, name in chunk["segments"]:
            first, last = (int(np.rint(t * RATE / chunk["stride"])) - chunk["first_frame"] for t in (start, end))
            labels_TS[max(0, first) : max(0, last), names.index(name)] = 1.0
        return labels_TS

    def loss(self, head, x_BTD, lengths_B, rows):
        """s3prl's permutation-invariant binary cross entropy over the labelled frames."""
        labels = [torch.from_numpy(self.labels_of(row)) for row in rows]
        frames_B = torch.tensor([len(label) for label in labels])
        labels_BTS = nn.utils.rnn.pad_sequence(labels, batch_first=True).to(x_BTD.device)
        x_BTD, lengths_B = filled(x_BTD, lengths_B, frames_B)
        logits_BTS, labels_BTS = head._match_length(head.predict(x_BTD, lengths_B)[0], labels_BTS)
        return head.objective(logits_BTS, labels_BTS, frames_B)[0]

    def predict(self, head, x_BTD, lengths_B, rows):
        x_BTD, lengths_B = filled(x_BTD, lengths_B, torch.tensor(self.table["frames"].iloc[list(rows)].to_numpy()))
        logits_BTS = head.predict(x_BTD, lengths_B)[0].cpu().numpy()
        return [logits_TS[: self.table["frames"].iloc[row]] for logits_TS, row in zip(logits_BTS, rows)]

    def dev_value(self, predictions, rows):
        """The mean over chunks of the percent of right decisions over frames and speakers, in each chunk's order of
        least loss, and 0 for a chunk where nobody talks."""
        rights = []
        for logits_TS, row in zip(predictions, rows):
            labels_TS = self.labels_of(row)
            orders = [labels_TS[:, order] for order in itertools.permutations(range(self.speakers))]
            # Cross entropy of logit x and label y is log(1 + exp(x)) - x y, of which only the second term depends on
            # the order.
            best_TS = max(orders, key=lambda label_TS: float((logits_TS * label_TS).sum()))
            rights.append(100.0 * float(((logits_TS > 0) == (best_TS > 0)).mean()) if best_TS.any() else 0.0)
        return float(np.mean(rights))

    def value(self, predictions, rows):
        top, bottom = self._best(predictions, rows)[1].sum(0)
        return 100.0 * float(top / bottom)

    def counts(self, predictions, rows):
        return self._best(predictions, rows)[1]

    def items(self, rows):
        return self.table["recording"].iloc[rows].nunique()

    def details(self, predictions, rows):
        threshold, median = self._best(predictions, rows)[0]
        return {"threshold": threshold, "median_filter": median, "speakers": self.speakers, "chunks": len(rows)}

    def _best(self, predictions, rows) -> tuple[tuple[float, int], np.ndarray]:
        """The threshold and the median filter of least error, and each recording's seconds in error and to be
        scored."""
        recordings = defaultdict(list)
        for logits_TS, row in zip(predictions, rows):
            recordings[self.table["recording"].iloc[row]].append((self.table["first_frame"].iloc[row], row, logits_TS))
        whole = []
        for chunks in recordings.values():
            chunks.sort(key=lambda chunk: chunk[0])
            logits_TS = np.concatenate([logits for _, _, logits in chunks])
            first = self.table.iloc[chunks[0][1]]
            whole.append(
                (first["segments"], 1.0 / (1.0 + np.exp(-logits_TS.astype(np.float64))), first["stride"] / RATE)
            )
        found = {}
        for threshold, median in itertools.product(THRESHOLDS, MEDIANS):
            found[threshold, median] = np.array(
                [
                    metrics.diarization_errors(reference, talking(share_TS > threshold, median, seconds))
                    for reference, share_TS, seconds in whole
                ]
            )
        best = min(found, key=lambda setting: found[setting][:, 0].sum())
        return best, found[best]


def filled(x_BTD: Tensor, lengths_B: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """A frame for each label, the last one repeated where there are fewer, as the published runs do it before the
    LSTM."""
    longest = max(x_BTD.shape[1], int(frames_B.max()))
    frame_BT = torch.arange(longest, device=x_BTD.device)[None].expand(len(x_BTD), -1)
    last_B1 = (lengths_B.to(x_BTD.device) - 1)[:, None]
    missing_BT = (frame_BT > last_B1) & (frame_BT < frames_B.to(x_BTD.device)[:, None])
    source_BT = torch.where(missing_BT, last_B1, frame_BT.clamp(max=x_BTD.shape[1] - 1))
    return x_BTD.gather(1, source_BT[..., None].expand(-1, -1, x_BTD.shape[2])), torch.maximum(
        lengths_B, frames_B.to(lengths_B.device)
    )


def talking(decisions_TS: np.ndarray, median: int, seconds: float) -> list[metrics.Segment]:
    """The stretches where each speaker talks after the median filter (zeros beyond the ends), for frames of
    ``seconds``."""
    smooth_TS = median_filter(decisions_TS.astype(np.int8), (median, 1), mode="constant")
    segments = []
    for speaker, frames_T in enumerate(smooth_TS.T):
        changes = np.flatnonzero(np.diff(frames_T, prepend=0, append=0)) * seconds
        segments += [(float(start), float(end), str(speaker)) for start, end in zip(changes[::2], changes[1::2])]
    return segments


TASK = Task(
    name="sd",
    title="Speaker diarization",
    version=2,
    corpus="Libri2Mix, 2 speakers",
    splits="train-100, dev, test",
    metrics=(Metric("sd_der", "SD DER", "%", "min"),),
    features="frames",
    target="recording",
    probe=SpeakerDiarization,
    schedules=protocols(
        superb=Schedule(
            steps=30_000,
            batch=8,
            accumulate=4,
            lr=1e-4,
            eval_every=500,
            head={"hidden_size": 512, "rnn_layers": 1},
        ),
        mini=Schedule(
            steps=150,
            batch=8,
            accumulate=1,
            lr=5e-3,
            eval_every=25,
            scheduler="linear",
            warmup=15,
            head={"hidden_size": 64, "rnn_layers": 1},
        ),
        warmup=None,
    ),
    differences=(
        "no warm-up was published for this task: schedule superb-sched is superb",
        "the threshold and the median filter are the best on test, as in the published runs",
        "error rate by an own implementation (no collar, overlaps scored) in the place of dscore",
        "a segment that covers a whole chunk is labelled; s3prl labels only those that begin or end in the chunk "
        "(the utterances of"
        " Libri2Mix are shorter than the 40 s of a chunk of 20 ms frames)",
        "what is said of a recording ends with it; s3prl lets the last of several chunks run on over its padding "
        "(at 20 ms a frame:"
        " recordings over 40 s, of which Libri2Mix has none)",
    ),
    differences_once=("features are kept in fp16",),
)
