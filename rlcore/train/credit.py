"""Groups to a batch: the columns that a configuration needs, each filled once, the advantage last."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rewards.length import overlong_penalty
from rlcore.algo.shaping import shape
from rlcore.config import Config, KLPlace
from rlcore.records import Batch, Group
from rlcore.runs import metrics
from rlcore.runs.require_scores import require_scores

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore.algo.shaping import Penalty
    from rlcore.runs.tracker import Tracker
    from rlcore.train.run import Numbers
    from rlcore.workers.actor import Actor
    from rlcore.workers.critic import Critic
    from rlcore.workers.reference import Reference

Column = Callable[[Batch], "Tensor"]


class Rows:
    """Credit of what is learned as it is: rows with answers, or pairs."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = columns

    def __call__(self, groups: Sequence[Group], step: int) -> tuple[Batch, Numbers]:
        return filled(Batch.from_groups(groups), self.columns), {}


class Rewarded:
    """Credit of rollouts: what is trained on, the KL's and the critic's columns, the advantage. Shows the rollouts."""

    def __init__(self, cfg: Config, columns: Mapping[str, Column], tracker: Tracker) -> None:
        from rlcore.algo.advantage import advantage_fn  # torch: not before the config is known to be right

        self.cfg, self.columns, self.tracker = cfg, columns, tracker
        self.advantage = advantage_fn(cfg.advantage)
        self.penalty = penalty_of(cfg)

    def __call__(self, groups: Sequence[Group], step: int) -> tuple[Batch, Numbers]:
        """Raises RewardError when more rollouts than reward.max_failed_fraction have no score."""
        from rlcore.algo.advantage import credit

        groups = shape(groups, self.cfg.prompts_per_step, self.cfg.rollout, self.penalty)
        numbers = metrics.of_rollouts(groups)
        self.tracker.rollouts(step + 1, groups)
        require_scores(groups, self.cfg.reward.max_failed_fraction, quarantine(self.cfg))
        batch = credit(filled(Batch.from_groups(groups), self.columns), self.advantage, self.cfg.advantage)
        oldest = min(r.version for g in groups for r in g.rollouts)
        numbers["rollout/staleness_steps"] = float(step - oldest)
        numbers["group/zero_advantage_fraction"] = 1 - batch.groups_with_advantage / batch.groups
        return batch, numbers


def penalty_of(cfg: Config) -> Penalty | None:
    """What reward.overlong_fraction takes from a reward; None: nothing."""
    reward = cfg.reward
    if not reward.overlong_fraction:
        return None
    return functools.partial(
        overlong_penalty,
        limit=cfg.rollout.max_response_tokens,
        fraction=reward.overlong_fraction,
        penalty=reward.overlong_penalty,
    )


def quarantine(cfg: Config) -> str:
    """The file of the samples whose rewards failed."""
    return f"{cfg.run_dir}/quarantine.jsonl"


def policy_columns(cfg: Config, actor: Actor, reference: Reference | None, critic: Critic | None) -> dict[str, Column]:
    """The columns this configuration needs before the advantage, and who fills each.

    Where `old_logp` is not among them, the one update of a step takes it from its own forward.
    """
    from rlcore.algo.kl import penalty

    in_reward = reference is not None and cfg.kl.place == KLPlace.reward
    needed: dict[str, Column] = {}
    if in_reward or cfg.actor.epochs_per_step * cfg.actor.minibatches_per_step > 1:
        needed["old_logp"] = actor.logp
    if reference is not None:
        needed["ref_logp"] = reference.logp
    if in_reward:
        needed["penalty"] = lambda batch: penalty(batch, cfg.kl, actor.kl.coef)
    if critic is not None:
        needed["value"] = critic.value
    return needed


def filled(batch: Batch, columns: Mapping[str, Column]) -> Batch:
    """The batch with these columns, in this order."""
    for name, fill in columns.items():
        batch = batch.with_(**{name: fill(batch)})
    return batch
