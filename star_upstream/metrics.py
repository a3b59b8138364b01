"""The metrics that s3prl leaves to outside programs (diarization error rate, equal error rate, maximum term-weighted
value), and bootstrap intervals of any metric.

Shapes: K trials, Q queries, N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Segment = tuple[float, float, str]
"""Start and end in seconds, speaker."""

TERM_WEIGHT = (1.0 / 100.0) * (1.0 / 0.0008 - 1.0)
"""What a false alarm weighs against a miss: QUESST 2014's cost 1 for it, cost 100 for a miss, prior 0.0008."""


def diarization_errors(reference: Sequence[Segment], hypothesis: Sequence[Segment]) -> tuple[float, float]:
    """Seconds of speaker time in error (missed, false alarm, confused) and seconds to be scored, in one recording.

    NIST's diarization error rate (md-eval) is the sum of the first over that of the second over all recordings: no
    collar, overlaps are scored, speakers are mapped one to one so that most time agrees. Where segments of one speaker
    overlap, they count once.
    """
    cuts = np.unique([t for start, end, _ in [*reference, *hypothesis] for t in (start, end)])
    if len(cuts) < 2:
        return 0.0, 0.0
    seconds, middle = np.diff(cuts), (cuts[:-1] + cuts[1:]) / 2
    said, guessed = _active(reference, middle), _active(hypothesis, middle)
    agreed = np.einsum("rt,ht,t->rh", said.astype(float), guessed.astype(float), seconds)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(agreed, maximize=True)
    speakers, guesses = said.sum(0), guessed.sum(0)
    errors = (np.maximum(speakers, guesses) * seconds).sum() - agreed[rows, columns].sum()
    return float(errors), float((speakers * seconds).sum())


def _active(segments: Sequence[Segment], middle: np.ndarray) -> np.ndarray:
    """Speakers x stretches: who speaks in the stretch around each of ``middle``."""
    names = sorted({name for _, _, name in segments})
    active = np.zeros((len(names), len(middle)), dtype=bool)
    for start, end, name in segments:
        active[names.index(name)] |= (middle > start) & (middle < end)
    return active


class Trials:
    """Scored pairs for :meth:`eer` and :meth:`min_dcf`, sorted once.

    targets: K, 1 for one speaker and 0 for two. scores: K, higher for one speaker. Each may have a weight, such as how
    often it was drawn in a resample. Trials of equal score are accepted together.
    """

    def __init__(self, targets: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray) -> None:
        self.order, self.last = _ranking(np.asarray(scores, dtype=float))
        self.is_target = np.asarray(targets)[self.order] == 1

    def rates(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Miss and false alarm rates as the threshold falls from above all scores to the lowest.

        Raises ValueError where the weighted trials are all of one kind.
        """
        weight = np.ones(len(self.order)) if weights is None else np.asarray(weights, dtype=float)[self.order]
        hits = np.append(0.0, np.cumsum(weight * self.is_target)[self.last])
        alarms = np.append(0.0, np.cumsum(weight * ~self.is_target)[self.last])
        if not hits[-1] or not alarms[-1]:
            raise ValueError("error rates need trials of one speaker and trials of two")
        return 1.0 - hits / hits[-1], alarms / alarms[-1]

    def eer(self, weights: np.ndarray | None = None) -> float:
        """Equal error rate, a share: where the line between neighbouring thresholds has as many misses as false
        alarms."""
        misses, alarms = self.rates(weights)
        after = int(np.argmax(alarms >= misses))
        ahead, behind = misses[after - 1] - alarms[after - 1], alarms[after] - misses[after]
        part = ahead / (ahead + behind)
        return float(alarms[after - 1] + part * (alarms[after] - alarms[after - 1]))

    def min_dcf(self, weights: np.ndarray | None = None, prior: float = 0.01) -> float:
        """Smallest detection cost (NIST SRE 2016, section 3; costs 1 and 1) over that of the better constant answer."""
        misses, alarms = self.rates(weights)
        return float((prior * misses + (1.0 - prior) * alarms).min() / min(prior, 1.0 - prior))

    def resample(self, generator: np.random.Generator) -> np.ndarray:
        """Weights of a resample: how often each trial is drawn, with replacement, as many of each kind as there are."""
        is_target = np.empty_like(self.is_target)
        is_target[self.order] = self.is_target
        drawn = [generator.choice(kind, len(kind)) for kind in (np.flatnonzero(is_target), np.flatnonzero(~is_target))]
        return np.bincount(np.concatenate(drawn), minlength=len(is_target))


def maximum_term_weighted_value(
    relevant_QN: np.ndarray, scores_QN: np.ndarray, weights_Q: np.ndarray | None = None, beta: float = TERM_WEIGHT
) -> tuple[float, float]:
    """The largest mean over queries of ``1 - P(miss) - beta P(false alarm)`` at one threshold for all, and that
    threshold.

    relevant_QN: 1 where the query is in the document, 0 where not, -1 where the pair is not scored. A query that is in
    no document has no miss rate and is left out, as NIST's scorer does. A document is detected where its score reaches
    the threshold; above all scores (threshold inf) the value is 0. weights_Q: how often each query counts.

    Raises ValueError where no query is in a document.
    """
    weights_Q = np.ones(len(relevant_QN)) if weights_Q is None else np.asarray(weights_Q, dtype=float)
    positive_Q, negative_Q = (relevant_QN == 1).sum(1), (relevant_QN == 0).sum(1)
    weights_Q = np.where(positive_Q > 0, weights_Q, 0.0)
    if not weights_Q.sum():
        raise ValueError("term-weighted value needs a query that is in a document")
    share_Q = weights_Q / weights_Q.sum()
    gain_Q, loss_Q = share_Q / np.maximum(positive_Q, 1), beta * share_Q / np.maximum(negative_Q, 1)
    gain_QN = np.where(relevant_QN == 1, gain_Q[:, None], np.where(relevant_QN == 0, -loss_Q[:, None], 0.0))
    order, last = _ranking(scores_QN.ravel())
    values = np.append(0.0, np.cumsum(gain_QN.ravel()[order])[last])
    best = int(values.argmax())
    return float(values[best]), float("inf") if best == 0 else float(scores_QN.ravel()[order[last[best - 1]]])


def _ranking(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of ``scores`` from the highest, and of each run of equal ones the last place in it."""
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)


Counts = np.ndarray | Callable[[np.random.Generator], float]


def bootstrap(counts: Counts | Sequence[Counts], seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of ``100 x sum(counts[:, 0]) / sum(counts[:, 1])`` over items drawn with replacement (percentiles).

    counts: n x 2, each item's numerator and denominator, or for other metrics a function that draws items by a
    generator and gives their value; or one of these a fold, where items are drawn within each and the interval is that
    of the mean over folds.
    """
    low, high = np.percentile(resample(counts, seed, resamples), [2.5, 97.5])
    return float(low), float(high)


def resample(counts: Counts | Sequence[Counts], seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """The values that :func:`bootstrap` takes its percentiles of. Which items are drawn depends on their number and the
    ``seed`` alone: of two models, the values at one place are of the same items."""
    generator = np.random.default_rng(seed)
    folds = [counts] if isinstance(counts, np.ndarray) or callable(counts) else counts
    values = np.zeros(resamples)
    for i in range(resamples):
        for fold in folds:
            values[i] += (fold(generator) if callable(fold) else _ratio(fold, generator)) / len(folds)
    return values


def _ratio(counts: np.ndarray, generator: np.random.Generator) -> float:
    top, bottom = counts[generator.integers(0, len(counts), len(counts))].sum(0)
    return float(100.0 * top / max(bottom, 1e-12))
