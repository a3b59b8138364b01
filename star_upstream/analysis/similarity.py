"""How alike the layers of an encoder are, in one pass over some audio, and the groups that they fall into.

| measure | between layers X and Y, over the valid frames of all clips | widths |
| --- | --- | --- |
| ``cka`` | centred kernel alignment (Kornblith et al. 2019): ``|X'Y|^2 / (|X'X| |Y'Y|)``, X and Y centred | any |
| ``cosine`` | mean over frames of the cosine between the two vectors of a frame | equal |
| ``l2`` | root of the mean over frames and channels of the squared difference: a distance | equal |

``cka`` has two estimators. ``exact`` is the formula over all frames at once: the D x D cross-covariance of each pair is
summed in fp64, so the result does not depend on batches (13 layers of 768 channels take 0.4 GB, 25 of 1024 take 2.7
GB); with few frames for the width it is too high. ``minibatch`` averages the unbiased HSIC_1 over random sets of 256
frames (Nguyen, Raghu, Kornblith, ICLR 2021; Song et al. 2012), of 4096 frames drawn over all clips: no bias from few
frames, and memory that grows with the width, not its square (0.2 and 0.4 GB for the two above); a value may lie
slightly outside 0 to 1. Shapes: B utterances, T frames, D width, V valid frames of a batch, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import audio, strict
from ..data.batches import AudioDataset, Batch, BucketSampler, collate
from ..data.clip_table import Clip, samples
from ..encoder import Encoder, EncoderOutput
from ..encoder.frontend import valid_mask
from ..errors import StarError

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class GroupingConfig:
    """How layers are compared and grouped. SKILL does it by CKA on a small calibration set and agglomerative
    clustering, from single layers up; its linkage, number of groups and size of the set are not known: those defaults
    are our choices."""

    number: int = 4
    """Groups; DPHuBERT distils four layers."""
    measure: Literal["cka", "cosine", "l2"] = "cka"
    estimator: Literal["exact", "minibatch"] = "exact"
    """Of ``cka``."""
    linkage: Literal["average", "complete", "single", "ward"] = "average"
    """``ward`` takes layers as points of the Euclidean space that the measure makes: of normalised centred Gram
    matrices for ``cka``, of unit vectors for ``cosine``, of activations for ``l2``. ``minibatch`` makes none."""
    contiguous: bool = False
    """Only neighbouring groups are merged, so that each is a run of layers."""
    zeroth: Literal["features", "layer_input", "none"] = "features"
    """Layer 0: the projected CNN output, the first layer's input, or no part of it."""
    seconds: float = 300.0
    """Audio that is enough, in clips drawn at random; all of it where there is less."""

    def __post_init__(self):
        strict.within(self, "[1, inf)", "number")
        strict.within(self, "(0, inf)", "seconds")
        if self.linkage == "ward" and self.measure == "cka" and self.estimator == "minibatch":
            raise StarError("linkage: ward needs estimator exact, or a measure other than cka")


@dataclass(frozen=True)
class Similarity:
    """A symmetric matrix over ``layers`` (for l2 of distances), and what it was measured on."""

    layers: tuple[int, ...]
    matrix_LL: np.ndarray
    measure: str
    seconds: float
    clips: int
    frames: int

    @property
    def distance_LL(self) -> np.ndarray:
        """1 - similarity (0 where an estimate is above 1), or the l2 distance; 0 from a layer to itself."""
        distance = self.matrix_LL if self.measure == "l2" else np.maximum(1.0 - self.matrix_LL, 0.0)
        return distance - np.diag(np.diag(distance))


@dataclass(frozen=True)
class Clustering:
    """Groups of layers in order of their first layer, and the tree that they were cut from."""

    groups: Groups
    merges: tuple[tuple[int, int, float, int], ...]
    """As scipy's linkage matrix: the two joined (layers by place, then earlier merges), their distance, and the layers
    joined."""


