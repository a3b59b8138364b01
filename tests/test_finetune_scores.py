"""Accuracy and error rates with intervals, of one run and of several."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from star_upstream.training import finetune_scores


def test_error_rates_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    targets = np.repeat([1, 0], [300, 700])
    scores = np.round(random.normal(targets * 1.5, 1.0), 2)  # with ties
    found = finetune_scores.errors(targets, [scores])
    alarms, hits, _ = roc_curve(targets, scores, drop_intermediate=False)
    misses = 1 - hits
    after = int(np.argmax(alarms >= misses))
    gap = (misses - alarms)[after - 1 : after + 1]
    rate = alarms[after - 1] + gap[0] / (gap[0] - gap[1]) * (alarms[after] - alarms[after - 1])
    assert found["value"] == pytest.approx(100 * rate, abs=1e-9)
    assert found["min_dcf"] == pytest.approx((0.01 * misses + 0.99 * alarms).min() / 0.01, abs=1e-9)
    for name in ("", "min_dcf_"):
        low, high = found[f"{name}interval_95"]
        assert low < found["value" if not name else "min_dcf"] < high
    # of the mean over runs: a second run that is perfect halves the rate
    perfect = finetune_scores.errors(targets, [scores, targets.astype(float)])
    assert perfect["value"] == pytest.approx(50 * rate, abs=1e-9) and np.diff(perfect["interval_95"]) < np.diff(
        found["interval_95"]
    )


def test_accuracy_is_a_mean_over_items():
    one = finetune_scores.accuracy([np.array([1.0, 0.0, 1.0, 1.0])])
    two = finetune_scores.accuracy([np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])])
    assert (
        one["value"] == 75.0
        and two["value"] == 87.5
        and 0.0 <= one["interval_95"][0] < 75.0 < one["interval_95"][1] <= 100.0
    )
