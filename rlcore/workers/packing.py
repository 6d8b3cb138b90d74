"""Which rollout is computed where: rollouts to ranks and micro-batches, and a step's work cut into updates."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from rlcore.algo.stats import Totals
from rlcore.records import Batch


class Work(NamedTuple):
    """One rank's part of one optimizer step.

    `microbatches` are lists of rollout indices of `batch`, as many on every rank; an empty one is a forward and
    backward without loss that keeps the ranks in step.
    """

    batch: Batch
    microbatches: list[list[int]]
    totals: Totals  # over all ranks


def plan(lengths: Sequence[int], ranks: int, microbatch_tokens: int) -> list[list[list[int]]]:
    """Spread rollouts of these lengths: rank -> micro-batch -> indices, every index once.

    Every rank gets the same number of micro-batches, as few as possible, and about the same tokens; none holds more
    than `microbatch_tokens` unless it is a single longer rollout. One is empty only when there are too few rollouts.
    Micro-batches of the same position have similar sizes on all ranks, for the ranks wait for each other.
    """
    least = sum(min(n, microbatch_tokens) for n in lengths)
    each = max(1, -(-least // (ranks * microbatch_tokens)))
    while True:
        bins = _longest_first(lengths, each * ranks)
        if all(len(b) <= 1 or sum(lengths[i] for i in b) <= microbatch_tokens for b in bins):
            break
        each += 1
    sizes = [sum(lengths[i] for i in b) for b in bins]
    share: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    for b in sorted(range(len(bins)), key=lambda b: (-sizes[b], b)):
        tokens, rank = heapq.heappop(load)
        share[rank].append(sorted(bins[b]))
        if len(share[rank]) < each:
            heapq.heappush(load, (tokens + sizes[b], rank))
    return share


def _longest_first(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Each rollout, the longest first, into the bin with the fewest tokens so far, and of those with the fewest
    rollouts."""
    heap = [(0, 0, b) for b in range(bins)]
    content: list[list[int]] = [[] for _ in range(bins)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, count, b = heap[0]
        content[b].append(i)
        heapq.heapreplace(heap, (tokens + lengths[i], count + 1, b))
    return content


def split(
    batch: Batch, ranks: int, microbatch_tokens: int, minibatches: int = 1, epochs: int = 1
) -> list[list[Work]]:  # fmt: skip
    """rank -> the optimizer steps of one training step, in order: `epochs` passes over `minibatches` shares.

    A share is a run of neighbouring rollouts, so groups stay together where the numbers allow. Rollouts without a
    masked token carry no loss and are left out.
    """
    work: list[list[Work]] = [[] for _ in range(ranks)]
    for m in range(minibatches):
        first, last = m * len(batch) // minibatches, (m + 1) * len(batch) // minibatches
        useful = [i for i in range(first, last) if batch.mask[batch.offsets[i] : batch.offsets[i + 1]].any()]
        share = batch.select(useful)
        totals = Totals.of(share)
        for rank, microbatches in enumerate(plan(share.lengths.tolist(), ranks, microbatch_tokens)):
            work[rank].append(_part(share, microbatches, totals))
    return [rank * epochs for rank in work]


def split_pairs(batch: Batch, ranks: int, microbatch_tokens: int) -> list[Work]:
    """rank -> its part of one optimizer step on pairs: rollouts 2i and 2i + 1 of `batch` are one, and stay together in
    a micro-batch, in this order. One holds more than `microbatch_tokens` only if it is a single longer pair."""
    lengths = batch.lengths.view(-1, 2).sum(1).tolist()
    totals = Totals.of(batch)
    return [
        _part(batch, [[2 * pair + side for pair in micro for side in (0, 1)] for micro in microbatches], totals)
        for microbatches in plan(lengths, ranks, microbatch_tokens)
    ]


def _part(batch: Batch, microbatches: list[list[int]], totals: Totals) -> Work:
    """The rollouts of `microbatches` alone, numbered anew."""
    mine = [i for microbatch in microbatches for i in microbatch]
    local = iter(range(len(mine)))
    return Work(batch.select(mine), [[next(local) for _ in microbatch] for microbatch in microbatches], totals)
