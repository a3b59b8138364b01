"""A comparison's numbers: means over seeds, and paired tests of their differences from the first recipe's.

A mean's error has two parts: other test items (a bootstrap in which all recipes and seeds have the same items drawn)
and other seeds (the standard deviation over seeds). ``se^2 = items^2 + seeds^2 / K``; intervals and p-values are of
Student's t with the degrees of freedom of Welch and Satterthwaite, the items' part counted as known. Differences are
paired by item and by seed. p-values are corrected by Holm's method (1979).

Shapes: K seeds, R resamples of the test items.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from star_upstream import strict
from star_upstream.encoder import EncoderConfig
from star_upstream.encoder import size as sizes
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint

from .. import report
from ..run import RESAMPLES
from . import score
from .table import Record

MEAN = "mean"
SAME = ("table_digest", "task_version", "schedule", "steps", "lr_grid", "limit", "encoding")
"""What the records of a metric must have in common."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, and the two-sided p-value against 0."""

    value: float
    low: float
    high: float
    p: float


def estimate(values_K: np.ndarray, resamples_KR: np.ndarray) -> Estimate:
    """The mean of ``values_K``, and what other seeds and items (``resamples_KR``, of the same items) say of it."""
    from scipy import stats

    seeds = len(values_K)
    value, items = float(values_K.mean()), float(resamples_KR.mean(0).std(ddof=1))
    between = float(values_K.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    error = math.hypot(items, between)
    if error == 0.0:
        return Estimate(value, value, value, 1.0 if value == 0.0 else 0.0)
    freedom = (seeds - 1) * (error / between) ** 4 if between else math.inf
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Estimate(value, value - reach, value + reach, float(2.0 * stats.t.sf(abs(value) / error, freedom)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(list(values), method="holm")[1].tolist() if len(values) else []


@dataclass
class Row:
    """A recipe: what its runs cost, and each metric's value and resamples for each seed that has both."""

    name: str
    entry: dict[str, Any]
    parameters: int
    macs_g: float
    seconds: dict[int, float]
    audio: dict[int, tuple[int, float, int]]
    """Seed -> updates, hours, checksum of all audio."""
    records: dict[str, dict[int, Record]]
    resamples: dict[str, dict[int, np.ndarray]]
    latency: dict[str, Any]

    def numbers(self, metric: str, seeds: Sequence[int], metrics: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
        """K values and K x R resamples; of :data:`MEAN`, those of the goodness of all ``metrics`` on average."""
        if metric != MEAN:
            values = [self.records[metric][seed]["value"] for seed in seeds]
            return np.array(values), np.array([self.resamples[metric][seed] for seed in seeds], dtype=np.float64)
        parts = [
            [score.goodness(part, self.records[name][seeds[0]]) for part in self.numbers(name, seeds)]
            for name in metrics
        ]
        return tuple(np.mean([part[i] for part in parts], axis=0) for i in (0, 1))


def read(folder: Path, name: str, entry: dict[str, Any], seeds: int) -> Row:
    """What is there of a recipe. Raises :class:`StarError` for scores without the resamples that tests need."""
    row = Row(name, entry, 0, 0.0, {}, {}, {}, {}, {})
    file = folder / "latency.json"
    if file.is_file():
        row.latency = json.loads(file.read_text(encoding="utf-8"))["models"].get(name, {})
    for seed in range(seeds):
        cell = f"{name}-s{seed}"
        run, scored = folder / "runs" / cell, folder / "scores" / cell
        if not (run / "done.json").is_file():
            continue
        row.seconds[seed], row.audio[seed] = _heard(run)
        config = strict.build(EncoderConfig, checkpoint.describe(run / entry["result"])["encoder"])
        row.parameters = sizes.without_training(config)
        row.macs_g = sizes.profile(replace(config, prediction_layers=()))["macs_g"]
        if not any(scored.glob("*.json")):
            continue
        for record in report.read(scored):
            resampled = scored / f"{record['task']}{RESAMPLES}"
            if not resampled.is_file():
                raise StarError(f"{resampled}: missing; remove {scored} and run star compare again")
            row.records.setdefault(record["metric"], {})[seed] = record
            with np.load(resampled) as values:
                # shuffled alike for all models: resamples of one number of different tasks are not of related draws
                order = np.random.default_rng(list(record["task"].encode())).permutation(len(values[record["metric"]]))
                row.resamples.setdefault(record["metric"], {})[seed] = values[record["metric"]][order]
    return row


def _heard(run: Path) -> tuple[float, tuple[int, float, int]]:
    """Seconds of training; updates, hours and checksum of the audio: of both stages where there are two."""
    seconds, updates, hours, crc = 0.0, 0, 0.0, 0
    for log in (run / "stage1" / "log.csv", run / "log.csv"):
        if log.is_file():
            with open(log, encoding="utf-8", newline="") as stream:
                lines = list(csv.DictReader(stream))
            seconds += max(float(line["seconds"]) for line in lines)
            updates += max(int(line["update"]) for line in lines)
            heard = [line for line in lines if line.get("audio_crc32")]
            hours, crc = hours + float(heard[-1]["audio_hours"]), int(heard[-1]["audio_crc32"])
    return seconds, (updates, round(hours, 3), crc)


def results(settings: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """All numbers, as they are written to table.json."""
    metrics = [
        m for m in dict.fromkeys(m for row in rows for m in row.records) if all(m in row.records for row in rows)
    ]
    for metric in metrics:
        _check_same(metric, rows)
    if not metrics:
        raise StarError("no metric that all recipes have yet")
    shown = [*([MEAN] if len(metrics) > 1 else []), *metrics]
    seeds = [s for s in range(settings["asked"]["seeds"]) if all(s in row.records[m] for row in rows for m in metrics)]
    if not seeds:
        raise StarError("no seed of which all recipes have their scores yet")
    sample = {m: rows[0].records[m][seeds[0]] for m in metrics}
    lines = []
    for row in rows:
        scores: dict[str, dict[str, Any]] = {}
        for metric in shown:
            values_K, resamples_KR = row.numbers(metric, seeds, metrics)
            one = estimate(values_K, resamples_KR)
            most = (
                100.0
                if metric == MEAN or (sample[metric]["unit"], sample[metric]["direction"]) == ("%", "max")
                else math.inf
            )
            scores[metric] = {"value": one.value, "low": max(0.0, one.low), "high": min(most, one.high)}
            scores[metric]["seeds"] = values_K.tolist()
            if row is not rows[0]:
                base_K, others_KR = rows[0].numbers(metric, seeds, metrics)
                gap = estimate(values_K - base_K, resamples_KR - others_KR)
                scores[metric]["difference"] = {**vars(gap), "seeds": (values_K - base_K).tolist()}
        lines.append(
            {
                "recipe": row.name,
                "parameters": row.parameters,
                "macs_g": row.macs_g,
                "learning_rate": row.entry["learning_rate"],
                "training_seconds": round(float(np.mean([row.seconds[s] for s in seeds])), 1),
                "audio_hours": round(float(np.mean([row.audio[s][1] for s in seeds])), 3),
                "forward_ms": round(1000 * row.latency["median_s"], 2) if row.latency else None,
                "scores": scores,
            }
        )
    # two families: the mean, which is asked first, and all single metrics
    for family in ([MEAN], metrics):
        tests = [line["scores"][m]["difference"] for line in lines[1:] for m in family if m in line["scores"]]
        for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = corrected
    audio = {str(s): {row.name: list(row.audio[s]) for row in rows} for s in seeds}
    return {
        "first": rows[0].name,
        "asked": settings["asked"],
        "seeds": seeds,
        "metrics": {m: {k: sample[m][k] for k in ("unit", "direction", "items", "task")} for m in metrics},
        "same_audio": all(len({tuple(heard) for heard in each.values()}) == 1 for each in audio.values()),
        "audio": audio,
        "rows": lines,
    }


def _check_same(metric: str, rows: list[Row]) -> None:
    for key in SAME:
        values = {json.dumps(record.get(key)) for row in rows for record in row.records[metric].values()}
        if len(values) > 1:
            raise StarError(
                f"{metric}: {key} differs among the scores ({', '.join(sorted(values))}); they do not compare"
            )
