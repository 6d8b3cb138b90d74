"""Held-out numbers of the weights of a step: of answers that are sampled, or of given rows and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlcore.config import Config
from rlcore.records import Batch, Prompt
from rlcore.runs import metrics
from rlcore.runs.require_scores import require_scores
from rlcore.train.credit import Column, filled, quarantine

if TYPE_CHECKING:
    from rlcore.runs.tracker import Tracker
    from rlcore.train.run import Numbers
    from rlcore.train.sampling import Sampling
    from rlcore.workers.actor import Actor
    from rlcore.workers.reward_model import RewardModel
    from rollout.collector import Collector


class Sampled:
    """`eval/NAME/accuracy` and its kin: one answer to every held-out prompt of each source, scored."""

    phase = "eval"

    def __init__(
        self, cfg: Config, rollouts: Collector, prompts: Mapping[str, list[Prompt]], names: list[str], tracker: Tracker
    ) -> None:
        self.cfg, self.rollouts, self.prompts, self.names, self.tracker = cfg, rollouts, prompts, names, tracker

    def __call__(self, step: int) -> Numbers:
        """Raises RewardError when more answers than reward.max_failed_fraction have no score."""
        from rollout.collector import Ask

        numbers: Numbers = {}
        ask = Ask(1, self.cfg.eval.temperature)
        if ask.temperature > 0:
            ask = ask._replace(top_p=self.cfg.eval.top_p, top_k=self.cfg.eval.top_k)
        for name, prompts in self.prompts.items():
            groups = self.rollouts.sample(prompts, ask)
            require_scores(groups, self.cfg.reward.max_failed_fraction, quarantine(self.cfg))
            found = metrics.accuracy(groups, self.names)
            numbers |= {f"eval/{name}/{k}": v for k, v in found.items()}
            self.tracker.evaluation(step, name, found, groups)
        return numbers


class Published:
    """No number, but the weights of the step to the engines, for the answers that are sampled next."""

    phase = "publish"

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, step: int) -> Numbers:
        self.sampling.publish(step)
        return {}


class HeldOut:
    """`eval/NAME/loss` and its kin on given rows or pairs: a number of `look` is called what `shown` says."""

    phase = "held_out"

    def __init__(
        self,
        model: Actor | RewardModel,
        batches: Mapping[str, Batch],
        columns: Mapping[str, Column],
        shown: Mapping[str, str],
        tracker: Tracker,
    ) -> None:
        self.model, self.batches, self.columns, self.shown, self.tracker = model, batches, columns, shown, tracker

    def __call__(self, step: int) -> Numbers:
        numbers: Numbers = {}
        for name, batch in self.batches.items():
            seen = self.model.look(filled(batch, self.columns)).metrics
            found = {shown: seen[metric] for metric, shown in self.shown.items()}
            numbers |= {f"eval/{name}/{k}": v for k, v in found.items()}
            self.tracker.evaluation(step, name, found, ())
        return numbers
