"""Advantages: a number a token, from the rewards of a step's rollouts.

All start from `outcome`: the reward less the KL penalties of the rollout's tokens, so a KL in the reward works with
every one. What all do where the field disagrees (a failed score, a group of one, whitening): docs/algorithms.md.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rlcore.algo import ADVANTAGES
from rlcore.algo.stats import spread, sums
from rlcore.config import AdvantageConfig
from rlcore.errors import ConfigError
from rlcore.plugins import call, plugin
from rlcore.records import Batch


class AdvantageFn(Protocol):
    def __call__(self, batch: Batch, cfg: AdvantageConfig) -> Tensor:
        """(N,) float32, 0 where mask is False.

        Start from `outcome(batch)`, (B,): the reward less the KL of kl.place=reward, NaN where scoring failed. One that
        reads `batch.reward` instead trains without that KL.
        """
        ...


def outcome(batch: Batch) -> Tensor:
    """(B,) float64: the reward minus the sum of its tokens' `penalty`, where that is filled; NaN without a reward."""
    reward = batch.reward.double()
    return reward if batch.penalty is None else reward - sums(batch.penalty.double(), batch)


class _Groups:
    """The outcomes of a batch, and sums over those of one group that have a reward. All are (B,) float64: every
    rollout has its group's number."""

    def __init__(self, batch: Batch) -> None:
        reward = outcome(batch)
        self.valid = ~reward.isnan()
        self.reward = reward.where(self.valid, 0.0)
        _, self.index = batch.group.unique(return_inverse=True)
        self.number = int(self.index.max()) + 1 if len(self.index) else 0
        self.count = self.sum(torch.ones_like(reward))
        self.mean = self.sum(self.reward) / self.count.clamp(min=1)
        # Compared exactly: a mean of equal numbers can be off in its last bit, which a deviation would blow up.
        inf = float("inf")
        low = self._reduce(reward.where(self.valid, inf), "amin", inf)
        self.differs = self._reduce(reward.where(self.valid, -inf), "amax", -inf) > low

    def sum(self, x: Tensor) -> Tensor:
        filled = x.where(self.valid, 0.0)
        return torch.zeros(self.number, dtype=x.dtype).index_add(0, self.index, filled)[self.index]

    def smallest(self, x: Tensor) -> Tensor:
        """Over all rollouts of the group, those without a reward too."""
        return self._reduce(x, "amin", float("inf"))

    def _reduce(self, x: Tensor, how: str, start: float) -> Tensor:
        start_each = torch.full((self.number,), start, dtype=x.dtype)
        return start_each.scatter_reduce(0, self.index, x, how)[self.index]

    def over_tokens(self, advantage: Tensor, batch: Batch) -> Tensor:
        """(N,) float32: each rollout's advantage on its masked tokens; 0 where its group carries no signal."""
        return _over_tokens(advantage.where(self.valid & self.differs, 0.0), batch)


def _over_tokens(advantage: Tensor, batch: Batch) -> Tensor:
    return spread(advantage, batch).where(batch.mask, 0.0).float()


