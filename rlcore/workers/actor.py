"""The driver's handle of the policy being trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rlcore.algo.kl import Controller
from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import Learned, learned
from rlcore.cluster.deadlines import Worker
from rlcore.config import Config
from rlcore.records import Batch
from rlcore.workers.group import WorkerGroup
from rlcore.workers.role import Role


class Actor(Role):
    """Log-probabilities, updates, weights out, checkpoints.

    With `whole_groups` the rollouts of a group are learned from together, as a loss of pairs needs it.
    """

    def __init__(self, group: WorkerGroup, cfg: Config, whole_groups: bool = False) -> None:
        super().__init__(group, cfg)
        self.kl, self.whole_groups = Controller(cfg.kl), whole_groups

    def logp(self, batch: Batch) -> Tensor:
        """(N,) float32: the log-probability of each token of `batch` under this model, 0 where mask is False."""
        return self._column("logp", batch)

    def update(self, batch: Batch, step: int) -> Learned:
        """All optimizer updates of step `step` (0-based) on its batch. In the critic's `warmup_steps` nothing is
        learned: the rate is 0."""
        rate = self._learning_rate(step)
        return self._run(batch, rate, self.cfg.actor.epochs_per_step if rate else 1)

    def look(self, batch: Batch) -> Learned:
        """The loss and its statistics on a batch that is not learned from."""
        return self._run(batch, 0.0, 1)

    def _run(self, batch: Batch, rate: float, epochs: int) -> Learned:
        each = [(work, rate, self.kl.coef) for work in self._split(batch, epochs, self.whole_groups)]
        stats = self.group.call("update", each=each, seconds=self.group.deadline.update_seconds)
        return learned(stats, "actor", rate)

    def _learning_rate(self, step: int) -> float:
        """The schedule begins when the critic is warm, and ends with the run."""
        wait = self.cfg.critic.warmup_steps if self.cfg.critic.ranks > 0 else 0
        return 0.0 if step < wait else learning_rate(step - wait, self.cfg.steps - wait, self.cfg.actor)

    def connect(self, engines: list[Worker], backend: str, join: Callable[..., Any] | None, seconds: float) -> None:
        """Open the way for weights; `join` opens an nccl group with the engines (rollout.receiver.join_nccl)."""
        self.group.call("connect", [e.handle for e in engines], backend, seconds, join, seconds=seconds)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to every engine as `version`, verified there; see rlcore/workers/sender.py."""
        return self.group.call("publish", version, seconds=self.group.deadline.publish_seconds)[0]

    def save_weights(self, directory: Path) -> None:
        """The weights alone, in Hugging Face format, float32."""
        self._on_disk("save_weights", directory)
