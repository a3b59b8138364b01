"""The training batches of an epoch, as the published runs draw them. ``rows`` are positions in a task's table; the same
seed and epoch give the same batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LONG = 300_000
"""Samples; a batch of slices that begins with a longer utterance is halved."""


def shuffled(rows: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in random order."""
    from s3prl.dataio.sampler import FixedBatchSizeBatchSampler

    return _drawn(FixedBatchSizeBatchSampler(rows, batch, shuffle=True, seed=seed), rows, epoch)


def balanced(groups: Sequence[list[int]], labels: Sequence[str], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """As many draws as there are ``groups``, every label equally often; of a group of several rows one is drawn."""
    from s3prl.dataio.sampler import BalancedWeightedSampler

    generator = torch.Generator().manual_seed(seed + epoch)

    def one(group: list[int]) -> int:
        return group[int(torch.randint(len(group), (1,), generator=generator))] if len(group) > 1 else group[0]

    batches = _drawn(BalancedWeightedSampler(labels, batch, seed=seed), groups, epoch)
    return [[one(group) for group in groups_of_batch] for groups_of_batch in batches]


def slices(
    rows: Sequence[int], tokens: Sequence[int], samples: Sequence[int], batch: int, seed: int, epoch: int
) -> list[list[int]]:
    """Each row once begins a slice of ``rows`` sorted from most to fewest tokens, in random order; the last ones share
    the last whole slice. ``tokens`` and ``samples`` are those of the rows."""
    order = sorted(range(len(rows)), key=lambda place: -tokens[place])
    generator = torch.Generator().manual_seed(seed + epoch)
    batches = []
    for drawn in torch.randperm(len(rows), generator=generator).tolist():
        start = max(0, min(drawn, len(rows) - batch))
        size = batch // 2 if samples[order[start]] > LONG and batch > 1 else batch
        batches.append([rows[place] for place in order[start : start + size]])
    return batches


def buckets(rows: Sequence[int], samples: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Neighbours by audio length in random order. The published runs made buckets of twice the batch and halved those
    that are whole; the rest of ``rows`` is one batch, and none if it is a single utterance."""
    from s3prl.dataio.sampler import SortedBucketingSampler

    sampler = SortedBucketingSampler(list(samples), batch, max_length=max(samples), shuffle=True, seed=seed)
    batches = _drawn(sampler, rows, epoch)
    count = len(rows) % (2 * batch)
    if not count:
        return batches
    rest = [rows[i] for i in sampler.sorted_ids[-count:]]
    kept = [found for found in batches if found[0] not in rest]
    if count > 1 or not kept:
        generator = torch.Generator().manual_seed(seed + epoch)
        kept.insert(int(torch.randint(len(kept) + 1, (1,), generator=generator)), rest)
    return kept


def _drawn(sampler, items: Sequence, epoch: int) -> list[list]:
    """The epoch's batches of a sampler of s3prl's."""
    sampler.set_epoch(epoch)
    return [[items[i] for i in indices] for indices in sampler]
