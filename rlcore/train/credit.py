"""Groups to a batch: the columns that a configuration needs, each filled once, the advantage last."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rewards import names
from rewards.length import overlong_penalty
from rlcore.algo.shaping import shape
from rlcore.config import Config, KLPlace
from rlcore.errors import RewardError, WorkerError
from rlcore.records import MOST_REWARD, Batch, Group
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
        return filled(Batch.from_groups(groups), self.columns, groups), {}


class Rewarded:
    """Credit of rollouts: what is trained on, the KL's and the critic's columns, the advantage. Shows the rollouts."""

    def __init__(self, cfg: Config, columns: Mapping[str, Column], tracker: Tracker) -> None:
        from rlcore.algo.advantage import advantage_fn  # torch: not before the config is known to be right

        self.cfg, self.columns, self.tracker = cfg, columns, tracker
        self.advantage = advantage_fn(cfg.advantage)
        self.penalty = penalty_of(cfg)

    def __call__(self, groups: Sequence[Group], step: int) -> tuple[Batch, Numbers]:
        """Raises RewardError when more rollouts than reward.max_failed_fraction have no score, or one is infinite;
        WorkerError when a column has no finite number for a token that is trained on."""
        from rlcore.algo.advantage import credit

        groups = shape(groups, self.cfg.prompts_per_step, self.cfg.rollout, self.penalty)
        require_finite_rewards(groups, names(self.cfg.reward.fns))
        numbers = metrics.of_rollouts(groups)
        self.tracker.rollouts(step + 1, groups)
        require_scores(groups, self.cfg.reward.max_failed_fraction, quarantine(self.cfg))
        batch = Batch.from_groups(groups)
        require_finite("rollout_logp", batch.rollout_logp, batch, groups)
        batch = credit(filled(batch, self.columns, groups), self.advantage, self.cfg.advantage)
        if batch.returns is not None:
            require_finite("returns", batch.returns, batch, groups)
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


def filled(batch: Batch, columns: Mapping[str, Column], groups: Sequence[Group] = ()) -> Batch:
    """The batch, which is of `groups`, with these columns, in this order. WorkerError for what is no finite number."""
    for name, fill in columns.items():
        batch = batch.with_(**{name: (column := fill(batch))})
        require_finite(name, column, batch, groups)
    return batch


_WHOSE = {
    "rollout_logp": "rollout: the engine's log-probability",
    "old_logp": "actor: the policy's log-probability",
    "ref_logp": "reference: its log-probability",
    "penalty": "reference: the KL penalty",
    "value": "critic: its value",
    "returns": "critic: the return, which is its value and the advantage,",
}


def require_finite(name: str, column: Tensor, batch: Batch, groups: Sequence[Group]) -> None:
    """Raise WorkerError when a token that carries loss has no finite number in this column: the loss made of it can be
    NaN and its gradient 0, so that an update would be made all the same."""
    bad = (batch.mask & ~column.isfinite()).nonzero()[:, 0]
    if not len(bad):
        return
    token = int(bad[0])
    of, trained = int(batch.rollout_of_token[token]), int(batch.mask.sum())
    rollouts = [(g.prompt.id, i) for g in groups if g.used for i in range(len(g.rollouts))]
    where = "rollout {1} of prompt {0}".format(*rollouts[of]) if rollouts else f"rollout {of}"
    raise WorkerError(
        f"{_WHOSE[name]} is {float(column[token])} at token {token - int(batch.offsets[of])} of {where}; of {trained} "
        f"tokens that are trained on {len(bad)} have no finite one, so no update was made; its weights are not finite, "
        "or what it computes of them in model.dtype"
    )


def require_finite_rewards(groups: Sequence[Group], functions: Sequence[str]) -> None:
    """Raise RewardError for a score that no advantage can be made of, by prompt and function: else that is blamed."""
    for group in groups:
        for i, rollout in enumerate(group.drawn):
            if rollout.reward is not None and not abs(rollout.reward) <= MOST_REWARD:
                gave = ", ".join(f"{n} {rollout.parts[n]:g}" for n in functions if n in rollout.parts)
                raise RewardError(
                    f"reward.fns: rollout {i} of prompt {group.prompt.id} has the reward {rollout.reward:g}, which is "
                    f"not a finite number below {MOST_REWARD:g} (its functions gave: {gave}); look at them and at "
                    "reward.weights"
                )
