"""Subsequence dynamic time warping of a query against many documents at once.

The asymmetric step pattern (each query frame is matched once; the document advances by 0, 1 or 2 frames) looks only at
the query frame before, so a whole row of the cost matrix is one array operation, for all documents side by side.

Shapes: Q query frames, T document frames, D channels, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHORTEST_QUERY = 5
"""Frames; s3prl gives shorter queries the same score with every document."""


class Documents:
    """Documents (T x D each) laid end to end."""

    def __init__(self, documents: Sequence[np.ndarray]):
        self.frames_TD = _directions(np.concatenate(documents))
        lengths = [len(document) for document in documents]
        self.first = np.cumsum([0, *lengths])[:-1]
        self.repeats = np.asarray(lengths)
        self.second = (self.first + 1)[self.repeats > 1]

    def costs(self, query_QD: np.ndarray) -> np.ndarray:
        """N: each document's cost of its best match of the whole query, a frame of the query."""
        distance_QT = self._normalised(np.exp(1.0 - _directions(query_QD) @ self.frames_TD.T) - 1.0)
        cost_T = distance_QT[0]
        for row_T in distance_QT[1:]:
            cost_T = row_T + self._before(cost_T)
        return np.minimum.reduceat(cost_T, self.first) / len(query_QD)

    def _normalised(self, distance_QT: np.ndarray) -> np.ndarray:
        """Every query frame's distances to a document between 0 and 1."""
        low_QN, high_QN = (
            np.minimum.reduceat(distance_QT, self.first, 1),
            np.maximum.reduceat(distance_QT, self.first, 1),
        )
        scale_QN = np.maximum(high_QN - low_QN, 1e-9)
        return (distance_QT - low_QN.repeat(self.repeats, 1)) / scale_QN.repeat(self.repeats, 1)

    def _before(self, cost_T: np.ndarray) -> np.ndarray:
        """The least cost up to the query frame before, at the same document frame or one or two frames earlier in the
        document."""
        one, two = np.empty_like(cost_T), np.empty_like(cost_T)
        one[1:], two[2:] = cost_T[:-1], cost_T[:-2]
        one[self.first] = two[self.first] = np.inf
        two[self.second] = np.inf
        return np.minimum(np.minimum(cost_T, one), two)


def _directions(x_TD: np.ndarray) -> np.ndarray:
    return x_TD / np.maximum(np.linalg.norm(x_TD, axis=1, keepdims=True), 1e-12)
