"""The driver's handle of the critic: values, and updates beside the actor's."""

from __future__ import annotations

import dataclasses

import ray
import torch
from torch import Tensor

from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import merge
from rlcore.algo.value import ReturnScale, explained_variance
from rlcore.config import Config
from rlcore.records import COLUMNS, Batch
from rlcore.workers.group import WorkerGroup
from rlcore.workers.role import Role


class Critic(Role):
    """The value model: its guesses, and its updates beside the actor's, by the same minibatches and schedule.

    With `critic.whiten_returns` its ranks learn and say numbers in deviations from the running mean of the returns;
    everything outside this class is in the reward's unit, but for the loss.
    """

    def __init__(self, group: WorkerGroup, cfg: Config) -> None:
        super().__init__(group, cfg)
        self.scale = ReturnScale()
        self._begun: tuple[list[ray.ObjectRef], dict[str, float]] | None = None

    def value(self, batch: Batch) -> Tensor:
        """(N,) float32: the guess, before each token of `batch`, of the rewards from it on; 0 where mask is False."""
        found = self._column("value", dataclasses.replace(batch, allowed=None))
        return self.scale.denormalize(found).where(batch.mask, 0.0)

    def begin(self, batch: Batch, step: int) -> None:
        """Start all optimizer updates of step `step` (0-based), and do not wait. `value` and `returns` are filled."""
        assert batch.value is not None and batch.returns is not None and self._begun is None
        cfg = self.cfg
        rate = learning_rate(step, cfg.steps, cfg.actor, peak=cfg.critic.learning_rate)
        known = {"critic/lr": rate, "critic/explained_variance": explained_variance(batch)}
        # What the ranks said, in their own unit, is what their clip compares with; the targets are by the newest scale.
        value = self.scale.normalize(batch.value)
        if cfg.critic.whiten_returns:
            self.scale.observe(batch.returns, batch.mask)
        returns = self.scale.normalize(batch.returns)
        unused = dict.fromkeys({"allowed", *COLUMNS} - {"value", "returns"})
        targets = dataclasses.replace(batch, **unused, value=value, returns=returns)
        work = self._split(targets, cfg.actor.epochs_per_step)
        self._begun = self.group.begin("update", each=[(w, rate) for w in work]), known

    def finish(self) -> dict[str, float]:
        """Wait for what `begin` started; metrics `critic/...`. `critic/explained_variance` is of the values the
        advantages were made of: 1 is perfect, 0 or less no better than a constant."""
        assert self._begun is not None
        refs, known = self._begun
        self._begun = None
        metrics = merge(self.group.finish("update", refs, self.group.deadline.update_seconds), "critic") | known
        if "critic/value" in metrics:
            metrics["critic/value"] = float(self.scale.denormalize(torch.tensor(metrics["critic/value"])))
        return metrics

    def state(self) -> dict[str, float]:
        """What `save` leaves out; JSON."""
        return self.scale.state()

    def restore(self, state: dict[str, float]) -> None:
        self.scale.restore(state)