class ExactCka:
    """Linear CKA of pairs of matrices whose rows (frames) come in parts; the parts do not change the result."""

    def __init__(self, pairs: Sequence[tuple[int, int]]):
        self.used = sorted({i for pair in pairs for i in pair})
        self.pairs = {(min(pair), max(pair)) for pair in pairs} | {(i, i) for i in self.used}
        self.frames, self.cross = 0, dict[tuple[int, int], Tensor]()

    def add(self, states: Sequence[Tensor]) -> None:
        """V x D matrices (D may differ between them), rows matching."""
        if not self.frames:
            # a shift near the mean: sums of centred values lose no digits
            self._shift = {i: states[i].double().mean(0) for i in self.used}
            self._sums = {i: torch.zeros_like(shift) for i, shift in self._shift.items()}
        shifted = {i: states[i].double() - self._shift[i] for i in self.used}
        for i, x_VD in shifted.items():
            self._sums[i] += x_VD.sum(0)
        for i, j in self.pairs:
            product_DE = shifted[i].T @ shifted[j]
            self.cross[i, j] = self.cross[i, j].add_(product_DE) if (i, j) in self.cross else product_DE
        self.frames += len(states[0])

    def value(self, i: int, j: int) -> float:
        """CKA of matrices ``i`` and ``j``. Raises :class:`StarError` for a matrix whose rows are all the same."""
        i, j = sorted((i, j))
        return self._norm(i, j) ** 2 / (self._nonzero(i) * self._nonzero(j))

    def _norm(self, i: int, j: int) -> float:
        return torch.linalg.norm(self.cross[i, j] - torch.outer(self._sums[i], self._sums[j]) / self.frames).item()

    def _nonzero(self, i: int) -> float:
        norm = self._norm(i, i)
        if not norm > 0:
            raise StarError(f"similarity: layer {i} is the same in every frame")
        return norm


class MinibatchCka:
    """Linear CKA of all pairs of matrices whose rows (frames) come in parts: the mean HSIC_1 of random sets of ``size``
    rows.

    At most ``kept`` rows are held, each row equally likely. They are drawn over all parts: sets from one part, a few
    clips, would miss how clips differ (on the mini teacher, layers 0 and 8 then have 0.49 instead of 0.42).
    """

    def __init__(self, size: int = 256, kept: int = 4096, seed: int = 0):
        self.size, self.kept, self.frames = size, kept, 0
        self._random = np.random.default_rng(seed)
        self._keys, self._rows = np.zeros(0), list[Tensor]()
        self._total_LL: Tensor | None = None

    def add(self, states: Sequence[Tensor]) -> None:
        """V x D matrices (D may differ between them), rows matching."""
        self.frames, self._total_LL = self.frames + len(states[0]), None
        # every row has a random key; those with the lowest stay, and in order of their keys they are shuffled
        keys = np.concatenate([self._keys, self._random.random(len(states[0]))])
        order = np.argsort(keys)[: self.kept]
        self._keys, place = keys[order], torch.from_numpy(order).to(states[0].device)
        rows = self._rows or [x_VD[:0] for x_VD in states]
        self._rows = [torch.cat(pair)[place] for pair in zip(rows, states)]

    def value(self, i: int, j: int) -> float:
        """CKA of matrices ``i`` and ``j``. Raises :class:`StarError` for fewer than 4 rows, and where rows are all the
        same."""
        if self._total_LL is None:
            if len(self._keys) < 4:
                raise StarError(f"similarity: {len(self._keys)} frames are too few for the minibatch estimator")
            sets = [[x_SD[at : at + self.size] for x_SD in self._rows] for at in range(0, len(self._keys), self.size)]
            # a set's estimate is unbiased whatever its size; larger ones vary less and weigh more
            each = [len(rows[0]) * hsic(torch.stack([*map(gram, rows)])) for rows in sets if len(rows[0]) >= 4]
            self._total_LL = torch.stack(each).sum(0)
        own = (self._total_LL[i, i] * self._total_LL[j, j]).item()
        if not own > 0:
            raise StarError(f"similarity: layer {i} or {j} is the same in every frame, or there are too few frames")
        return self._total_LL[i, j].item() / own**0.5


def gram(x_VD: Tensor) -> Tensor:
    """V x V products of rows, in fp64. HSIC_1 does not change when all rows are shifted; without their mean, digits are
    kept."""
    x_VD = x_VD.double()
    x_VD = x_VD - x_VD.mean(0)
    return x_VD @ x_VD.T


