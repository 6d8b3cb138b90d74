"""What examples/ says works: each is loaded the way a run loads it, and does what its docstring says."""

from __future__ import annotations

import math

import torch

from rlcore.algo.advantage import advantage_fn
from rlcore.algo.loss import policy_loss
from rlcore.config import AdvantageConfig, LossConfig
from rlcore.records import Batch
from tests.close import assert_close

FILE = "examples/custom_algorithm.py"


def batch_of(reward: list[float], **columns: torch.Tensor) -> Batch:
    """Rollouts of one prompt token and two sampled ones, all of one prompt."""
    n = 3 * len(reward)
    scored = ~torch.tensor(reward).isnan().repeat_interleave(3)
    return Batch(
        tokens=torch.zeros(n, dtype=torch.int32), offsets=torch.arange(0, n + 1, 3),
        mask=(torch.arange(n) % 3 > 0) & scored, rollout_logp=torch.zeros(n), reward=torch.tensor(reward),
        group=torch.zeros(len(reward), dtype=torch.int64), baseline=torch.zeros(len(reward)), **columns,
    )  # fmt: skip


def test_rank_counts_wins_and_leaves_the_unscored_out() -> None:
    fn = advantage_fn(AdvantageConfig(name=f"{FILE}:rank"))
    advantage = fn(batch_of([5.0, 1.0, float("nan"), 1.0]), AdvantageConfig())
    assert advantage.reshape(4, 3).tolist() == [[0, 1, 1], [0, -0.5, -0.5], [0, 0, 0], [0, -0.5, -0.5]]


def test_gmpo_is_the_geometric_mean_of_ratios_clipped_on_one_side() -> None:
    fn = policy_loss(LossConfig(name=f"{FILE}:gmpo"))
    old = torch.zeros(6)
    advantage = torch.tensor([0.0, 2.0, 2.0, 0.0, -1.0, -1.0])
    batch = batch_of([1.0, 0.0], old_logp=old, advantage=advantage)
    logp = torch.tensor([0.0, 0.9, -0.9, 0.0, 0.9, -0.9], requires_grad=True)
    loss, stats = fn(logp, batch, LossConfig(clip_low=0.4, clip_high=0.4))
    assert_close(loss[[1, 5]], [-2 * math.exp((0.4 - 0.9) / 2), math.exp((0.9 - 0.4) / 2)], 10, "losses")  # 0.1
    assert stats["clip_fraction"].tolist() == [0, 1, 0, 0, 0, 1]
    loss.sum().backward()
    assert logp.grad is not None and logp.grad[1] == 0 and logp.grad[2] != 0 and logp.grad[5] == 0


def test_rank_sees_the_kl_in_the_reward() -> None:
    """Of two answers of equal reward, the one further from the reference loses; a penalty can outweigh a reward."""
    fn = advantage_fn(AdvantageConfig(name=f"{FILE}:rank"))
    penalty = torch.tensor([0, 0.5, 0.5, 0, 0.0, 0.1, 0, 3.0, 2.5])
    advantage = fn(batch_of([1.0, 1.0, 5.0], penalty=penalty), AdvantageConfig())
    assert advantage.reshape(3, 3)[:, 1:].tolist() == [[0, 0], [1, 1], [-1, -1]]
    without = fn(batch_of([1.0, 1.0, 5.0]), AdvantageConfig())
    assert without.reshape(3, 3)[:, 1:].tolist() == [[-0.5, -0.5], [-0.5, -0.5], [1, 1]]
