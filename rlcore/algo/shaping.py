"""What a step trains on, decided when its samples are scored: which groups, which rollouts, and rewards less a penalty.

Only training is shaped: an evaluation sees rewards as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlcore.config import RolloutConfig
from rlcore.records import Group, Rollout

Penalty = Callable[[int], float]  # tokens of a response -> what its reward loses, 0 or below


def carries_signal(group: Group, cfg: RolloutConfig) -> bool:
    """Whether the group can teach: two of its scored rewards differ, and one of its scored rollouts is trained on."""
    return group.differs and any(_trains(r, cfg) and r.reward is not None for r in group.rollouts)


def shape(groups: Sequence[Group], wanted: int, cfg: RolloutConfig, penalty: Penalty | None) -> list[Group]:
    """The groups with what is decided about them: `used`, `trains`, and the rewards less `penalty`.

    With rollout.dynamic_draws the first `wanted` groups that carry a signal are used (arXiv 2503.14476, eq. 11), or the
    first one where none does, for a batch is never empty. The signal is judged before the penalty, as in the paper.
    """
    used = _used(groups, wanted, cfg) if cfg.dynamic_draws else set(range(len(groups)))
    return [_shaped(group, i in used, cfg, penalty) for i, group in enumerate(groups)]


def _used(groups: Sequence[Group], wanted: int, cfg: RolloutConfig) -> set[int]:
    signal = [i for i, group in enumerate(groups) if carries_signal(group, cfg)]
    return set(signal[:wanted] or range(min(1, len(groups))))


def _shaped(group: Group, used: bool, cfg: RolloutConfig, penalty: Penalty | None) -> Group:
    """The greedy answer loses the penalty too: both are of one reward."""
    rollouts = [_less(dataclasses.replace(r, trains=_trains(r, cfg)), penalty) for r in group.rollouts]
    return Group(rollouts, None if group.greedy is None else _less(group.greedy, penalty), used)


def _trains(rollout: Rollout, cfg: RolloutConfig) -> bool:
    return cfg.train_truncated or rollout.finish != "length"


def _less(rollout: Rollout, penalty: Penalty | None) -> Rollout:
    if penalty is None or rollout.reward is None:
        return rollout
    taken = penalty(rollout.response_tokens)
    return dataclasses.replace(rollout, reward=rollout.reward + taken, parts=rollout.parts | {"overlong": taken})