def grpo(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: the outcome against its group, the same for every token of a rollout (arXiv 2402.03300, 4.1.2).

    `(r - mean) / (std + epsilon)`; the mean includes the rollout itself, the standard deviation is the unbiased one,
    epsilon 1e-6, as most peers have it (a leave-one-out mean is `rloo`). `std_normalize` False leaves the division out:
    Dr.GRPO (arXiv 2503.20783, section 3.2).
    """
    group = _Groups(batch)
    centered = group.reward - group.mean
    if cfg.std_normalize:
        variance = group.sum(centered.square()) / (group.count - 1).clamp(min=1)
        centered = centered / (variance.sqrt() + cfg.epsilon)
    return group.over_tokens(centered, batch)


def rloo(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: the outcome minus the mean of the others of its group (RLOO, arXiv 2402.14740),
    written as `(r - mean) * n / (n - 1)` with the mean over all n."""
    group = _Groups(batch)
    scale = group.count / (group.count - 1).clamp(min=1)
    return group.over_tokens((group.reward - group.mean) * scale, batch)


def opo(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: `r_i - sum(l_j r_j) / sum(l_j)` over the group, l the response's tokens: the baseline of least
    variance when gradients of tokens are independent (OPO, arXiv 2505.23585).

    l counts masked tokens. A rollout that has none because it does not train counts all its tokens after the prompt,
    whose length a rollout of its group with masked tokens shows: its length is known, and it is in the baseline.
    """
    group = _Groups(batch)
    length = _response_tokens(batch, group)
    baseline = group.sum(length * group.reward) / group.sum(length).clamp(min=1)
    return group.over_tokens(group.reward - baseline, batch)


def _response_tokens(batch: Batch, group: _Groups) -> Tensor:
    """(B,) float64: masked tokens, else tokens after the prompt; 0 where no rollout of the group has masked tokens."""
    masked = sums(torch.ones(len(batch.tokens), dtype=torch.float64), batch)
    rollout, inf = batch.rollout_of_token, float("inf")
    position = (torch.arange(len(batch.tokens)) - batch.offsets[rollout]).double().where(batch.mask, inf)
    first = torch.full((len(batch),), inf, dtype=torch.float64).scatter_reduce(0, rollout, position, "amin")
    after_prompt = (batch.lengths.double() - group.smallest(first)).clamp(min=0)
    return masked.where(masked > 0, after_prompt)


def gpg(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: `(r - group mean) * groups / groups with a signal` (GPG, arXiv 2504.02546, F_norm 1).

    The factor makes up for the groups whose outcomes are all equal: they add nothing to the gradient but are in the
    loss's average. So only groups with a masked token are counted, as only they are in that average.
    """
    group = _Groups(batch)
    trains = torch.zeros(len(batch), dtype=torch.bool)
    trains[batch.rollout_of_token[batch.mask]] = True
    groups = len(group.index[trains].unique())
    with_signal = len(group.index[trains & group.differs].unique())
    return group.over_tokens((group.reward - group.mean) * (groups / max(1, with_signal)), batch)


def reinforce_plus_plus_baseline(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: the outcome minus its group's mean (arXiv 2501.03262, "REINFORCE++ w/ Baseline"); its
    preset sets `whiten`, which divides by the deviation over all response tokens of the step."""
    group = _Groups(batch)
    return group.over_tokens(group.reward - group.mean, batch)


def remax(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: the outcome minus the reward of the prompt's greedy answer, `batch.baseline` (arXiv 2310.10505,
    Algorithm 1). 0 where the greedy answer or the rollout has no reward. The baseline carries no KL penalty.

    A penalty is taken from all tokens alike, also from those after the one it is for.
    """
    advantage = outcome(batch) - batch.baseline.double()
    return _over_tokens(advantage.where(~advantage.isnan(), 0.0), batch)


def reinforce_plus_plus(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: what is still to come from each token on, `sum_k gamma^k r_(t+k)`, where a token's reward is minus
    its penalty, plus the reward of the rollout on its last masked token (arXiv 2501.03262).

    Its preset sets `whiten`: unbiased variance over all response tokens of all ranks.
    """
    return _discounted(batch, torch.zeros(len(batch.tokens), dtype=torch.float64), cfg.gamma, 1.0)


def gae(batch: Batch, cfg: AdvantageConfig) -> Tensor:
    """(N,) float32: `sum_k (gamma lambda)^k delta_(t+k)`, `delta_t = r_t + gamma V_(t+1) - V_t` (arXiv 1506.02438,
    eq. 16), V the column `value`, rewards a token as in reinforce_plus_plus.

    After a rollout's last masked token V is 0, also where it was cut at the limit.
    """
    assert batch.value is not None, "gae needs batch.value"
    return _discounted(batch, batch.value.double(), cfg.gamma, cfg.gae_lambda)


def _discounted(batch: Batch, value: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """GAE over the masked tokens of each rollout; with value 0 and lambda 1 it is the discounted return.

    One pass from the last position to the first, over all rollouts at once.
    """
    reward = torch.zeros_like(value) if batch.penalty is None else -batch.penalty.double()
    token = (batch.mask & ~batch.reward.isnan()[batch.rollout_of_token]).nonzero().squeeze(-1)
    rollout = batch.rollout_of_token[token]
    count = torch.bincount(rollout, minlength=len(batch))
    starts = count.cumsum(0) - count
    last = (starts + count - 1)[count > 0]
    reward[token[last]] += batch.reward.double()[count > 0]
    left = (starts + count)[rollout] - 1 - torch.arange(len(token))  # masked tokens after it in its rollout
    steps = token[left.argsort(stable=True)].split(torch.bincount(left).tolist()) if len(token) else ()

    advantage = torch.zeros_like(value)
    carried, next_value = torch.zeros(len(batch), dtype=value.dtype), torch.zeros(len(batch), dtype=value.dtype)
    of_token = batch.rollout_of_token
    for now in steps:  # every rollout's last token, then those before them
        who = of_token[now]
        delta = reward[now] + gamma * next_value[who] - value[now]
        carried[who] = delta + gamma * gae_lambda * carried[who]
        next_value[who] = value[now]
        advantage[now] = carried[who]
    return advantage.float()


# Those in which 0 says that there was nothing to compare with.
_RELATIVE = {"grpo", "rloo", "remax", "reinforce_plus_plus_baseline", "opo", "gpg"}


def advantage_fn(cfg: AdvantageConfig) -> AdvantageFn:
    """The function `advantage.name` stands for; ConfigError when there is none."""
    return plugin(ADVANTAGES.get(cfg.name, cfg.name), "advantage.name")


def credit(batch: Batch, fn: AdvantageFn, cfg: AdvantageConfig) -> Batch:
    """The batch with `advantage` filled, and where there is a critic `returns`: what it should have guessed.

    `returns = advantage + value` before whitening. Raises ConfigError naming advantage.name when `fn` gives anything
    but (N,) finite numbers, and when a user's raises; what it gives where the mask is False is dropped.
    """
    found = fn(batch, cfg) if cfg.name in ADVANTAGES else call(fn, "advantage.name", cfg.name, batch, cfg)
    raw = _checked(found, batch, cfg.name)
    if batch.value is not None:
        batch = batch.with_(returns=(raw + batch.value).where(batch.mask, 0.0))
    advantage = raw
    if cfg.whiten:
        # Whitening moves the zeros too: of a group that teaches nothing, they stay.
        advantage = whiten(raw, batch.mask).where(_teaches(raw, batch) | (cfg.name not in _RELATIVE), 0.0)
    return batch.with_(advantage=advantage)


def _teaches(raw: Tensor, batch: Batch) -> Tensor:
    """(N,) bool: whether any token of the group has an advantage."""
    _, group = batch.group.unique(return_inverse=True)
    of_token = group[batch.rollout_of_token]
    some = torch.zeros(len(batch), dtype=torch.bool)
    some[of_token[raw != 0]] = True
    return some[of_token]


def _checked(raw: Any, batch: Batch, name: str) -> Tensor:
    want = tuple(batch.tokens.shape)
    if not isinstance(raw, Tensor) or tuple(raw.shape) != want:
        found = f"shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
        raise ConfigError(f"advantage.name: {name} returned {found}; it must return one number a token, shape {want}")
    raw = raw.detach().float().where(batch.mask, 0.0)
    bad = int((~raw.isfinite()).sum())
    if bad:
        raise ConfigError(f"advantage.name: {name} returned {bad} masked tokens of {want[0]} that are not finite")
    return raw


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(N,) float32: `(x - mean) / sqrt(variance + 1e-8)` over all masked tokens of the step, 0 elsewhere.

    The unbiased variance, over the tokens of all ranks (arXiv 2501.03262; a deviation of one rank alone would
    depend on how many there are). All 0 when fewer than two tokens are masked or all are equal.
    """
    chosen = x[mask].double()
    if len(chosen) < 2 or chosen.min() == chosen.max():
        return torch.zeros_like(x, dtype=torch.float32)
    white = (x.double() - chosen.mean()) / (chosen.var(correction=1) + 1e-8).sqrt()
    return white.where(mask, 0.0).float()