def hsic(k_LVV: Tensor) -> Tensor:
    """L x L unbiased estimates HSIC_1 between kernel matrices of the same V samples, V at least 4 (Nguyen et al.
    2021)."""
    n = k_LVV.shape[-1]
    k_LVV = k_LVV - torch.diag_embed(k_LVV.diagonal(dim1=-2, dim2=-1))
    flat, rows_LV = k_LVV.flatten(1), k_LVV.sum(-1)
    sums_L = rows_LV.sum(-1)
    total = flat @ flat.T + torch.outer(sums_L, sums_L) / ((n - 1) * (n - 2)) - rows_LV @ rows_LV.T * (2 / (n - 2))
    return total / (n * (n - 3))


class Framewise:
    """The mean cosine, or the l2 distance, of all pairs of matrices of one width whose rows come in parts."""

    def __init__(self, measure: Literal["cosine", "l2"]):
        self.measure, self.frames = measure, 0
        self._total = torch.zeros(())

    def add(self, states: Sequence[Tensor]) -> None:
        """V x D matrices, D equal, rows matching."""
        x_LVD = torch.stack([x_VD.double() for x_VD in states])
        if self.measure == "cosine":
            x_LVD = torch.nn.functional.normalize(x_LVD, dim=-1)
        flat = x_LVD.flatten(1)
        self._total = self._total + flat @ flat.T
        self.frames, self.width = self.frames + x_LVD.shape[1], x_LVD.shape[2]

    def value(self, i: int, j: int) -> float:
        total = self._total
        if self.measure == "cosine":
            return (total[i, j] / self.frames).item()
        return max((total[i, i] + total[j, j] - 2 * total[i, j]).item() / (self.frames * self.width), 0.0) ** 0.5


def measure(encoder: Encoder, clips: Sequence[Clip], config: GroupingConfig, seed: int = 0) -> Similarity:
    """The layer-to-layer matrix on ``config.seconds`` of ``clips``, drawn by ``seed``. ``encoder`` runs where its
    parameters are.

    Raises :class:`StarError` when there is no clip long enough for a frame, and for more groups than layers.
    """
    layers = tuple(range(1 if config.zeroth == "none" else 0, encoder.config.layers + 1))
    _check_number(config, len(layers))
    pairs = [(i, j) for i in range(len(layers)) for j in range(i, len(layers))]
    if config.measure != "cka":
        sums: Framewise | ExactCka | MinibatchCka = Framewise(config.measure)
    else:
        sums = ExactCka(pairs) if config.estimator == "exact" else MinibatchCka(seed=seed)
    samples = count = 0
    for batch, states in run([encoder], clips, config.seconds, seed):
        sums.add([valid_state(states[0], layer, config.zeroth) for layer in layers])
        samples, count = samples + int(batch.lengths_B.sum()), count + len(batch.paths)
    matrix_LL = np.zeros((len(layers), len(layers)))
    for i, j in pairs:
        matrix_LL[i, j] = matrix_LL[j, i] = sums.value(i, j)
    return Similarity(layers, matrix_LL, config.measure, samples / audio.RATE, count, sums.frames)


def run(
    encoders: Sequence[Encoder], clips: Sequence[Clip], seconds: float, seed: int
) -> Iterator[tuple[Batch, list[EncoderOutput]]]:
    """Batches of clips drawn by ``seed`` until they last ``seconds``, with the outputs of each encoder in eval mode."""
    for encoder in encoders:
        encoder.config.check_one_rate("similarity")
    shortest = max(encoder.config.receptive_field for encoder in encoders)
    places = np.flatnonzero(samples(clips) >= shortest)
    if not len(places):
        raise StarError(f"similarity: no clip of {shortest} samples (one frame) or more")
    order = places[np.random.default_rng(seed).permutation(len(places))]
    enough = int(np.searchsorted(np.cumsum(samples(clips)[order]), seconds * audio.RATE)) + 1
    chosen = sorted((clips[i] for i in order[:enough]), key=lambda clip: (clip.samples, clip.path))
    dataset = AudioDataset(chosen, shortest)
    device = next(encoders[0].parameters()).device
    modes = [encoder.training for encoder in encoders]
    try:
        for indices in BucketSampler(chosen, max(40.0, chosen[-1].samples / audio.RATE), shuffle=False).plan(0):
            batch = collate([dataset[i] for i in indices])
            wave_BN, lengths_B = batch.waveforms_BN.to(device), batch.lengths_B.to(device)
            with torch.no_grad():
                outputs = [encoder.eval()(wave_BN, lengths_B) for encoder in encoders]
            yield batch, outputs
    finally:
        for encoder, training in zip(encoders, modes):
            encoder.train(training)


