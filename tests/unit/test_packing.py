"""Packing: every rollout once, micro-batches in step, nothing over the limit that need not be."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.records import Batch
from rlcore.workers.packing import plan, split

LENGTHS = st.lists(st.integers(1, 300), min_size=0, max_size=60)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 400))
def test_plan(lengths: list[int], ranks: int, microbatch_tokens: int) -> None:
    share = plan(lengths, ranks, microbatch_tokens)
    assert len(share) == ranks
    assert len({len(rank) for rank in share}) == 1
    assert 1 <= len(share[0]) <= max(1, -(-len(lengths) // ranks))
    microbatches = [m for rank in share for m in rank]
    assert sorted(i for m in microbatches for i in m) == list(range(len(lengths)))
    for m in microbatches:
        assert len(m) <= 1 or sum(lengths[i] for i in m) <= microbatch_tokens
    if len(lengths) >= len(microbatches):
        assert all(microbatches)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(50, 300), min_size=32, max_size=200), st.integers(2, 4))
def test_plan_balances_ranks_and_fills_microbatches(lengths: list[int], ranks: int) -> None:
    share = plan(lengths, ranks, 1000)
    tokens = [sum(lengths[i] for m in rank for i in m) for rank in share]
    assert max(tokens) - min(tokens) <= max(lengths)
    assert len(share[0]) <= -(-sum(lengths) // (ranks * 1000)) + 2


def test_a_long_rollout_is_alone() -> None:
    assert sorted(plan([10, 5000, 10, 10], 1, 100)[0]) == [[0, 2, 3], [1]]


def batch_of(lengths: list[int], masked: list[bool], group: list[int] | None = None) -> Batch:
    """Token i is i; of a masked rollout all tokens but the first are."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    rollout = torch.repeat_interleave(torch.tensor(lengths))
    first = torch.arange(n) == offsets[:-1][rollout]
    zeros = torch.zeros(len(lengths))
    return Batch(
        tokens=torch.arange(n, dtype=torch.int32),
        offsets=offsets,
        mask=torch.tensor(masked)[rollout] & ~first,
        rollout_logp=torch.zeros(n),
        reward=zeros,
        group=torch.tensor(group or [0] * len(lengths)),
        baseline=zeros,
    )


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2))
def test_split(data: st.DataObject, ranks: int, minibatches: int, epochs: int) -> None:
    lengths = data.draw(st.lists(st.integers(2, 30), min_size=minibatches, max_size=20))
    masked = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    batch = batch_of(lengths, masked)
    work = split(batch, ranks, 40, minibatches, epochs)
    assert len(work) == ranks and all(len(rank) == minibatches * epochs for rank in work)
    for step in range(minibatches * epochs):
        parts = [rank[step] for rank in work]
        assert len({part.totals for part in parts}) == 1
        assert sum(int(part.batch.mask.sum()) for part in parts) == parts[0].totals.tokens
        assert sum(len(part.batch) for part in parts) == parts[0].totals.sequences
        for part in parts:
            assert [i for m in part.microbatches for i in m] == list(range(len(part.batch)))
    seen = torch.cat([rank[step].batch.tokens for step in range(minibatches) for rank in work])
    useful = batch.select([i for i, m in enumerate(masked) if m])
    assert sorted(seen.tolist()) == sorted(useful.tokens.tolist())


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 90), st.integers(1, 3))
def test_whole_groups_stay_together_in_order(
    data: st.DataObject, ranks: int, microbatch_tokens: int, minibatches: int
) -> None:
    of_group = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=15))
    group = [g for g, n in enumerate(of_group) for _ in range(n)]
    if data.draw(st.booleans()):
        group = data.draw(st.permutations(group))
    lengths = data.draw(st.lists(st.integers(2, 30), min_size=len(group), max_size=len(group)))
    masked = data.draw(st.lists(st.booleans(), min_size=len(group), max_size=len(group)))
    batch = batch_of(lengths, masked, group)
    work = split(batch, ranks, microbatch_tokens, minibatches, whole_groups=True)
    seen = []
    for step in range(minibatches):
        parts = [rank[step] for rank in work]
        assert len({part.totals for part in parts}) == len({len(part.microbatches) for part in parts}) == 1
        assert sum(int(part.batch.mask.sum()) for part in parts) == parts[0].totals.tokens
        for part in parts:
            assert [i for m in part.microbatches for i in m] == list(range(len(part.batch)))
            for micro in part.microbatches:
                found = part.batch.select(micro)
                assert len(found.tokens) <= microbatch_tokens or len(found.group.unique()) == 1
                for _, neighbours in itertools.groupby(zip(found.group.tolist(), micro, strict=True), lambda p: p[0]):
                    seen.append(part.batch.select([i for _, i in neighbours]).tokens.tolist())
    useful = {g for g, m in zip(group, masked, strict=True) if m}
    wanted = [batch.select([i for i, g in enumerate(group) if g == one]).tokens.tolist() for one in useful]
    assert sorted(seen) == sorted(wanted)


def test_a_pair_is_a_group_of_two() -> None:
    batch = batch_of([9, 2, 3, 3, 20, 20, 2, 2], [True] * 8, [0, 0, 1, 1, 2, 2, 3, 3])
    ((one,), (two,)) = split(batch, 2, 12, whole_groups=True)
    assert [part.batch.group.tolist() for part in (one, two)] == [[2, 2, 3, 3], [0, 0, 1, 1]]
    assert one.microbatches == two.microbatches == [[0, 1], [2, 3]]
    assert one.totals == two.totals == (61 - 8, 8)
