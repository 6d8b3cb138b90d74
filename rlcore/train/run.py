"""What the loop is made of, and what one step asks of several parts at once."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.config import Config, Correction, KLPlace
from rlcore.errors import WorkerError
from rlcore.records import Batch, Group, Prompt
from rlcore.runs import checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from rewards.manager import RewardManager
    from rlcore.algo.advantage import AdvantageFn
    from rlcore.algo.kl import Controller
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster, Phases
    from rlcore.data.prompts import Prompts
    from rlcore.runs.checkpoint import Checkpoints
    from rlcore.runs.tracker import Tracker
    from rlcore.workers.group import Actor, Critic, Reference, WorkerGroup
    from rollout.collector import Collector

_MOST_STEPS_SKIPPED = 3
Column = Callable[[Batch], "Tensor"]


@dataclass
class Parts:
    """`build()` makes the real ones, tests/loop the fake ones.

    columns  what fills a batch before its advantage, in this order: only what this configuration needs
    """

    cfg: Config
    watch: Watch
    phases: Phases
    prompts: Prompts
    evals: dict[str, list[Prompt]]
    rollouts: Collector
    actor: Actor
    advantage: AdvantageFn
    columns: dict[str, Column]
    kl: Controller
    tracker: Tracker
    checkpoints: Checkpoints
    reward_names: list[str]
    dtype: str
    reference: Reference | None = None
    critic: Critic | None = None
    rewards: RewardManager | None = None
    cluster: Cluster | None = None
    groups: list[WorkerGroup] = field(default_factory=list)
    steps_skipped: int = 0  # in a row, in which no update was made

    @property
    def quarantine(self) -> str:
        return str(self.tracker.run_dir / "quarantine.jsonl")

    @property
    def logp_diff(self) -> str:
        """The metric that must stay below `max_logp_diff`. A correction is for tokens that differ, so then the mean."""
        return "sync/logp_diff_max" if self.cfg.correction.name == Correction.none else "sync/logp_diff_mean"

    @property
    def max_logp_diff(self) -> float:
        if self.cfg.sync.max_logp_diff is not None:
            return self.cfg.sync.max_logp_diff
        if self.dtype == "float32":
            return 1e-3
        return 1.0 if self.logp_diff == "sync/logp_diff_max" else 0.1

    @property
    def refreshed(self) -> Path:
        """Where the reference's weights are, once it is no longer the model the run began with."""
        return self.tracker.run_dir / "reference"

    def restore(self) -> int:
        """The step to go on from: 0, or the newest checkpoint's, with all that a run needs to go on restored."""
        found = self.checkpoints.latest()
        shutil.rmtree(self.refreshed, ignore_errors=True)
        if found is None:
            return 0
        state = checkpoint.state_of(found)
        self.actor.load(found)
        self.prompts.restore(state["data"])
        self.kl.restore(state.get("kl", {}))
        if self.critic is not None:
            self.critic.load(found / "critic")
            self.critic.restore(state["critic"])
        if self.reference is not None and (found / "reference").is_dir():
            shutil.copytree(found / "reference", self.refreshed, copy_function=_link)
            self.reference.load(self.refreshed)
        self.tracker.event("resumed", step=state["step"], checkpoint=found.name)
        return state["step"]

    def save(self, step: int) -> Path:
        state = {"data": self.prompts.state(), "kl": self.kl.state()}
        if self.critic is not None:
            state["critic"] = self.critic.state()
        with self.phases("save"):
            saved = self.checkpoints.save(step, self._write, state)
        self.tracker.event("saved", step=step, checkpoint=saved.name)
        return saved

    def _write(self, directory: Path) -> None:
        self.actor.save(directory)
        if self.critic is not None:
            self.critic.save(directory / "critic")
        if self.refreshed.is_dir():
            shutil.copytree(self.refreshed, directory / "reference", copy_function=_link)

    def credit(self, batch: Batch) -> Batch:
        """The batch with the columns this configuration needs, the advantage last."""
        from rlcore.algo.advantage import credit  # torch: not before the config is known to be right

        for name, fill in self.columns.items():
            batch = batch.with_(**{name: fill(batch)})
        return credit(batch, self.advantage, self.cfg.advantage)

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """All optimizer updates of step `step` (0-based), actor and critic side by side; their metrics."""
        if self.critic is not None:
            self.critic.begin(batch, step)
        numbers = self.actor.update(batch, step, self.kl.coef)
        if self.critic is not None:
            numbers |= self.critic.finish()
        if self.reference is not None:
            numbers["kl/coef"] = self.kl.coef
            if numbers["actor/lr"] > 0:  # while only the critic learns, the policy cannot move
                self.kl.observe(numbers.get("actor/kl", math.nan), len(batch))
        self._demand_updates(numbers)
        return numbers

    def _demand_updates(self, numbers: dict[str, float]) -> None:
        """Raise WorkerError when nothing could be learned for several steps: the run would only look like one."""
        nothing = numbers["actor/skipped_updates"] > 0 and math.isnan(numbers["actor/grad_norm"])
        self.steps_skipped = self.steps_skipped + 1 if nothing else 0
        if self.steps_skipped == _MOST_STEPS_SKIPPED:
            raise WorkerError(
                f"actor: in the last {_MOST_STEPS_SKIPPED} steps no gradient was finite, so no update was made "
                f"(actor/loss {numbers['actor/loss']:g}); look at loss.name, advantage.name, actor.learning_rate and "
                "model.dtype"
            )

    def publish(self, version: int) -> dict[str, float]:
        """Weights to the engines, whose rollouts carry `version` from now on; and to the reference when it is due."""
        began = time.monotonic()
        numbers = self.actor.publish(version)
        self.rollouts.version = version
        every = self.cfg.reference.refresh_steps
        if self.reference is not None and every and version and version % every == 0:
            self._refresh(self.reference)
        return numbers | {"sync/seconds": time.monotonic() - began}

    def _refresh(self, reference: Reference) -> None:
        aside = self.refreshed.with_suffix(".partial")
        shutil.rmtree(aside, ignore_errors=True)
        self.actor.save_weights(aside)
        shutil.rmtree(self.refreshed, ignore_errors=True)
        aside.rename(self.refreshed)
        reference.load(self.refreshed)

    def probe(self) -> float:
        """The difference between the engine's and the trainer's log-probabilities of two fresh samples, as `logp_diff`.

        The loop checks every version with its own rollouts one step later; the last version has no later step.
        """
        with self.phases("probe"):
            prompts = next(iter(self.evals.values()), None) or self.prompts.all(limit=1)
            groups = self.rollouts.sample(prompts[:1], samples=2, temperature=self.cfg.rollout.temperature)
            batch = Batch.from_groups([Group([_scored(r) for r in g.rollouts]) for g in groups])
            difference = (self.actor.logp(batch) - batch.rollout_logp)[batch.mask].abs()
        if not len(difference):
            return 0.0
        return float(difference.max() if self.logp_diff == "sync/logp_diff_max" else difference.mean())

    def fields_read(self) -> set[str]:
        return set().union(*(g.fields_read() for g in self.groups))

    def close(self) -> None:
        if self.rewards is not None:
            self.rewards.close()
        if self.cluster is not None:
            self.cluster.close()


