"""Test scores of a fine-tuned model: accuracy of classes, equal error rate and detection cost of trials, with 95 %
intervals.

Trials are scored by the cosine of the two vectors (ours: the paper does not say how). An interval is a bootstrap over
items (trials: within each kind), at fixed weights of the model: it says nothing about another training. Shapes: B
utterances, E channels, K trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from .. import metrics
from ..data.task_batches import TaskBatch, Utterances, collate, padding, whole
from ..errors import StarError
from ..files import replacing
from ..heads.model import MultitaskModel
from .precision import agree, autocast

PRIOR = 0.01


def vectors(
    model: MultitaskModel, utterances: Utterances, number: int, rows: Sequence[int], precision: Any
) -> torch.Tensor:
    """The head's vectors (len(rows) x E, fp32, on the CPU) of whole utterances."""
    task, device = utterances.tasks[number], next(model.parameters()).device
    batches, place = whole(utterances.tasks, number, rows), {row: i for i, row in enumerate(rows)}
    found: dict[int, torch.Tensor] = {}
    model.eval()
    for keys, batch in zip(batches, DataLoader(utterances, batch_sampler=batches, collate_fn=collate)):
        if not found:  # the first batch
            agree({"encoder": model.encoder}, partial(embed, model, batch, device), precision, device, task.name)
        with torch.no_grad(), autocast(precision, device):
            x_BE = embed(model, batch, device)
        found.update((place[row], x_E) for (_, row, _, _), x_E in zip(keys, x_BE.float().cpu()))
    if not found:
        raise StarError(f"tasks.{task.name}: nothing to evaluate on")
    return torch.stack([found[i] for i in range(len(rows))])


def embed(model: MultitaskModel, batch: TaskBatch, device: torch.device) -> torch.Tensor:
    """B x E: the vectors of a batch of waveforms or of kept states."""
    if batch.states_BTSD is None:
        return model(batch.task, batch.waveforms_BN.to(device), padding(batch, device))
    states = batch.states_BTSD.to(device).float().unbind(2)
    return model.heads[batch.task](states, batch.lengths_B.to(device))


def evaluate(
    model: MultitaskModel, utterances: Utterances, precision, limit: int | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Each task's scores by name, and the raw outcomes that tables over several runs need."""
    scores, outcomes = {}, {}
    for number, task in enumerate(utterances.tasks):
        one = _trials if task.trials is not None else _classes
        found, raw = one(model, utterances, number, precision, limit)
        scores[task.name] = {**found, "data": task.config.data, "source": task.source}
        outcomes.update({f"{task.name}/{key}": value for key, value in raw.items()})
    return scores, outcomes


def _classes(model, utterances, number, precision, limit):
    task = utterances.tasks[number]
    rows = task.rows("test")[:limit]
    head = model.heads[task.name]
    x_BE = vectors(model, utterances, number, rows, precision)
    with torch.no_grad():
        guesses_B = head.loss.logits(x_BE.to(next(model.parameters()).device)).argmax(1).cpu().numpy()
    targets_B = task.table["target"].to_numpy()[rows]
    hits_B = (guesses_B == targets_B).astype(float)
    scores = {"metric": "accuracy", "unit": "%", "direction": "max", **accuracy([hits_B])}
    more = {"items": len(rows), "classes": len(task.labels)}
    return {**scores, **more}, {"hits": hits_B, "targets": targets_B, "guesses": guesses_B}


def _trials(model, utterances, number, precision, limit):
    task = utterances.tasks[number]
    trials = task.trials if limit is None else task.trials[task.trials.groupby("target").cumcount() < limit // 2]
    rows = np.unique(trials[["first", "second"]].to_numpy())
    x_BE = F.normalize(vectors(model, utterances, number, rows.tolist(), precision), dim=1).numpy()
    first, second = (np.searchsorted(rows, trials[name].to_numpy()) for name in ("first", "second"))
    targets_K, scores_K = trials["target"].to_numpy(), np.einsum("ke,ke->k", x_BE[first], x_BE[second])
    scores = {"metric": "equal error rate", "unit": "%", "direction": "min", **errors(targets_K, [scores_K])}
    more = {"items": len(trials), "utterances": len(rows), "training_speakers": len(task.labels)}
    return {**scores, **more}, {"targets": targets_K, "scores": scores_K}


def accuracy(runs: Sequence[np.ndarray]) -> dict[str, Any]:
    """``value`` (%) and ``interval_95`` from each run's hits on the same items: of the mean over runs."""
    hits = np.mean(runs, axis=0)
    return {
        "value": 100.0 * float(hits.mean()),
        "interval_95": list(metrics.bootstrap(np.stack([hits, np.ones_like(hits)], 1))),
    }


def errors(targets_K: np.ndarray, runs: Sequence[np.ndarray]) -> dict[str, Any]:
    """``value`` (equal error rate, %) and ``min_dcf`` (costs 1 and 1, prior 0.01) with intervals, from each run's
    scores of the same trials: of the mean over runs."""
    trials = [metrics.Trials(targets_K, scores_K) for scores_K in runs]

    def rate(weights: np.ndarray | None = None) -> float:
        return 100.0 * float(np.mean([one.eer(weights) for one in trials]))

    def cost(weights: np.ndarray | None = None) -> float:
        return float(np.mean([one.min_dcf(weights) for one in trials]))

    return {
        "value": rate(),
        "interval_95": list(metrics.bootstrap(lambda generator: rate(trials[0].resample(generator)))),
        "min_dcf": cost(),
        "min_dcf_interval_95": list(metrics.bootstrap(lambda generator: cost(trials[0].resample(generator)))),
        "min_dcf_prior": PRIOR,
    }


def write_outcomes(path: Path, outcomes: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as part, open(part, "wb") as file:
        arrays: dict[str, Any] = dict(outcomes)
        np.savez_compressed(file, **arrays)
