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
    batch: Batch,
    ranks: int,
    microbatch_tokens: int,
    minibatches: int = 1,
    epochs: int = 1,
    whole_groups: bool = False,
) -> list[list[Work]]:
    """rank -> the optimizer steps of one training step, in order: `epochs` passes over `minibatches` shares.

    A share is a run of neighbouring rollouts. With `whole_groups` it is one of groups, and a group's rollouts are
    neighbours in one micro-batch, in order. What has no masked token carries no loss and is left out.
    """
    units = _groups(batch) if whole_groups else [[i] for i in range(len(batch))]
    lengths, masked = batch.lengths.tolist(), set(batch.rollout_of_token[batch.mask].unique().tolist())
    work: list[list[Work]] = [[] for _ in range(ranks)]
    for m in range(minibatches):
        first, last = m * len(units) // minibatches, (m + 1) * len(units) // minibatches
        useful = [unit for unit in units[first:last] if not masked.isdisjoint(unit)]
        totals = Totals.of(batch.select([i for unit in useful for i in unit]))
        sizes = [sum(lengths[i] for i in unit) for unit in useful]
        for rank, bins in enumerate(plan(sizes, ranks, microbatch_tokens)):
            work[rank].append(_part(batch, [[i for u in b for i in useful[u]] for b in bins], totals))
    return [rank * epochs for rank in work]


def _groups(batch: Batch) -> list[list[int]]:
    """The rollouts of each group, the groups in the order in which they first appear."""
    rollouts: dict[int, list[int]] = {}
    for i, group in enumerate(batch.group.tolist()):
        rollouts.setdefault(group, []).append(i)
    return list(rollouts.values())


def _part(batch: Batch, microbatches: list[list[int]], totals: Totals) -> Work:
    """The rollouts of `microbatches` alone, numbered anew."""
    mine = [i for microbatch in microbatches for i in microbatch]
    local = iter(range(len(mine)))
    return Work(batch.select(mine), [[next(local) for _ in microbatch] for microbatch in microbatches], totals)
