"""The proof that the engines sample with the weights that the trainer has: their log-probabilities agree."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rlcore.config import Config, Correction
from rlcore.errors import SyncError
from rlcore.records import Batch, Group, Prompt

if TYPE_CHECKING:
    from rlcore.algo.stats import Learned
    from rlcore.workers.actor import Actor
    from rollout.collector import Collector


class Agreement:
    """The limit of sync.max_logp_diff, on every step's own tokens and, for the last version, on two fresh samples.

    `prompts` are asked for those. A correction is for tokens that differ, so with one the mean counts, not the largest.
    """

    def __init__(self, cfg: Config, dtype: str, actor: Actor, rollouts: Collector, prompts: list[Prompt]) -> None:
        self.cfg, self.actor, self.rollouts, self.prompts = cfg, actor, rollouts, prompts
        self.by_largest = cfg.correction.name == Correction.none
        default = 1e-3 if dtype == "float32" else 1.0 if self.by_largest else 0.1
        self.most = default if cfg.sync.max_logp_diff is None else cfg.sync.max_logp_diff

    def require(self, learned: Learned, step: int) -> None:
        """Raise SyncError (exit 5) when what the engines said of the step's tokens is not what the trainer says."""
        self._require(learned.logp_diff_max if self.by_largest else learned.logp_diff_mean, step)

    def probe(self, step: int) -> None:
        """The same of two fresh samples: a version is checked by the next step's tokens, and the last one has none."""
        from rollout.collector import Ask

        groups = self.rollouts.sample(self.prompts[:1], Ask.for_training(2, self.cfg.rollout))
        scored = [Group([dataclasses.replace(r, reward=0.0) for r in g.rollouts]) for g in groups]
        batch = Batch.from_groups(scored)
        difference = (self.actor.logp(batch) - batch.rollout_logp)[batch.mask].abs()
        if len(difference):
            self._require(float(difference.max() if self.by_largest else difference.mean()), step)

    def _require(self, difference: float, step: int) -> None:
        if not difference <= self.most:
            raise SyncError(
                f"step {step}: the engine's and the trainer's log-probabilities differ by {difference:.3g} "
                f"(sync.max_logp_diff {self.most:g}), so the engine does not sample from version {step} of the weights"
            )
