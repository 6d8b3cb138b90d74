"""Packing: every rollout once, micro-batches in step, nothing over the limit that need not be."""

from __future__ import annotations

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


def batch_of(lengths: list[int], masked: list[bool]) -> Batch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    rollout = torch.repeat_interleave(torch.tensor(lengths))
    first = torch.arange(n) == offsets[:-1][rollout]
    zeros = torch.zeros(len(lengths))
    return Batch(
        tokens=torch.arange(n, dtype=torch.int32), offsets=offsets, mask=torch.tensor(masked)[rollout] & ~first,
        rollout_logp=torch.zeros(n), reward=zeros, group=zeros.long(), baseline=zeros,
    )  # fmt: skip


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
