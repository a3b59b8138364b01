"""Metrics: hand-computed cases, plain-Python references, scikit-learn's ROC."""

import itertools

import numpy as np
import pytest
from conftest import SHARED

from eval.heads.dtw import Documents
from star_upstream import metrics


def error_rate(reference, hypothesis):
    errors, total = metrics.diarization_errors(reference, hypothesis)
    return errors / total


def test_diarization_errors_by_hand():
    ada, bob = (0.0, 10.0, "ada"), (5.0, 15.0, "bob")
    assert metrics.diarization_errors([ada, bob], [(0.0, 10.0, "1"), (5.0, 15.0, "2")]) == (0.0, 20.0)
    assert metrics.diarization_errors([ada, bob], [(0.0, 10.0, "2"), (5.0, 15.0, "1")]) == (
        0.0,
        20.0,
    )  # names mean nothing
    assert error_rate([ada, bob], [(0.0, 10.0, "1")]) == 10 / 20  # 10 s missed
    assert error_rate([ada], [(0.0, 12.0, "1")]) == pytest.approx(2 / 10)  # 2 s false alarm
    assert error_rate([ada], [(0.0, 6.0, "1"), (6.0, 10.0, "2")]) == pytest.approx(4 / 10)  # 4 s of another speaker
    # 0-5 right, 5-10 one of two said (5 missed), 10-15 bob said by ada's name (5 confused), 15-16 false alarm
    assert error_rate([ada, bob], [(0.0, 16.0, "1")]) == pytest.approx((5 + 5 + 1) / 20)
    assert error_rate([ada], []) == 1.0 and metrics.diarization_errors([], []) == (0.0, 0.0)
    assert metrics.diarization_errors([], [(1.0, 3.0, "1")]) == (2.0, 0.0)
    assert metrics.diarization_errors([(0.0, 4.0, "a"), (2.0, 6.0, "a")], [(0.0, 6.0, "1")]) == (
        0.0,
        6.0,
    )  # counts once


def test_diarization_maps_speakers_for_the_whole_recording():
    """The mapping that is best in time wins even where another is better for some of it."""
    reference = [(0.0, 6.0, "a"), (6.0, 10.0, "b")]
    hypothesis = [(0.0, 2.0, "1"), (2.0, 6.0, "2"), (6.0, 10.0, "1")]
    # 1 = b, 2 = a: 8 s agree; 1 = a, 2 = b: 2 s.
    assert error_rate(reference, hypothesis) == pytest.approx(2 / 10)


