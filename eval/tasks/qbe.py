"""Query by example: warping on the QUESST 2014 queries and documents, nothing trained, after s3prl's legacy recipe.

Shapes: Q queries, N documents, T frames, D channels.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from star_upstream import metrics
from star_upstream.data import corpora
from star_upstream.errors import StarError
from star_upstream.files import write_json
from star_upstream.say import say

from ..heads.dtw import SHORTEST_QUERY, Documents
from ..heads.probe import Metric, Probe, Schedule, Task, protocols
from ..heads.train import Candidate, Fitted, predict

BLOCK = 100
"""Documents that are searched at once."""


class Layer(nn.Module):
    """In the place of a trained head: one of the upstream's layers."""

    def __init__(self, layer: int, layers: int):
        super().__init__()
        self.layer, self.layers, self.task = layer, layers, nn.Identity()

    def mix(self, x_BLTD: Tensor) -> Tensor:
        return x_BLTD[:, self.layer]

    def layer_weights(self) -> list[float]:
        return [float(index == self.layer) for index in range(self.layers)]


class QueryByExample(Probe):
    """What is predicted of a query or a document is its features in the chosen layer; :meth:`value` searches one in the
    other."""

    resampled = "queries"

    def __init__(self, task: Task, table: pd.DataFrame, schedule: Schedule, seed: int):
        self.task, self.table, self.schedule, self.seed = task, table, schedule, seed
        self.row_of = {uid: row for row, uid in enumerate(table["id"])}
        self.split = {"train": [], "dev": self._rows("dev"), "test": self._rows("eval")}
        self._searched: tuple[list, np.ndarray, np.ndarray] | None = None

    @classmethod
    def prepare(cls, task, table, root, stride, limit):
        """``pairs``: of a query, its documents' ids and whether they are relevant; of a document, nothing. With
        ``limit``, so many queries of each set that are in a document, and as many documents that they are in and not
        in, if there are."""
        truth = corpora.truth(root)
        split = dict(zip(table["id"], table["split"]))
        if limit is not None:
            truth = truth.assign(split=truth["query"].map(split))
            found = truth[truth["relevant"] == 1].drop_duplicates("query").groupby("split").head(limit)["query"]
            truth = truth[truth["query"].isin(found)]
            docs = truth.groupby(["split", "relevant"]).head(limit)["doc"]
            truth = truth[truth["doc"].isin(docs)]
        pairs = {q: tuple(zip(part["doc"], part["relevant"])) for q, part in truth.groupby("query", sort=False)}
        used = {*pairs, *truth["doc"]}
        return table.assign(pairs=[pairs.get(uid, ()) for uid in table["id"]])[table["id"].isin(used)].reset_index(
            drop=True
        )

    def _rows(self, split: str) -> list[int]:
        sets, pairs = self.table["split"], self.table["pairs"]
        queries = [row for row in range(len(self.table)) if sets.iloc[row] == split and pairs.iloc[row]]
        if not any(relevant for row in queries for _, relevant in self.table["pairs"].iloc[row]):
            raise StarError(
                f"{self.task.name}: no query of {split} is in any document; term-weighted value needs one that is"
            )
        docs = {doc for row in queries for doc, _ in self.table["pairs"].iloc[row]}
        return queries + sorted(self.row_of[doc] for doc in docs)

    def choose(self, features, layers, progress, identity):
        """The layer with the largest term-weighted value on dev. ``progress`` is a file from which a later call with
        the same ``identity`` goes on after the last layer that was searched."""
        begun, rows, heads = time.perf_counter(), self.split["dev"], [Layer(layer, layers) for layer in range(layers)]
        values, spent = _searched_before(progress, identity)
        for layer, head in enumerate(heads):
            if layer == len(values):
                values.append(self.value(predict(head, self, features, rows), rows))
                seconds = spent + time.perf_counter() - begun
                write_json(progress, {"identity": identity, "dev": values, "spent": seconds})
            say(f"{self.task.name}: layer {layer} of {layers}, dev {self.task.metric} {values[layer]:.4f}")
        grid = [{"layer": layer, "dev": value} for layer, value in enumerate(values)]
        candidates = [Candidate(None, head, None, value) for head, value in zip(heads, values)]
        return Fitted(grid, spent + time.perf_counter() - begun, candidates)

    def predict(self, head, x_BTD, lengths_B, rows):
        return [x_TD[:length].numpy() for x_TD, length in zip(x_BTD.cpu(), lengths_B.tolist())]

    def value(self, predictions, rows):
        relevant_QN, scores_QN = self._search(predictions, rows)
        return metrics.maximum_term_weighted_value(relevant_QN, scores_QN)[0]

    def counts(self, predictions, rows):
        relevant_QN, scores_QN = self._search(predictions, rows)
        found = np.flatnonzero((relevant_QN == 1).any(1))

        def draw(generator: np.random.Generator) -> float:
            times_Q = np.bincount(generator.choice(found, len(found)), minlength=len(relevant_QN))
            return metrics.maximum_term_weighted_value(relevant_QN, scores_QN, times_Q)[0]

        return draw

    def items(self, rows):
        return sum(any(relevant for _, relevant in self.table["pairs"].iloc[row]) for row in rows)

    def details(self, predictions, rows):
        relevant_QN, scores_QN = self._search(predictions, rows)
        threshold = metrics.maximum_term_weighted_value(relevant_QN, scores_QN)[1]
        return {
            "documents": relevant_QN.shape[1],
            "pairs": int((relevant_QN >= 0).sum()),
            "queries_in_no_document": int((~(relevant_QN == 1).any(1)).sum()),
            "threshold": threshold if math.isfinite(threshold) else None,  # nothing is best called found
        }

    def _search(self, predictions: list[np.ndarray], rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Q x N: what is relevant (-1: not to be scored), and the scores, normalised over each query's documents."""
        if self._searched is not None and self._searched[0] is predictions:
            return self._searched[1:]
        mean_D, std_D = _statistics(predictions)
        frames = dict(zip(rows, predictions))
        queries = [row for row in rows if self.table["kind"].iloc[row] == "query"]
        docs = [row for row in rows if self.table["kind"].iloc[row] == "doc"]
        column = {self.table["id"].iloc[row]: n for n, row in enumerate(docs)}
        relevant_QN = np.full((len(queries), len(docs)), -1)
        for q, row in enumerate(queries):
            for doc, relevant in self.table["pairs"].iloc[row]:
                relevant_QN[q, column[doc]] = relevant
        scores_QN = np.zeros(relevant_QN.shape)
        for begin in range(0, len(docs), BLOCK):
            block = Documents([(frames[row] - mean_D) / std_D for row in docs[begin : begin + BLOCK]])
            for q, row in enumerate(queries):
                if len(frames[row]) >= SHORTEST_QUERY:
                    scores_QN[q, begin : begin + BLOCK] = -block.costs((frames[row] - mean_D) / std_D)
        for scores_N, relevant_N in zip(scores_QN, relevant_QN):
            scored = scores_N[relevant_N >= 0]
            scores_N -= scored.mean()
            scores_N /= max(scored.std(), 1e-9)
        self._searched = (predictions, relevant_QN, scores_QN)
        return relevant_QN, scores_QN


def _searched_before(progress: Path, identity: str) -> tuple[list[float], float]:
    """The dev values of the layers that a broken run has searched, and its seconds."""
    try:
        kept = json.loads(progress.read_text(encoding="utf-8"))
        return (kept["dev"], kept["spent"]) if kept["identity"] == identity else ([], 0.0)
    except FileNotFoundError:
        return [], 0.0
    except (ValueError, KeyError, TypeError):
        raise StarError(f"{progress}: damaged progress file; remove it to start anew") from None


def _statistics(utterances: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all frames."""
    count = sum(map(len, utterances))
    mean_D = sum(x_TD.sum(0, dtype=np.float64) for x_TD in utterances) / count
    square_D = sum(((x_TD - mean_D) ** 2).sum(0) for x_TD in utterances)
    return mean_D.astype(np.float32), np.maximum(np.sqrt(square_D / max(1, count - 1)), 1e-9).astype(np.float32)


_SCHEDULE = Schedule(steps=0, batch=0, accumulate=0, lr=0.0, eval_every=0)

TASK = Task(
    name="qbe",
    title="Query by example",
    version=2,
    corpus="QUESST 2014, non-native English",
    splits="dev queries, eval queries, all documents",
    metrics=(Metric("qbe_mtwv", "QbE MTWV", "", "max"),),
    features="frames",
    target="kind",
    probe=QueryByExample,
    effects=(("channels", "1"), ("rate", "16000"), ("gain", "-3.0")),
    schedules=protocols(superb=_SCHEDULE, mini=_SCHEDULE, warmup=None),
    differences=(
        "every layer is searched and the best on dev is taken, as the published runs did one run a layer",
        "scored by an own implementation of term-weighted value with QUESST 2014's costs (100 for a miss, 1 for a "
        "false alarm, "
        "prior 0.0008), over the English queries that are in a document; the corpus's own scorer also counts the "
        "queries of all "
        "other languages, which score 0, so that published values are smaller by the English share of the queries",
        "features are kept in fp16",
    ),
)
