"""Advantages: against hand-worked tables, the formulas computed a second way, and what must never change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.algo import ADVANTAGES
from rlcore.algo.advantage import advantage_fn, credit, grpo, outcome, whiten
from rlcore.config import AdvantageConfig
from rlcore.errors import ConfigError
from rlcore.records import Batch, Group, Prompt, Rollout
from tests.close import Numbers, assert_close
from tests.unit import second_way
from tests.unit.ragged import NAN, as_batch, flat, rollouts
from tests.unit.second_way import Roll

BUILTIN = {name: advantage_fn(AdvantageConfig(name=name)) for name in ADVANTAGES}
COLUMNS = ("penalty", "value")
GROUP_RELATIVE = ("grpo", "rloo", "opo", "gpg", "reinforce_plus_plus_baseline")
many = settings(deadline=None, max_examples=60)


def assert_near(found: Tensor, want: Numbers, name: str = "advantages") -> None:
    """Differences of rewards of order 1, so their rounding is of that order even where they cancel."""
    largest = float(torch.as_tensor(want).abs().max()) if len(found) else 0.0
    assert_close(found, want, 15, name, scale=max(1.0, largest))  # 0.94


# -- golden values. Masks, rewards and greedy rewards of seven rollouts in three groups; t a chosen token, . another.

GOLDEN = [
    (0, 1.0, 0.25, ".ttt"), (0, 0.0, 0.25, ".t"), (0, 0.5, 0.25, ".t.t"),
    (1, 2.0, 1.5, ".tt"), (1, None, 1.5, ".."),
    (2, 1.0, None, ".t"), (2, 1.0, None, ".tt"),
]  # fmt: skip
VALUES = [0, 0.5, 0.25, 0.75, 0, 0, 0, 1.0, 0, 0.5, 0, 1.0, 2.0, 0, 0, 0, 1.0, 0, 0, 0]
PENALTY = [0, 0.1, 0.2, -0.1, 0, 0.5, 0, 0, 0, 0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5]
# Worked by hand: one number a rollout, or one a chosen token.
BY_HAND: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "grpo": ({"epsilon": 0.0}, [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),  # mean 1/2, std 1/2
    "grpo, no std": ({"std_normalize": False}, [0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]),
    "rloo": ({}, [0.75, -0.75, 0.0, 0.0, 0.0, 0.0, 0.0]),  # means of the others 1/4, 3/4, 1/2
    "opo": ({}, [1 / 3, -2 / 3, -1 / 6, 0.0, 0.0, 0.0, 0.0]),  # (3*1 + 1*0 + 2*0.5) / 6
    "gpg": ({}, [1.5, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0]),  # one group of three has a signal
    "reinforce_plus_plus_baseline": ({}, [0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]),
    "remax": ({}, [0.75, -0.25, 0.25, 0.5, 0.0, 0.0, 0.0]),
    "reinforce_plus_plus": (
        {"gamma": 0.5},
        [[0.25, 0.5, 1.0], [0.0], [0.25, 0.5], [1.0, 2.0], [], [1.0], [0.5, 1.0]],
    ),
    "gae": (  # deltas of the first: -3/8, 1/8, 1/4, each weighing a quarter of the one before
        {"gamma": 0.5, "gae_lambda": 0.5},
        [[-0.328125, 0.1875, 0.25], [0.0], [-0.75, 0.0], [0.0, 0.0], [], [0.0], [0.25, 1.0]],
    ),
}
WITH_PENALTY: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "reinforce_plus_plus": (
        {"gamma": 0.5},
        [[0.075, 0.35, 1.1], [-0.5], [0.125, 0.25], [1.0, 2.0], [], [1.0], [0.25, 0.5]],
    ),
    "rloo": ({}, [0.925, -1.025, 0.1, 0.0, 0.0, 0.5, -0.5]),  # outcomes 0.8, -0.5, 0.25; 2; 1, 0.5
    "remax": ({}, [0.55, -0.75, 0.0, 0.5, 0.0, 0.0, 0.0]),
}


def golden(penalty: bool) -> Batch:
    rolls = [Roll(g, r, 1, [c == "t" for c in tokens], b) for g, r, b, tokens in GOLDEN]
    for r in rolls:
        r.engine = [0.0] * len(r.mask)
    batch = as_batch(rolls).with_(value=torch.tensor(VALUES))
    return batch.with_(penalty=torch.tensor(PENALTY)) if penalty else batch


@pytest.mark.parametrize(
    ("name", "table"), [*((n, BY_HAND) for n in BY_HAND), *((n, WITH_PENALTY) for n in WITH_PENALTY)]
)
def test_golden(name: str, table: dict[str, tuple[dict[str, Any], list[Any]]]) -> None:
    batch, (changes, by_hand) = golden(table is WITH_PENALTY), table[name]
    found = BUILTIN[name.split(",")[0]](batch, AdvantageConfig(**changes))
    want = torch.zeros(len(batch.tokens))
    counts = [tokens.count("t") for *_, tokens in GOLDEN]
    flat_list = [x if isinstance(x, list) else [x] * n for x, n in zip(by_hand, counts, strict=True)]
    want[batch.mask] = torch.tensor([x for xs in flat_list for x in xs])
    assert found.dtype == torch.float32
    assert_near(found, want)


def test_whitening_by_hand() -> None:
    batch = golden(False)
    white = credit(batch, BUILTIN["reinforce_plus_plus_baseline"], AdvantageConfig(name="x", whiten=True)).advantage
    assert white is not None
    # 11 tokens: three of 1/2, one of -1/2, the others 0; mean 1/11, variance (1 - 1/11) / 10
    mean, deviation = 1 / 11, math.sqrt((1 - 1 / 11) / 10)
    assert_near(white[batch.mask], [(x - mean) / deviation for x in [0.5] * 3 + [-0.5] + [0.0] * 7])
    assert white[~batch.mask].eq(0).all()


@pytest.mark.parametrize("name", ["reinforce_plus_plus_baseline", "remax"])
def test_whitening_leaves_groups_without_a_signal_at_zero(name: str) -> None:
    rewards = [
        1.0,
        0.0,
        0.0,
        0.5,
        0.5,
        NAN,
        0.3,
    ]  # a group with a signal, one of equal rewards, one left after a failure
    rolls = [
        Roll(g, None if r != r else r, 1, [False, r == r]) for g, r in zip([0, 0, 0, 1, 1, 2, 2], rewards, strict=True)
    ]
    for roll, baseline in zip(rolls, [0.0] * 3 + [0.5] * 2 + [None] * 2, strict=True):
        roll.engine, roll.baseline = [0.0, 0.0], baseline
    white = credit(as_batch(rolls), BUILTIN[name], AdvantageConfig(name=name, whiten=True)).advantage
    assert white is not None and white[6:].tolist() == [0.0] * 8
    assert white[1] > 0 > white[3] == white[5]
    of_a_user = credit(as_batch(rolls), BUILTIN[name], AdvantageConfig(name="mine.py:f", whiten=True)).advantage
    assert of_a_user is not None and of_a_user[1] == white[1] and (of_a_user[7] != 0) == (name == "remax")


# -- a second way


@many
@given(rollouts(), st.sampled_from(sorted(BUILTIN)), st.booleans(), st.sampled_from([1.0, 0.9]), st.booleans())
def test_every_advantage_is_the_papers(rolls: list[Roll], name: str, std: bool, gamma: float, white: bool) -> None:
    batch = as_batch(rolls, *COLUMNS)
    cfg = AdvantageConfig(name=name, std_normalize=std, gamma=gamma, gae_lambda=0.8, epsilon=1e-3, whiten=white)
    want = second_way.advantage(name, rolls, gamma, 0.8, std, 1e-3)
    filled = credit(batch, BUILTIN[name], cfg)
    assert filled.advantage is not None and filled.returns is not None and filled.value is not None
    assert_near(filled.returns, flat(want) + filled.value.double() * batch.mask, "returns")
    raw = BUILTIN[name](batch, cfg)
    assert_near(raw, flat(want))
    if not white:
        assert filled.advantage.equal(raw)
        return
    # Of the code's own float32 numbers: where their deviation is small, whitening blows their rounding up.
    white_want = second_way.whiten([x.tolist() for x in raw.split(batch.lengths.tolist())], rolls)
    if name in GROUP_RELATIVE or name == "remax":
        white_want = second_way.keep_quiet_groups(white_want, want, rolls)
    assert_near(filled.advantage, flat(white_want), "whitened")


def test_gae_with_lambda_one_and_gamma_one_is_the_outcome_less_the_value() -> None:
    batch = golden(False)
    advantage = BUILTIN["gae"](batch, AdvantageConfig())
    assert batch.value is not None
    rewards = batch.reward.nan_to_num()[batch.rollout_of_token]
    assert_near(advantage, (rewards - batch.value) * batch.mask)


def test_lengths_and_leave_one_out_make_the_weighted_sums_vanish() -> None:
    rng = torch.Generator().manual_seed(1)
    rolls = [Roll(0, float(torch.rand(1, generator=rng)), 1, [False] + [True] * n) for n in (1, 4, 2, 9)]
    for r in rolls:
        r.engine = [0.0] * len(r.mask)
    batch = as_batch(rolls)
    over_tokens = BUILTIN["opo"](batch, AdvantageConfig()).sum()  # l_i * A_i
    over_rollouts = BUILTIN["rloo"](batch, AdvantageConfig())[batch.offsets[1:] - 1].sum()
    assert_near(torch.stack([over_tokens, over_rollouts]), [0.0, 0.0], "sums")


# -- what changes nothing


@many
@given(rollouts(least=1), st.sampled_from(sorted(BUILTIN)), st.data())
def test_the_order_of_rollouts_does_not_matter(rolls: list[Roll], name: str, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rolls))))
    batch, cfg = as_batch(rolls, *COLUMNS), AdvantageConfig(name=name, std_normalize=False, gamma=0.9)
    straight = credit(batch, BUILTIN[name], cfg).select(order)
    shuffled = credit(batch.select(order), BUILTIN[name], cfg)
    assert straight.advantage is not None and shuffled.advantage is not None
    assert_near(shuffled.advantage, straight.advantage)


@many
@given(rollouts(), st.sampled_from(sorted(BUILTIN)))
def test_tokens_off_the_mask_do_not_matter(rolls: list[Roll], name: str) -> None:
    """A layout with other prompts and other gaps, and rubbish in them, gives the chosen tokens the same numbers."""
    batch = as_batch(rolls, *COLUMNS)
    bare = as_batch([_chosen_only(r) for r in rolls], *COLUMNS)
    if name == "opo" and any(not r.chosen and len(r.mask) > r.prompt for r in rolls):
        return  # there a rollout's tokens after the prompt count
    cfg = AdvantageConfig(gamma=0.9, gae_lambda=0.5, epsilon=1e-3)
    junk = {c: getattr(batch, c).where(batch.mask, NAN) for c in COLUMNS}
    dirty = as_batch(rolls).with_(**junk)
    found = BUILTIN[name](dirty, cfg)
    assert found[~batch.mask].eq(0).all()
    assert_near(found[batch.mask], BUILTIN[name](bare, cfg)[bare.mask])


def _chosen_only(r: Roll) -> Roll:
    def keep(xs: list[float]) -> list[float]:
        return [0.0] + [xs[i] for i in r.chosen]

    return Roll(
        r.group, r.reward, 1, [False] + [True] * len(r.chosen), r.baseline, engine=keep(r.engine),
        value=keep(r.value), penalty=keep(r.penalty),
    )  # fmt: skip


# -- groups and rollouts that cannot teach


@pytest.mark.parametrize("name", GROUP_RELATIVE)
@pytest.mark.parametrize("rewards", [[0.3], [NAN, 0.3], [NAN, NAN], [0.1] * 7, [0.7] * 3, [-1e6] * 5])
def test_groups_without_a_signal_are_exactly_zero(name: str, rewards: list[float]) -> None:
    rolls = [Roll(0, None if math.isnan(r) else r, 1, [False, *[r == r] * (i + 1)]) for i, r in enumerate(rewards)]
    for r in rolls:
        r.engine = [0.0] * len(r.mask)
    batch = as_batch(rolls)
    advantage = BUILTIN[name](batch, AdvantageConfig(epsilon=0.0))
    assert advantage.tolist() == [0.0] * len(batch.tokens)


def test_a_rollout_that_does_not_train_counts_in_the_baseline() -> None:
    prompt = Prompt("p", [5, 6], "")

    def rollout(reward: float, tokens: int, trains: bool = True) -> Rollout:
        n = 2 + tokens
        mask = [False, False] + [True] * tokens
        return Rollout(prompt, [0] * n, [0.0] * n, mask, "length", 0, reward=reward, trains=trains)

    batch = Batch.from_groups([Group([rollout(1.0, 1), rollout(0.0, 3), rollout(0.0, 4, trains=False)])])
    cfg = AdvantageConfig(std_normalize=False)
    assert_near(grpo(batch, cfg)[batch.mask], [2 / 3, -1 / 3, -1 / 3, -1 / 3])
    assert_near(BUILTIN["rloo"](batch, cfg)[batch.mask], [1.0, -0.5, -0.5, -0.5])
    assert_near(BUILTIN["opo"](batch, cfg)[batch.mask], [7 / 8, -1 / 8, -1 / 8, -1 / 8])  # 1 of 8 tokens was right


def test_the_outcome_is_the_reward_less_the_penalties_of_chosen_tokens() -> None:
    found = outcome(golden(True))
    assert found.dtype == torch.float64 and found.isnan().tolist() == [False] * 4 + [True] + [False] * 2
    assert_near(found.nan_to_num(9.0).float(), [0.8, -0.5, 0.25, 2.0, 9.0, 1.0, 0.5], "outcomes")


@pytest.mark.parametrize("name", sorted(BUILTIN))
@pytest.mark.parametrize("white", [False, True])
def test_nothing_degenerate_gives_nan(name: str, white: bool) -> None:
    lone, empty, failed = Roll(0, 1.0, 1, [False, True]), Roll(0, 1.0, 1, [False]), Roll(0, None, 1, [False, False])
    untrained, other = Roll(0, 0.5, 1, [False, False]), Roll(0, 0.0, 1, [False, True])
    cases = [[], [lone], [empty], [failed], [lone, empty], [empty, failed, untrained], [untrained, other]]
    for rolls in cases:
        for r in rolls:
            r.engine = r.value = r.penalty = [0.0] * len(r.mask)
        batch = credit(as_batch(rolls, *COLUMNS), BUILTIN[name], AdvantageConfig(name=name, whiten=white, epsilon=0.0))
        assert batch.advantage is not None and batch.returns is not None
        assert batch.advantage.isfinite().all() and batch.returns.isfinite().all()
        assert batch.advantage[~batch.mask].eq(0).all()


def test_whitening_of_nearly_nothing_is_zero() -> None:
    x = torch.tensor([5.0, 0.1, 0.1, 0.1])
    assert whiten(x, torch.tensor([True, False, False, False])).tolist() == [0.0] * 4
    assert whiten(x, torch.zeros(4, dtype=torch.bool)).tolist() == [0.0] * 4
    assert whiten(x, torch.tensor([False, True, True, True])).tolist() == [0.0] * 4


def test_whitening_does_not_lose_small_differences_beside_a_large_mean() -> None:
    x = torch.full((100_000,), 4096.0)
    x[::2] += 1 / 1024
    white = whiten(x, torch.ones(100_000, dtype=torch.bool))
    want = 1 / 2048 / math.sqrt(1 / 2048**2 * 100_000 / 99_999 + 1e-8)
    assert_near(white, [want, -want] * 50_000, "whitened")


# -- a user's own function


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda b: torch.zeros(len(b)), r"advantage\.name: mine\.py:f returned shape \(7,\).*shape \(20,\)"),
        (lambda b: [0.0] * 20, r"advantage\.name: mine\.py:f returned list"),
        (lambda b: torch.full((20,), NAN), r"advantage\.name: mine\.py:f returned 11 masked tokens of 20"),
        (lambda b: torch.full((20,), 1e300, dtype=torch.float64), r"mine\.py:f returned 11 masked tokens"),
    ],
)
def test_a_wrong_result_names_the_function(result: Any, message: str) -> None:
    batch = golden(False)
    with pytest.raises(ConfigError, match=message):
        credit(batch, lambda b, cfg: result(b), AdvantageConfig(name="mine.py:f"))


def test_what_is_off_the_mask_is_dropped_and_returns_are_before_whitening() -> None:
    batch = golden(False)
    junk = torch.full((20,), 2.0).where(batch.mask, NAN)
    filled = credit(batch, lambda b, cfg: junk.double(), AdvantageConfig(name="mine.py:f", whiten=True))
    assert filled.advantage is not None and filled.advantage.tolist() == [0.0] * 20
    assert filled.advantage.dtype == torch.float32
    assert filled.returns is not None and batch.value is not None
    assert_near(filled.returns, (batch.value + 2.0) * batch.mask, "returns")
    no_critic = as_batch([Roll(0, 1.0, 1, [False, True], engine=[0.0, 0.0])])
    assert credit(no_critic, BUILTIN["rloo"], AdvantageConfig()).returns is None