def _link(source: str, target: str) -> None:
    """A second name for the file where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _scored(rollout: Any) -> Any:
    """A copy that counts as scored: its log-probabilities are what is wanted."""
    same = copy.copy(rollout)
    same.reward = 0.0
    return same


def columns(
    cfg: Config, actor: Actor, reference: Reference | None, critic: Critic | None, kl: Controller
) -> dict[str, Column]:  # fmt: skip
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
        needed["penalty"] = lambda batch: penalty(batch, cfg.kl, kl.coef)
    if critic is not None:
        needed["value"] = critic.value
    return needed


class Turns:
    """Whose turn a shared GPU is: who samples (engines, and the reward model that scores as samples finish) and who
    trains sleep and wake by turns. On CPU, or split, nobody sleeps."""

    def __init__(self, groups: list[WorkerGroup], active: bool) -> None:
        self.samplers = [g for g in groups if g.role in ("rollout", "reward_model")]
        self.trainers = [g for g in groups if g not in self.samplers]
        self.active, self.awake = active, {g.role for g in groups}

    def __call__(self, phase: str) -> None:
        if not self.active:
            return
        # A sleeping engine has dropped its weights: it may sleep only where a publish comes before the next sample.
        self._set(self.samplers, phase not in ("credit", "update"))
        self._set(self.trainers, phase not in ("rollout", "eval"))

    def _set(self, groups: list[WorkerGroup], awake: bool) -> None:
        for group in groups:
            if (group.role in self.awake) == awake:
                continue
            group.call("wake" if awake else "sleep", seconds=group.deadline.publish_seconds)
            (self.awake.add if awake else self.awake.discard)(group.role)