@pytest.mark.skipif(not (SHARED / "notes" / "der.py").is_file(), reason="needs the study prototype")
def test_diarization_errors_are_the_prototypes():
    """The prototype was compared with dscore: at most 0.005 points on 30 random pairs."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("der", SHARED / "notes" / "der.py")
    der = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(der)
    rng = np.random.default_rng(0)

    def segments(names):
        starts = rng.uniform(0, 20, 8)
        return [(s, s + rng.uniform(0.1, 5), str(rng.choice(names))) for s in starts]

    for _ in range(30):
        reference, hypothesis = segments(["a", "b", "c"]), segments(["1", "2"])
        assert metrics.diarization_errors(reference, hypothesis) == pytest.approx(der._file_der(reference, hypothesis))


def test_equal_error_rate_by_hand():
    assert metrics.Trials([1, 1, 0, 0], [4, 3, 2, 1]).eer() == 0.0
    assert metrics.Trials([0, 0, 1, 1], [4, 3, 2, 1]).eer() == 1.0
    assert (
        metrics.Trials([1, 0, 1, 0], [4, 3, 2, 1]).eer() == 0.5
    )  # at every threshold from 3 to 2: 1 of 2 missed, 1 of 2 let in
    assert metrics.Trials([1, 1, 1, 0, 0, 0], [6, 5, 2, 4, 1, 0]).eer() == pytest.approx(1 / 3)
    assert metrics.Trials([1, 0, 1, 0], [1, 1, 1, 1]).eer() == 0.5  # no information
    for targets in ([1, 1], [0, 0]):
        with pytest.raises(ValueError, match="of one speaker and trials of two"):
            metrics.Trials(targets, [1, 2]).eer()


@pytest.mark.parametrize("decimals", [1, 8])
def test_error_rates_are_those_of_sklearns_roc(decimals):
    """On planted scores: d' = 1.5, with ties and without; s3prl's own functions read the same curve."""
    from sklearn.metrics import roc_curve

    from star_upstream import compat

    compat.apply()
    from s3prl.metric import compute_eer, compute_minDCF

    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, 2000)
    scores = np.round(rng.standard_normal(2000) + 1.5 * targets, decimals)
    trials = metrics.Trials(targets, scores)
    alarms, hits, _ = roc_curve(targets, scores, drop_intermediate=False)
    mine = trials.rates()
    assert np.allclose(mine[0], 1 - hits) and np.allclose(mine[1], alarms)
    assert trials.eer() == pytest.approx(compute_eer(targets, scores)[0], abs=1e-6)
    assert trials.eer() == pytest.approx(0.2266, abs=0.03)  # of two Gaussians: Phi(-1.5 / 2)
    assert trials.min_dcf() == pytest.approx(compute_minDCF(targets, scores)[0], abs=1e-9)


def test_weights_are_repetitions():
    rng = np.random.default_rng(2)
    targets, scores, times = rng.integers(0, 2, 50), rng.standard_normal(50), rng.integers(0, 3, 50)
    repeated = metrics.Trials(targets.repeat(times), scores.repeat(times))
    assert metrics.Trials(targets, scores).eer(times) == pytest.approx(repeated.eer())
    relevant, scores = rng.integers(-1, 2, (6, 20)), rng.standard_normal((6, 20))
    relevant[:, 0] = 1
    times = np.array([0, 2, 1, 3, 0, 1])
    weighted = metrics.maximum_term_weighted_value(relevant, scores, times)
    repeated = metrics.maximum_term_weighted_value(relevant.repeat(times, 0), scores.repeat(times, 0))
    assert weighted == pytest.approx(repeated)


def test_term_weighted_value_by_hand():
    assert pytest.approx(12.49) == metrics.TERM_WEIGHT
    value = metrics.maximum_term_weighted_value
    assert value(np.array([[1, 1, 0]]), np.array([[3.0, 2.0, 1.0]])) == (1.0, 2.0)
    assert value(np.array([[1, 0, 0, 1]]), np.array([[3.0, 2.0, 1.0, 0.0]])) == (
        0.5,
        3.0,
    )  # the second costs 12.49 for 0.5
    assert value(np.array([[0, 1]]), np.array([[2.0, 1.0]])) == (0.0, float("inf"))  # rather detect nothing
    assert value(np.array([[0, 1, 1]]), np.array([[3.0, 2.0, 1.0]]), beta=0.25)[0] == pytest.approx(0.75)
    # One threshold for both queries: 2 gives (1 + 1) / 2 - 0.5 / 2 / 2 with a false alarm among the first's two; 3
    # gives 1 / 2.
    relevant, scores = np.array([[1, 0, 0], [1, 0, 0]]), np.array([[3.0, 2.0, 0.0], [2.0, 1.0, 0.0]])
    assert value(relevant, scores, beta=0.5)[0] == pytest.approx(1 - 0.125)
    # A query in no document counts for nothing, a pair that is not scored neither; equal scores are detected together.
    assert value(np.array([[1, 0], [0, 0]]), np.array([[2.0, 1.0], [9.0, 9.0]])) == (1.0, 2.0)
    assert value(np.array([[-1, 1, 0]]), np.array([[3.0, 2.0, 1.0]])) == (1.0, 2.0)
    assert value(np.array([[1, 0]]), np.array([[1.0, 1.0]])) == (0.0, float("inf"))
    with pytest.raises(ValueError, match="in a document"):
        value(np.array([[0, 0]]), np.array([[1.0, 2.0]]))


def test_term_weighted_value_is_the_best_over_all_thresholds():
    rng = np.random.default_rng(3)
    for _ in range(20):
        relevant, scores = rng.integers(-1, 2, (4, 9)), np.round(rng.standard_normal((4, 9)), 1)
        relevant[0, 0] = 1

        def at(threshold, relevant=relevant, scores=scores):
            each = []
            for truth, score in zip(relevant, scores):
                if (truth == 1).any():
                    missed = np.mean(score[truth == 1] < threshold)
                    alarms = np.mean(score[truth == 0] >= threshold) if (truth == 0).any() else 0.0
                    each.append(1 - missed - 2.0 * alarms)
            return np.mean(each)

        best = max(at(threshold) for threshold in [*np.unique(scores), np.inf])
        assert metrics.maximum_term_weighted_value(relevant, scores, beta=2.0)[0] == pytest.approx(best)


def plain_cost(query, document):
    """The warping as it is defined, cell by cell."""

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    distance = np.array([[np.exp(1 - cosine(q, d)) - 1 for d in document] for q in query])
    low, high = distance.min(1, keepdims=True), distance.max(1, keepdims=True)
    distance = (distance - low) / np.maximum(high - low, 1e-9)
    cost = np.full(distance.shape, np.inf)
    for i, j in itertools.product(*map(range, distance.shape)):
        before = 0.0 if i == 0 else min(cost[i - 1, j - step] for step in (0, 1, 2) if j >= step)
        cost[i, j] = distance[i, j] + before
    return cost[-1].min() / len(query)


def test_warping_is_the_plain_dynamic_program():
    rng = np.random.default_rng(4)
    documents = [rng.standard_normal((frames, 4)) for frames in (30, 1, 2, 3, 17)]
    together = Documents(documents)
    for frames in (1, 2, 7, 25):
        query = rng.standard_normal((frames, 4))
        assert together.costs(query) == pytest.approx([plain_cost(query, document) for document in documents])


def test_warping_finds_a_query_said_at_another_speed():
    rng = np.random.default_rng(5)
    query = rng.standard_normal((12, 8))
    slow, fast = query.repeat(2, 0), query[::2]
    documents = [
        np.concatenate([rng.standard_normal((20, 8)), part, rng.standard_normal((20, 8))]) for part in (slow, query)
    ]
    costs = Documents([*documents, rng.standard_normal((52, 8))]).costs(query)
    assert costs[1] == pytest.approx(0.0, abs=1e-9) and costs[0] < 1e-9 < 0.1 < costs[2]
    # A query of half the speed of the document needs steps of two; of double the speed, it repeats frames.
    document = np.concatenate([rng.standard_normal((9, 8)), query, rng.standard_normal((9, 8))])
    assert Documents([document]).costs(fast) < 1e-9


def test_silence_has_no_direction():
    document, query = np.zeros((5, 3)), np.ones((5, 3))
    assert np.isfinite(Documents([document]).costs(query)).all()


def test_bootstrap_interval():
    assert metrics.bootstrap(np.ones((20, 2))) == (100.0, 100.0)
    counts = np.stack([np.repeat([1.0, 0.0], 200), np.ones(400)], 1)
    low, high = metrics.bootstrap(counts, seed=1)
    half_width = 100 * 1.96 * np.sqrt(0.25 / 400)  # normal approximation of a proportion of one half
    assert low == pytest.approx(50 - half_width, abs=1) and high == pytest.approx(50 + half_width, abs=1)
    assert metrics.bootstrap(counts, seed=1) == (low, high)


def test_interval_of_a_mean_over_folds():
    right, wrong = np.array([[1, 1]] * 3), np.array([[0, 1]] * 30)
    assert metrics.bootstrap([right, wrong]) == pytest.approx((50, 50))
    mixed = np.array([[i % 2, 1] for i in range(40)])
    assert metrics.bootstrap([mixed]) == metrics.bootstrap(mixed)
    low, high = metrics.bootstrap([mixed, right])
    assert 60 < low < 75 < high < 90
