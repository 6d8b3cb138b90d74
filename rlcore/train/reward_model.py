"""`rlcore train-rm`: a scoring layer learns from preference pairs, by the loss of Bradley and Terry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcore.data.preferences import Pairs
from rlcore.train.prepare import require_model
from rlcore.train.supervised import Supervised

if TYPE_CHECKING:
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.workers.reward_model import RewardModel


class RewardModelling(Supervised):
    """A sequence classification model of one label, on columns of chosen and rejected responses."""

    role = "reward_model"
    shown = {"train/loss": "loss", "train/accuracy": "accuracy", "train/margin": "margin"}

    def require_model(self) -> None:
        require_model(self.cfg, scores=True)

    def load_tokenizer(self) -> Any:
        from rlcore.workers.reward_model_rank import preference_tokenizer

        return preference_tokenizer(self.cfg.model, self.cfg.data.chat_template)

    def read(self, sources: Sequence[str]) -> Pairs:
        return Pairs(sources, self.cfg.data, self.tokenizer, self.cfg.seed, self.cfg.rollout.max_response_tokens)

    def make_model(self, cluster: Cluster, watch: Watch) -> RewardModel:
        from rlcore.workers.group import rank_group
        from rlcore.workers.reward_model import RewardModel
        from rlcore.workers.reward_model_rank import PreferenceRank

        cfg = self.cfg
        return RewardModel(rank_group(self.role, PreferenceRank, cfg.actor.ranks, cfg, cluster, watch), cfg)