def valid_state(output: EncoderOutput, layer: int, zeroth: str, frames_B: Tensor | None = None) -> Tensor:
    """V x D frames of ``layer``, the valid ones or the first ``frames_B`` of each utterance; 0 is the first layer's
    input or, by ``zeroth``, the projected CNN output."""
    x_BTD = output.features_BTD if layer == 0 and zeroth == "features" else output.states[layer]
    return x_BTD[valid_mask(output.lengths_B if frames_B is None else frames_B, x_BTD.shape[1])]


def cluster(measured: Similarity, config: GroupingConfig) -> Clustering:
    """``config.number`` groups by agglomeration. Raises :class:`StarError` when there are fewer layers."""
    count = len(measured.layers)
    _check_number(config, count)
    chain = config.contiguous and config.linkage != "ward"
    merges = _chain(measured.distance_LL, config.linkage) if chain else _agglomerate(measured, config)
    nodes: list[tuple[int, ...]] = [(place,) for place in range(count)]
    ordered = []
    for first, second, distance in merges:
        # the one with the lower layer comes first, so that a drawing keeps the order of layers where it can
        first, second = sorted((first, second), key=lambda node: nodes[node][0])
        nodes.append(tuple(sorted(nodes[first] + nodes[second])))
        ordered.append((first, second, distance, len(nodes[-1])))
    done = count - config.number
    joined = {node for merge in ordered[:done] for node in merge[:2]}
    groups = sorted(nodes[node] for node in range(count + done) if node not in joined)
    return Clustering(tuple(tuple(measured.layers[place] for place in group) for group in groups), tuple(ordered))


def _check_number(config: GroupingConfig, layers: int) -> None:
    if config.number > layers:
        raise StarError(f"number: {config.number} groups cannot be made of {layers} layers")


def _agglomerate(measured: Similarity, config: GroupingConfig) -> list[tuple[int, int, float]]:
    from scipy import sparse
    from sklearn.cluster import AgglomerativeClustering

    count = len(measured.layers)
    if count == 1:
        return []
    options: dict[str, Any] = {"n_clusters": None, "distance_threshold": 0.0, "linkage": config.linkage}
    if config.linkage == "ward":
        if config.contiguous:
            options["connectivity"] = sparse.diags([1.0, 1.0], [-1, 1], shape=(count, count)).tocsr()
        tree = AgglomerativeClustering(**options).fit(_points(measured))
    else:
        tree = AgglomerativeClustering(metric="precomputed", **options).fit(measured.distance_LL)
    return [(int(a), int(b), float(d)) for (a, b), d in zip(tree.children_, tree.distances_)]


def _chain(distance_LL: np.ndarray, linkage: str) -> list[tuple[int, int, float]]:
    """Merges of neighbouring groups alone. scikit-learn's ``connectivity`` would not do: it forgets the distances of
    layers that are no neighbours, so that along a chain average, complete and single linkage are the same."""
    kinds: dict[str, Any] = {"average": np.mean, "complete": np.max, "single": np.min}
    join = kinds[linkage]
    runs, merges, count = [(i, [i]) for i in range(len(distance_LL))], list[tuple[int, int, float]](), len(distance_LL)
    while len(runs) > 1:
        costs = [float(join(distance_LL[np.ix_(one, other)])) for (_, one), (_, other) in pairwise(runs)]
        at = int(np.argmin(costs))
        (first, one), (second, other) = runs[at : at + 2]
        runs[at : at + 2] = [(count + len(merges), one + other)]
        merges.append((first, second, float(costs[at])))
    return merges


def _points(measured: Similarity) -> np.ndarray:
    """Points whose Euclidean distances are those that the measure makes (classical scaling); rows are layers."""
    products = measured.matrix_LL
    if measured.measure == "l2":
        centre = np.eye(len(products)) - 1 / len(products)
        products = -0.5 * centre @ products**2 @ centre
    values, vectors = np.linalg.eigh(products)
    return vectors * np.sqrt(np.clip(values, 0.0, None))
