"""Advantages, losses, KL, averaging, schedules: against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.algo.advantage import advantage_fn, grpo
from rlcore.algo.kl import k3
from rlcore.algo.loss import aggregate, policy_loss, ppo_clip
from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import Stats, Totals, merge
from rlcore.config import ActorConfig, AdvantageConfig, Aggregation, LossConfig, Schedule
from rlcore.errors import ConfigError
from rlcore.records import Batch
from tests.close import assert_close

NAN = float("nan")
K = 10  # the largest error measured is 0.3


def batch_of(rewards: list[float], group: list[int], tokens_each: int = 3, **columns: Any) -> Batch:
    """Rollouts of one prompt token and `tokens_each - 1` sampled ones."""
    n = len(rewards) * tokens_each
    failed = torch.tensor(rewards).isnan().repeat_interleave(tokens_each)
    return Batch(
        tokens=torch.zeros(n, dtype=torch.int32), offsets=torch.arange(0, n + 1, tokens_each),
        mask=(torch.arange(n) % tokens_each > 0) & ~failed, rollout_logp=torch.zeros(n),
        reward=torch.tensor(rewards), group=torch.tensor(group),
        baseline=torch.full((len(rewards),), NAN), **columns,
    )  # fmt: skip


def test_grpo_by_hand() -> None:
    batch = batch_of([1.0, 0.0, 0.0, 5.0, 5.0], [7, 7, 7, 2, 2])
    advantage = grpo(batch, AdvantageConfig(epsilon=0.0))
    std = math.sqrt(1 / 3)  # unbiased: (4/9 + 1/9 + 1/9) / 2
    want = [0.0, 2 / 3 / std, 2 / 3 / std, 0.0, -1 / 3 / std, -1 / 3 / std, 0.0, -1 / 3 / std, -1 / 3 / std]
    assert_close(advantage, want + [0.0] * 6, K, "advantages")


def test_grpo_without_normalization_centers_only() -> None:
    advantage = grpo(batch_of([3.0, 1.0], [0, 0]), AdvantageConfig(std_normalize=False))
    assert advantage.tolist() == [0, 1, 1, 0, -1, -1]


def test_a_rollout_without_a_reward_leaves_the_baseline() -> None:
    with_failure = grpo(batch_of([1.0, NAN, 0.0, 0.0], [0, 0, 0, 0]), AdvantageConfig())
    without = grpo(batch_of([1.0, 0.0, 0.0], [0, 0, 0]), AdvantageConfig())
    assert with_failure[3:6].tolist() == [0, 0, 0]
    assert_close(with_failure[[1, 7, 10]], without[[1, 4, 7]], K, "advantages")


@pytest.mark.parametrize("rewards", [[0.3], [NAN, 0.3], [NAN, NAN], [0.1] * 7, [0.7] * 3])
def test_groups_that_teach_nothing_are_exactly_zero(rewards: list[float]) -> None:
    batch = batch_of(rewards, [0] * len(rewards))
    advantage = grpo(batch, AdvantageConfig(epsilon=0.0))
    assert advantage.tolist() == [0.0] * len(batch.tokens)


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_order_does_not_matter(order: list[int]) -> None:
    batch = batch_of([1.0, 0.0, 2.0, 0.5, NAN, 4.0], [0, 0, 0, 1, 1, 1])
    shuffled = grpo(batch.select(order), AdvantageConfig())
    assert shuffled.equal(batch.with_(advantage=grpo(batch, AdvantageConfig())).select(order).advantage)


def test_k3_is_never_negative_zero_at_equality_and_bounded() -> None:
    d = torch.linspace(-300, 300, 2001)
    assert (k3(torch.zeros_like(d), d) >= 0).all() and k3(torch.zeros_like(d), d).max() == 10
    assert k3(torch.tensor(-1.5), torch.tensor(-1.5)) == 0
    logp = torch.tensor(-1.0, requires_grad=True)
    k3(logp, torch.tensor(-1.5)).backward()
    assert logp.grad is not None
    assert_close(logp.grad, torch.tensor(1 - math.exp(-0.5)), K, "slope")
    far = torch.tensor(-500.0, requires_grad=True)
    k3(far, torch.tensor(0.0)).backward()
    assert far.grad == 0


def test_k3_is_an_unbiased_estimate_of_the_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert_close((p * k3(p.log(), q.log())).sum(), (p * (p / q).log()).sum(), K, "divergence")


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"),
    [(1.0, 0.0, True), (-1.0, 0.0, True), (1.0, 0.5, False), (1.0, -0.5, True), (-1.0, -0.5, False), (-1.0, 0.5, True)],
)
def test_ppo_clip_stops_only_what_goes_further_away(advantage: float, log_ratio: float, moves: bool) -> None:
    batch = batch_of([0.0], [0], old_logp=torch.full((3,), -1.0), advantage=torch.full((3,), advantage))
    logp = torch.full((3,), -1.0 + log_ratio, requires_grad=True)
    loss, stats = ppo_clip(logp, batch, LossConfig())
    loss.sum().backward()
    want = -advantage * math.exp(log_ratio) if moves else 0.0
    assert logp.grad is not None
    assert_close(logp.grad, [want] * 3, K, "slope")
    assert stats["clip_fraction"].tolist() == [0.0 if moves else 1.0] * 3


def test_clip_limits_are_separate() -> None:
    batch = batch_of([0.0], [0], old_logp=torch.zeros(3), advantage=torch.ones(3))
    loss, _ = ppo_clip(torch.full((3,), 1.0), batch, LossConfig(clip_low=0.1, clip_high=0.28))
    assert_close(loss, [-1.28] * 3, K, "loss")


@settings(deadline=None)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=8), st.integers(1, 7), st.sampled_from(Aggregation))
def test_shares_of_any_split_add_up_to_the_whole(lengths: list[int], cut: int, how: Aggregation) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    g = torch.Generator().manual_seed(n)
    mask = torch.rand(n, generator=g) > 0.4
    per_token = torch.randn(n, generator=g, dtype=torch.float64).where(mask, NAN)
    batch = Batch(
        tokens=torch.zeros(n, dtype=torch.int32), offsets=offsets, mask=mask, rollout_logp=torch.zeros(n),
        reward=torch.zeros(len(lengths)), group=torch.zeros(len(lengths), dtype=torch.int64),
        baseline=torch.zeros(len(lengths)),
    )  # fmt: skip
    totals = Totals.of(batch)
    cut = min(cut, len(lengths))
    parts = [list(range(cut)), list(range(cut, len(lengths)))]
    shares = [aggregate(per_token[batch.tokens_of(p)], batch.select(p), totals, how, 4) for p in parts if p]
    chosen = [per_token[a:b][mask[a:b]] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    means = [c.mean() for c in chosen if len(c)]
    if not means:
        return
    total = torch.cat(chosen).sum()
    want = {
        Aggregation.token_mean: total / len(torch.cat(chosen)),
        Aggregation.sequence_mean: sum(means) / len(means),
        Aggregation.sequence_sum: total / len(means),
        Aggregation.constant_length: total / len(means) / 4,
    }[how]
    # Numbers of order 1 are added up, and may cancel.
    assert_close(torch.stack(shares).sum(), torch.as_tensor(want), 40, "average", scale=1.0)  # 2.0


def test_names_are_found_and_unknown_ones_refused(tmp_path: Any) -> None:
    assert policy_loss(LossConfig()) is ppo_clip and advantage_fn(AdvantageConfig()) is grpo
    assert policy_loss(LossConfig(name="sft"))(torch.tensor([-2.0]), batch_of([0.0], [0]), LossConfig())[0] == 2.0
    (tmp_path / "mine.py").write_text("def loss(logp, batch, cfg):\n    return -logp, {}\n")
    assert callable(policy_loss(LossConfig(name=f"{tmp_path}/mine.py:loss")))
    with pytest.raises(ConfigError, match="loss.name: ppo_clipp is not a built-in name"):
        policy_loss(LossConfig(name="ppo_clipp"))
    with pytest.raises(ConfigError, match="advantage.name"):
        advantage_fn(AdvantageConfig(name="grp"))


def test_schedules() -> None:
    def rates(schedule: Schedule, warmup: int) -> list[float]:
        cfg = ActorConfig(learning_rate=8.0, schedule=schedule, warmup_steps=warmup)
        return [learning_rate(s, 8, cfg) for s in range(8)]

    assert rates(Schedule.constant, 0) == [8.0] * 8
    assert rates(Schedule.constant, 4)[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert rates(Schedule.linear, 0) == [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert rates(Schedule.linear, 4) == [2.0, 4.0, 6.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    critics = ActorConfig(learning_rate=8.0, schedule=Schedule.linear, warmup_steps=4)
    assert [learning_rate(s, 8, critics, peak=2.0) for s in (0, 3, 4, 6)] == [0.5, 2.0, 2.0, 1.0]
    cosine = rates(Schedule.cosine, 0)
    assert cosine[0] == 8.0 and 0 < cosine[7] < 0.5
    assert_close(cosine[4], 4.0, K, "half way")


def test_merged_statistics_are_means_over_all_tokens_of_all_ranks() -> None:
    ranks = [Stats(), Stats()]
    for rank, values in zip(ranks, ([1.0, 2.0, 9.0], [6.0, 9.0, 9.0]), strict=True):
        mask = torch.tensor(values) < 9
        rank.add("actor/kl", torch.tensor(values), mask)
        rank.add("actor/ratio_max", torch.tensor(values), mask)
        rank.tokens += int(mask.sum())
        rank.updates, rank.loss, rank.grad_norm = 2, 0.5, 3.0
    empty = Stats()
    empty.updates = 2
    empty.add("actor/ratio_max", torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert merge([*ranks, empty]) == {
        "actor/loss": 0.5, "actor/grad_norm": 1.5, "actor/skipped_updates": 0.0,
        "actor/empty_updates": 0.0, "actor/kl": 3.0, "actor/ratio_max": 6.0
    }  # fmt: skip


def test_merged_statistics_name_their_role_and_make_one_number_of_the_weights() -> None:
    stats = Stats()
    stats.updates = stats.tokens = 4
    weight = torch.tensor([1.0, 1.0, 2.0, 0.0])
    for name, values in {"correction/weight": weight, "correction/weight_square": weight.square()}.items():
        stats.add(name, values, torch.ones(4, dtype=torch.bool))
    merged = merge([stats], "critic")
    assert_close(merged.pop("correction/ess"), 1 / 1.5, K, "effective sample size")
    assert merged == {
        "critic/loss": 0.0, "critic/grad_norm": 0.0, "critic/skipped_updates": 0.0,
        "critic/empty_updates": 0.0, "correction/weight": 1.0
    }  # fmt: skip
    nothing, nobody = Stats(), Stats()
    for name in ("correction/weight", "correction/weight_square"):
        nothing.add(name, torch.zeros(2), torch.ones(2, dtype=torch.bool))
        nobody.add(name, torch.ones(2), torch.zeros(2, dtype=torch.bool))
    nothing.tokens = 2
    assert merge([nothing])["correction/ess"] == 0.0
    assert math.isnan(merge([nobody])["correction/ess"]) and math.isnan(merge([nobody])["correction/weight"])
    assert math.isnan(merge([nobody])["actor/loss"])


def test_a_nan_is_never_lost_in_a_maximum() -> None:
    first, second = Stats(), Stats()
    first.add("sync/logp_diff_max", torch.tensor([float("nan"), 0.1]), torch.tensor([True, True]))
    first.add("sync/logp_diff_max", torch.tensor([1e-5]), torch.tensor([True]))
    second.add("sync/logp_diff_max", torch.tensor([1e-5]), torch.tensor([True]))
    assert math.isnan(merge([first, second])["sync/logp_diff_max"])
    assert math.isnan(merge([second, first])["sync/logp_diff_max"])
