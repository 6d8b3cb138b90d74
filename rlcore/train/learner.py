"""What learns: a model, and what goes with a policy's where there is one: a critic, a reference that may follow."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.errors import WorkerError
from rlcore.files import remove, written_aside
from rlcore.records import Batch

if TYPE_CHECKING:
    from rlcore.algo.stats import Learned
    from rlcore.config import Config
    from rlcore.train.sampling import Sampling
    from rlcore.workers.actor import Actor
    from rlcore.workers.critic import Critic
    from rlcore.workers.reference import Reference
    from rlcore.workers.reward_model import RewardModel

_MOST_STEPS_SKIPPED = 3
_OF_SAMPLES = ("sync/", "correction/", "actor/kl")


class Learner:
    """A model that learns without a reward: supervised, or from preferences."""

    def __init__(self, model: Actor | RewardModel) -> None:
        self.model = model
        self.steps_skipped = 0  # in a row, in which no update was made

    def begin(self, state: Mapping[str, Any] | None) -> None:
        """Before a checkpoint of this state, if there is one, is loaded."""

    def update(self, batch: Batch, step: int) -> Learned:
        """All optimizer updates of step `step` (0-based). What is of an engine's probabilities, or of tokens that the
        policy sampled, is left out: the batch has none."""
        learned = self.model.update(batch, step)
        self._require_updates(learned)
        kept = {k: v for k, v in learned.metrics.items() if not k.startswith(_OF_SAMPLES)}
        return learned._replace(metrics=kept)

    def publish(self, version: int) -> dict[str, float]:
        """Weights to whoever the next step needs to have them: nobody."""
        return {}

    def save(self, directory: Path) -> list[str]:
        """Gives what could not be written beside the weights, in words."""
        return self.model.save(directory)

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        """What `save` and `state` gave."""
        self.model.load(directory)

    def state(self) -> dict[str, Any]:
        """What `save` leaves out; JSON."""
        return {}

    def _require_updates(self, learned: Learned) -> None:
        """Raise WorkerError when nothing could be learned for several steps: the run would only look like one."""
        self.steps_skipped = self.steps_skipped + 1 if learned.nothing else 0
        if self.steps_skipped == _MOST_STEPS_SKIPPED:
            raise WorkerError(
                f"actor: in the last {_MOST_STEPS_SKIPPED} steps no gradient was finite, so no update was made "
                f"(actor/loss {learned.loss:g}); look at loss.name, advantage.name, actor.learning_rate and model.dtype"
            )


class PolicyLearner(Learner):
    """A policy that learns from rewards, its critic and its reference beside it."""

    model: Actor

    def __init__(
        self, actor: Actor, sampling: Sampling, cfg: Config, critic: Critic | None, reference: Reference | None
    ) -> None:
        super().__init__(actor)
        self.sampling, self.cfg, self.critic, self.reference = sampling, cfg, critic, reference
        self.refreshed = Path(str(cfg.run_dir)) / "reference"  # its weights, once they are no longer the first ones

    def begin(self, state: Mapping[str, Any] | None) -> None:
        remove(self.refreshed)

    def update(self, batch: Batch, step: int) -> Learned:
        """Actor and critic side by side."""
        if self.critic is not None:
            self.critic.begin(batch, step)
        learned = self.model.update(batch, step)
        if self.critic is not None:
            learned.metrics.update(self.critic.finish())
        if self.reference is not None:
            learned.metrics["kl/coef"] = self.model.kl.coef
            if learned.rate > 0:  # while only the critic learns, the policy cannot move
                self.model.kl.observe(learned.kl, len(batch))
        self._require_updates(learned)
        return learned

    def publish(self, version: int) -> dict[str, float]:
        """Weights to the engines; and to the reference when it is due."""
        began = time.monotonic()
        numbers = self.sampling.publish(version)
        every = self.cfg.reference.refresh_steps
        if self.reference is not None and every and version and version % every == 0:
            self._refresh(self.reference)
        return numbers | {"sync/seconds": time.monotonic() - began}

    def _refresh(self, reference: Reference) -> None:
        with written_aside(self.refreshed) as aside:
            self.model.save_weights(aside)
        reference.load(self.refreshed)

    def save(self, directory: Path) -> list[str]:
        failed = super().save(directory)
        if self.critic is not None:
            failed += self.critic.save(directory / "critic")
        if self.refreshed.is_dir():
            shutil.copytree(self.refreshed, directory / "reference", copy_function=_link)
        return failed

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        super().load(directory, state)
        self.model.kl.restore(state.get("kl", {}))
        if self.critic is not None:
            self.critic.load(directory / "critic")
            self.critic.restore(state["critic"])
        if self.reference is not None and (directory / "reference").is_dir():
            shutil.copytree(directory / "reference", self.refreshed, copy_function=_link)
            self.reference.load(self.refreshed)

    def state(self) -> dict[str, Any]:
        critic = {} if self.critic is None else {"critic": self.critic.state()}
        return {"kl": self.model.kl.state(), **critic}


def _link(source: str, target: str) -> None:
    """A second name for the file where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
