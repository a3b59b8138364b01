"""From task metrics to SUPERB's scores. Pure functions over a mapping keyed by the metric columns of
published.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_upstream.errors import StarError

from .. import tasks

SUPERB = {metric.name: metric for name in tasks.ORDER for metric in tasks.get(name).metrics}
METRICS = tuple(SUPERB)
"""The eleven numbers of SUPERB's ten tasks, in percent but for ``qbe_mtwv``; slot filling has two."""

FBANK = {
    "pr_per": 82.01,
    "asr_wer": 23.18,
    "ks_acc": 41.38,
    "qbe_mtwv": 0.0058,
    "sid_acc": 20.06,
    "asv_eer": 9.56,
    "sd_der": 10.05,
    "ic_acc": 9.65,
    "sf_f1": 69.64,
    "sf_cer": 52.94,
    "er_acc": 48.24,
}
"""The leaderboard's FBANK row (0 of generalizability), not the older one that some papers print."""

SOTA = {
    "pr_per": 3.53,
    "asr_wer": 3.62,
    "ks_acc": 96.66,
    "qbe_mtwv": 0.0736,
    "sid_acc": 90.33,
    "asv_eer": 5.11,
    "sd_der": 5.62,
    "ic_acc": 98.76,
    "sf_f1": 89.81,
    "sf_cer": 21.76,
    "er_acc": 67.62,
}
"""Best of each task in the SUPERB paper (1000 of generalizability)."""


def overall(metrics: Mapping[str, float]) -> float:
    """Mean of eleven numbers in percent: 100 - error, accuracy, F1, 100 x MTWV (the papers' "overall").

    Raises :class:`StarError` naming every metric that is missing.
    """
    _complete("overall", metrics)
    return float(np.mean([goodness(float(metrics[name]), vars(SUPERB[name])) for name in METRICS]))


def goodness(values: Any, facts: Mapping[str, Any]) -> Any:
    """A number or an array of the metric with these ``unit`` and ``direction``, in percent, more being better."""
    percent = values if facts["unit"] == "%" else 100.0 * values
    return 100.0 - percent if facts["direction"] == "min" else percent


def generalizability(metrics: Mapping[str, float]) -> float:
    """1000 x mean over the ten tasks of (x - FBANK) / (SOTA - FBANK), slot filling's two terms averaged first (the
    leaderboard's SUPERB score).

    Raises :class:`StarError` naming every metric that is missing.
    """
    _complete("generalizability", metrics)
    share = {name: (float(metrics[name]) - FBANK[name]) / (SOTA[name] - FBANK[name]) for name in METRICS}
    slots = (share.pop("sf_f1") + share.pop("sf_cer")) / 2
    return float(1000.0 * np.mean([*share.values(), slots]))


def missing(metrics: Mapping[str, float]) -> list[str]:
    """The metrics of :data:`METRICS` that ``metrics`` lacks (absent, None or NaN)."""
    return [name for name in METRICS if (value := metrics.get(name)) is None or np.isnan(value)]


def _complete(what: str, metrics: Mapping[str, float]) -> None:
    if absent := missing(metrics):
        raise StarError(f"no {what}: {', '.join(absent)} missing")
