"""The numbers of a step that come from its rollouts. One flat namespace of names; nothing here needs torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rlcore.records import Group, Rollout


def of_rollouts(groups: Sequence[Group]) -> dict[str, float]:
    """`reward/...`, `response/...`, `group/...` over all rollouts that were drawn, of groups left out of the batch too.

    Rewards are over scored rollouts only, NaN without any, and what is trained on, the overlong penalty included.
    Greedy answers count in `group/baseline_failed_fraction` alone. See docs/run_directory.md.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    tokens = [r.response_tokens for r in rollouts]
    greedy = [g.greedy for g in groups if g.greedy is not None]
    metrics = {
        "reward/mean": statistics.fmean(rewards) if rewards else float("nan"),
        "reward/std": statistics.pstdev(rewards) if rewards else float("nan"),
        "reward/failed_fraction": 1 - len(rewards) / len(rollouts),
        "group/drawn": float(len(groups)),
        "group/used": float(sum(g.used for g in groups)),
        "group/equal_reward_fraction": statistics.fmean(not g.differs for g in groups),
        "response/tokens_mean": statistics.fmean(tokens),
        "response/truncated_fraction": statistics.fmean(r.finish == "length" for r in rollouts),
    }
    if greedy:
        metrics["group/baseline_failed_fraction"] = statistics.fmean(r.reward is None for r in greedy)
    for name in sorted({n for r in rollouts for n in r.parts}):
        metrics[f"reward/part/{name}"] = statistics.fmean(r.parts[name] for r in rollouts if name in r.parts)
    return metrics | _of_sources(rollouts)


def _of_sources(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`source/NAME/...` where the rollouts are of several sources."""
    by_source: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_source.setdefault(rollout.prompt.source, []).append(rollout)
    metrics: dict[str, float] = {}
    for name, mine in sorted(by_source.items()) if len(by_source) > 1 else ():
        rewards = [r.reward for r in mine if r.reward is not None]
        metrics |= {
            f"source/{name}/reward_mean": statistics.fmean(rewards) if rewards else float("nan"),
            f"source/{name}/failed_fraction": 1 - len(rewards) / len(mine),
            f"source/{name}/rollouts": float(len(mine)),
        }
    return metrics


def accuracy(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """Of one evaluation source: `accuracy` is the mean over the scored answers of the first of the reward functions
    `names` that scored the answer (0 for one that the gate kept from them), NaN when none is scored; `failed_fraction`
    is the share of those without a score."""
    rollouts = [r for g in groups for r in g.rollouts]
    scores = [_first(r, names) for r in rollouts if r.reward is not None]
    return {
        "accuracy": statistics.fmean(scores) if scores else float("nan"),
        "failed_fraction": statistics.fmean(r.reward is None for r in rollouts),
        "tokens_mean": statistics.fmean(r.response_tokens for r in rollouts),
    }


def _first(rollout: Rollout, names: Sequence[str]) -> float:
    if rollout.parts.get("gated") == 1.0:
        return 0.0
    return next(rollout.parts[n] for n in names if n in rollout.parts)
