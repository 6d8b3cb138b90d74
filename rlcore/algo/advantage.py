"""Advantages: a number a token, from the rewards of a step's rollouts."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.config import AdvantageConfig
from rlcore.protocols import AdvantageFn, plugin
from rlcore.records import Batch


def grpo(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: the reward against its group, the same for every token of a rollout (arXiv 2402.03300, 4.1.2).

    `(r - mean) / (std + epsilon)` over the rollouts of one prompt that have a reward; the mean includes the rollout
    itself, the standard deviation is the unbiased one. 0 where all rewards of the group are equal or only one rollout
    has one, where the reward is NaN, and where the mask is False.
    """
    # float64, so that equal rewards give a deviation that is small beside any epsilon.
    reward = batch.reward.double()
    valid = ~reward.isnan()
    _, group = batch.group.unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    filled = reward.where(valid, 0.0)
    count = torch.zeros(groups, dtype=torch.float64).index_add(0, group, valid.double())
    mean = torch.zeros(groups, dtype=torch.float64).index_add(0, group, filled) / count.clamp(min=1)
    centered = (filled - mean[group]).where(valid, 0.0)
    variance = torch.zeros(groups, dtype=torch.float64).index_add(0, group, centered.square()) / (count - 1).clamp(
        min=1
    )
    advantage = centered / (variance.sqrt() + cfg.epsilon)[group] if cfg.std_normalize else centered
    advantage = advantage.where(_differs(filled, valid, group, groups)[group], 0.0)
    return (advantage[batch.rollout_of_token] * batch.mask).float()


def _differs(reward: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """(groups,) bool: whether the valid rewards of the group are not all the same, exactly."""
    inf = float("inf")
    low = torch.full((groups,), inf, dtype=reward.dtype).scatter_reduce(0, group, reward.where(valid, inf), "amin")
    high = torch.full((groups,), -inf, dtype=reward.dtype).scatter_reduce(0, group, reward.where(valid, -inf), "amax")
    return high > low


def zero_advantage_fraction(batch: Batch) -> float:
    """The share of groups that teach nothing: every advantage of theirs is 0. `batch.advantage` must be filled."""
    assert batch.advantage is not None
    groups = batch.group.unique()
    teaches = batch.group[batch.rollout_of_token][batch.advantage != 0].unique()
    return 1.0 - len(teaches) / max(1, len(groups))


BUILTIN: dict[str, AdvantageFn] = {"grpo": grpo}


def advantage_fn(cfg: AdvantageConfig) -> AdvantageFn:
    """The function `advantage.name` stands for; ConfigError when there is none."""
    return BUILTIN[cfg.name] if cfg.name in BUILTIN else plugin(cfg.name, "advantage.name")
