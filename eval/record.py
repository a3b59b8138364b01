"""The parts of a task's record that heads and their predictions give: values, intervals, folds and grids."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from star_upstream import metrics

from .heads import train
from .heads.probe import Task

RESAMPLED = 0
"""Seed of the resamples that are kept: the same for all runs, so that runs of other seeds are of the same items too."""


def scores(
    task: Task, probes: list, heads: list, fits: list, features, seed: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record's part on test: the metric, those besides it, and where there are several folds each one's share of
    the mean. And each metric's values over 1000 resamples of the items, the same items for every model and seed."""
    folds, details = [], []
    for probe, head in zip(probes, heads):
        rows = probe.split["test"]
        predictions = train.predict(head, probe, features, rows, device)
        details.append(probe.details(predictions, rows))
        folds.append(
            [(probe.value(predictions, rows), probe.counts(predictions, rows)), *probe.further(predictions, rows)]
        )
    numbers, resamples = [], {}
    for metric, results in zip(task.metrics, zip(*folds), strict=True):
        counts = [counts for _, counts in results]
        resamples[metric.name] = metrics.resample(counts, RESAMPLED)
        drawn = resamples[metric.name] if seed == RESAMPLED else metrics.resample(counts, seed)
        low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
        value = sum(value for value, _ in results) / len(results)
        numbers.append(
            {
                "metric": metric.name,
                "metric_title": metric.title,
                "value": value,
                "unit": metric.unit,
                "direction": metric.direction,
                "interval_95": [low, high],
            }
        )
    out = {
        **numbers[0],
        "split": "test",
        "items": sum(probe.items(probe.split["test"]) for probe in probes),
        "interval_method": f"percentile bootstrap over {probes[0].resampled}, 1000 resamples",
    }
    if details[0]:
        out["details"] = details[0]
    if len(task.metrics) > 1:
        out["further_metrics"] = numbers[1:]
    if len(probes) > 1:
        values = [fold[0][0] for fold in folds]
        out["split"] = f"each of {len(probes)} folds in turn; the value is their mean"
        out["interval_method"] = (
            "percentile bootstrap over the utterances of each fold, of the mean over folds, 1000 resamples"
        )
        out["std_over_folds"] = statistics.stdev(values)
        out["folds"] = [
            {
                "fold": _fold(probe, number),
                "value": value,
                "items": len(probe.split["test"]),
                "layer_weights": head.layer_weights(),
                "grid": fit.grid,
            }
            for number, (value, probe, head, fit) in enumerate(zip(values, probes, heads, fits), start=1)
        ]
    return out, resamples


def _fold(probe, number: int) -> int | str:
    """The tested fold's name in the table, or its number where the table has none."""
    return probe.table["fold"].tolist()[probe.split["test"][0]] if "fold" in probe.table else number


def mean_grid(fits: list) -> list[dict[str, Any]]:
    """Each learning rate with the mean over folds of the best that it has shown on dev; the curves are with the
    folds."""
    return [
        {
            "lr": candidates[0]["lr"],
            "dev": sum(candidate["dev"] for candidate in candidates) / len(candidates),
            "skipped_updates": sum(candidate["skipped_updates"] for candidate in candidates),
        }
        for candidates in zip(*(fit.grid for fit in fits))
    ]


def mean_weights(lists: list[list[float]]) -> list[float]:
    return [round(sum(column) / len(column), 6) for column in zip(*lists)]
