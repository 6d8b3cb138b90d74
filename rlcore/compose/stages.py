"""The stages: what each command learns by, and the file that feeds the one loop. A new one is a line here and a file.

Plain values: the config is checked by them in a second, before torch. The files are in rlcore/train/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlcore.config import Config, value_of

# One update of prompts_per_step rows or pairs a step, on texts that are given.
_GIVEN: dict[str, Any] = {
    "actor.minibatches_per_step": 1,
    "actor.epochs_per_step": 1,
    "kl.coef": 0,
    "rollout.temperature": 1,
    "critic.ranks": 0,
}
# What only training on samples reads, and what only sampling does.
_OF_ROLLOUTS = (
    *("rollouts_per_prompt", "advantage.", "kl.", "reference.", "critic.", "data.curriculum", "sync.max_logp_diff"),
    *("rollout.top_p", "rollout.top_k", "rollout.min_response_tokens"),
    *("rollout.dynamic_draws", "rollout.greedy_baseline", "rollout.train_truncated", "reward.overlong_", "correction."),
)
_OF_SAMPLING = (
    *("rollout.", "reward.", "reward_model.", "sync.", "data.source_column"),
    *("eval.temperature", "eval.top_p", "eval.top_k"),
    *("deadline.rollout_seconds", "deadline.publish_seconds"),
)
_EVERYONES = ("loss.name", "rollout.max_response_tokens")  # what every stage reads all the same


class Stage(NamedTuple):
    """One command of `rlcore`."""

    command: str
    does: str  # a few words
    loss: str | None  # the loss.name it learns by; None: any that weighs what rewards say
    made_by: str  # the class that makes its rows and workers ready, by (cfg, say): see train/build.py
    samples: str  # "always"; "reward.fns": to evaluate, where that and data.eval are set; "never"
    needs: Mapping[str, Any] = {}  # keys that have one value here
    unread: tuple[str, ...] = ()  # beginnings of keys that nothing reads here

    def unmet(self, cfg: Config) -> list[str]:
        """Every key that has another value than it must, in words."""
        return [
            f"{key} is {_shown(value_of(cfg, key))}: rlcore {self.command} needs {key}={_shown(value)}"
            for key, value in self.needs.items()
            if value_of(cfg, key) != value
        ]

    def why_unread(self, key: str, cfg: Config) -> str | None:
        """Why nothing reads this key, and what to do; None: something may."""
        if key in self.needs or key in _EVERYONES:
            return None
        if key.startswith(self.unread):
            return f"nothing reads it in `rlcore {self.command}`; remove it"
        if not key.startswith(_OF_SAMPLING) or self.samples == "always":
            return None
        if self.samples == "never":
            return f"nothing reads it in `rlcore {self.command}`, which samples nothing; remove it"
        missing = "reward.fns" if not cfg.reward.fns else "data.eval"
        if cfg.reward.fns and cfg.data.eval:
            return None
        return f"nothing reads it in `rlcore {self.command}` with {missing} []; remove it or set {missing}"


STAGES: dict[str, Stage] = {
    stage.command: stage
    for stage in (
        Stage(
            "train",
            "reinforcement learning from rewards",
            None,
            "rlcore.train.reinforcement.Reinforcement",
            "always",
            unread=("data.response_column",),
        ),
        Stage(
            "sft",
            "supervised fine-tuning on prompts and responses",
            "sft",
            "rlcore.train.supervised.Supervised",
            "reward.fns",
            _GIVEN,
            _OF_ROLLOUTS,
        ),
        Stage(
            "train-rm",
            "a reward model from preference pairs",
            "bradley_terry",
            "rlcore.train.reward_model.RewardModelling",
            "never",
            _GIVEN,
            (*_OF_ROLLOUTS, "loss.", "data.response_column", "actor.logits_chunk_tokens"),
        ),
        Stage(
            "dpo",
            "a policy from preference pairs",
            "dpo",
            "rlcore.train.dpo.DirectPreference",
            "reward.fns",
            _GIVEN | {"loss.aggregation": "sequence_sum"},
            (*_OF_ROLLOUTS, "data.response_column"),
        ),
    )
}


def stage_of(loss: str) -> Stage:
    """The stage that a run with this loss.name is of."""
    return next((stage for stage in STAGES.values() if stage.loss == loss), STAGES["train"])


def given_texts() -> set[str]:
    """The losses of stages that need no reward."""
    return {stage.loss for stage in STAGES.values() if stage.loss is not None}


def _shown(value: Any) -> str:
    """As it is written in a recipe."""
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))
