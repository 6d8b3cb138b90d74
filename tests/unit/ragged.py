"""Ragged rollouts for the tests of rlcore/algo: a hypothesis strategy, and their `Batch`."""

from __future__ import annotations

import random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlcore.records import Batch
from tests.unit.second_way import Roll, Tokens

NAN = float("nan")
REWARDS = [None, 0.0, 1.0, 0.5, -1.0, 0.1, 3.25]
FILLED = {"old_logp": "old", "ref_logp": "ref", "penalty": "penalty", "value": "value", "returns": "returns"}


def roll(rng: random.Random, group: int, reward: float | None, tokens: int, trains: bool) -> Roll:
    """Every number is a multiple of 1/16, so exact in float32. Rollouts of a group have the same prompt."""
    prompt = group + 1
    chosen = [False] * prompt + [i == 0 or rng.random() < 0.7 for i in range(tokens)]
    mask = [m and trains and reward is not None for m in chosen]
    r = Roll(group, reward, prompt, mask)

    def column(low: int, high: int) -> list[float]:
        return [rng.randint(low, high) / 16 if m else 0.0 for m in mask]

    def near(xs: list[float], most: int, far: float) -> list[float]:
        step = [rng.choice((-450, 450)) if rng.random() < far else rng.randint(-most, most) for _ in mask]
        return [x + s / 16 if m else 0.0 for x, s, m in zip(xs, step, mask, strict=True)]

    r.old = column(-80, -1)
    r.new, r.engine, r.ref = near(r.old, 24, 0.05), near(r.old, 12, 0.05), near(r.old, 24, 0.05)
    r.value, r.returns, r.penalty = column(-32, 32), column(-32, 32), column(-4, 8)
    r.guess, r.advantage, r.entropy = near(r.value, 16, 0.0), column(-32, 32), column(0, 40)
    return r


@st.composite
def rollouts(draw: st.DrawFn, least: int = 0, penalty: bool = True) -> list[Roll]:
    """Up to 8 in up to 3 groups: empty responses, failed rewards, rollouts that do not train, gaps in the mask."""
    shapes = st.tuples(st.integers(0, 2), st.sampled_from(REWARDS), st.integers(0, 5), st.integers(0, 4))
    drawn = draw(st.lists(shapes, min_size=least, max_size=8))
    rng = random.Random(draw(st.integers(0, 2**32)))
    baselines = [draw(st.sampled_from(REWARDS)) for _ in range(3)]
    rolls = [roll(rng, g, reward, n, trains > 0) for g, reward, n, trains in drawn]
    for r in rolls:
        r.baseline = baselines[r.group]
        if not penalty:
            r.penalty = [0.0] * len(r.mask)
    return rolls


def flat(tokens: Tokens, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([x for xs in tokens for x in xs], dtype=dtype)


def as_batch(rolls: list[Roll], *columns: str, dtype: torch.dtype = torch.float32) -> Batch:
    """`columns` of Batch to fill; `advantage` is one too."""
    names = FILLED | {"advantage": "advantage"}
    filled: dict[str, Any] = {c: flat([getattr(r, names[c]) for r in rolls], dtype) for c in columns}
    lengths = torch.tensor([0] + [len(r.mask) for r in rolls])
    return Batch(
        tokens=torch.zeros(int(lengths.sum()), dtype=torch.int32),
        offsets=lengths.cumsum(0),
        mask=torch.tensor([m for r in rolls for m in r.mask], dtype=torch.bool),
        rollout_logp=flat([r.engine for r in rolls], dtype),
        reward=torch.tensor([NAN if r.reward is None else r.reward for r in rolls], dtype=torch.float32),
        group=torch.tensor([7 * r.group + 3 for r in rolls], dtype=torch.int64),
        baseline=torch.tensor([NAN if r.baseline is None else r.baseline for r in rolls], dtype=torch.float32),
        **filled,
    )
