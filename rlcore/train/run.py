"""What one step asks of a run's parts. `build()` makes the real ones, tests/loop the fake ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlcore.errors import ConfigError
from rlcore.records import Batch, Group
from rlcore.runs import checkpoint

if TYPE_CHECKING:
    from rlcore.cluster.turns import Phases
    from rlcore.config import Config
    from rlcore.runs.checkpoint import Checkpoints
    from rlcore.runs.tracker import Tracker
    from rlcore.train.agreement import Agreement
    from rlcore.train.learner import Learner

Numbers = dict[str, float]
_A_STEP = ("rollout", "credit", "update", "publish")  # the phases whose time counts as the step's


class Source(Protocol):
    """What the steps learn from."""

    def take(self, n: int) -> list[Group]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Credit(Protocol):
    """Groups -> the batch with every column its stage needs, and numbers about them. `step` (0-based) is being made."""

    def __call__(self, groups: Sequence[Group], step: int) -> tuple[Batch, Numbers]: ...


class Evaluation(Protocol):
    """`eval/NAME/...` of the weights of a step. `phase` says who is awake for it."""

    phase: str

    def __call__(self, step: int) -> Numbers: ...


class Parts(NamedTuple):
    """What a stage hands to the loop. `agreement` proves that the engines sample with the learner's weights; None:
    nothing that is learned from is sampled. `held_out`: of each held-out source a hash of its rows."""

    source: Source
    columns: Credit
    learner: Learner
    evaluations: Sequence[Evaluation] = ()
    agreement: Agreement | None = None
    held_out: Mapping[str, str] = {}


@dataclass
class Run:
    """A stage's parts, and what every run has."""

    cfg: Config
    phase: Phases
    tracker: Tracker
    checkpoints: Checkpoints
    parts: Parts
    device: str
    start: Path | None = None  # the checkpoint to go on from, which has been verified
    numbers: Numbers = field(default_factory=dict)  # of the step that is being made
    restored: int = 0  # the step this process went on from

    @property
    def source(self) -> Source:
        return self.parts.source

    def restore(self) -> int:
        """The step to go on from: 0, or that of the checkpoint `start`, with all that a run needs to go on restored.

        What an earlier attempt wrote about later steps goes, its later checkpoints aside; of one that left no
        checkpoint nothing stays.
        """
        found = self.start
        state = None if found is None else checkpoint.state_of(found)
        with self.phase("restore"):
            self.parts.learner.begin(state)
            if found is not None and state is not None:
                self.parts.learner.load(found, state)
                self.source.restore(state["data"])
        if found is None or state is None:
            self.tracker.begin_after(-1)
            return 0
        self.restored = state["step"]
        aside = self.checkpoints.set_aside_after(self.restored)
        self.tracker.begin_after(self.restored)
        if aside:
            self.tracker.event("set_aside", checkpoints=[str(path) for path in aside])
        self.tracker.event("resumed", step=self.restored, checkpoint=found.name)
        return self.restored

    def credit(self, groups: Sequence[Group], step: int) -> Batch:
        batch, self.numbers = self.parts.columns(groups, step)
        return batch

    def update(self, batch: Batch, step: int) -> None:
        """All optimizer updates of step `step` (0-based)."""
        learned = self.parts.learner.update(batch, step)
        self.numbers |= learned.metrics
        self.numbers["perf/tokens"] = float(len(batch.tokens))
        if self.parts.agreement is not None and batch.mask.any():  # else no token of this step could be compared
            self.parts.agreement.require(learned, step)

    def publish(self, version: int) -> None:
        """Weights to whoever samples or compares with them, which have this version from now on."""
        self.numbers |= self.parts.learner.publish(version)

    def evaluate(self, step: int) -> None:
        """When it is due: before the first step, as eval.every_steps says, after the last. Before the first step the
        numbers are logged at once."""
        if not self.parts.evaluations or not self._due(step, lambda: self.cfg.eval.every_steps):
            return
        found: Numbers = {}
        for evaluation in self.parts.evaluations:
            with self.phase(evaluation.phase):
                found |= evaluation(step)
        self._require_best(found)
        self.numbers |= found
        if step == 0:
            self.tracker.log(step, found)

    def log(self, step: int) -> None:
        """The numbers of a step that is done."""
        seconds = sum(self.phase.seconds.get(name, 0.0) for name in _A_STEP)
        tokens = self.numbers.pop("perf/tokens")
        self.tracker.log(step, self.numbers | {"perf/tokens_per_second": tokens / seconds} | self.phase.metrics())

    def save(self, step: int) -> None:
        """When it is due: as save_every_steps says, after the last step, and when keep_best has a new best. The last
        weights are proved to be the engines' first: no later step does it."""
        best = self.cfg.keep_best
        value = self.numbers.get(best) if best is not None else None
        if step == self.cfg.steps and self.parts.agreement is not None:
            with self.phase("probe"):
                self.parts.agreement.probe(step)
        if self._due(step, lambda: self.cfg.save_every_steps) or self.checkpoints.is_better(value):
            with self.phase("save"):
                state = {"data": self.source.state(), "held_out": self.parts.held_out, **self.parts.learner.state()}
                failed = list[str]()
                write = lambda directory: failed.extend(self.parts.learner.save(directory) or ())  # noqa: E731
                saved = self.checkpoints.save(step, write, state, value)
            self.tracker.event("saved", step=step, checkpoint=saved.name)
            for each in failed:  # the weights are there, so the run can go on
                self.tracker.warn("not_saved", each, step=step)

    def _due(self, step: int, every_steps: Callable[[], int]) -> bool:
        """Whether it is time for what is done every so many steps. What was restored has had its own. The knob is read
        where it can count only: in a run of one step it has no effect."""
        if step in (self.restored, self.cfg.steps):
            return step != self.restored or step == 0
        return bool((every := every_steps()) and step % every == 0)

    def _require_best(self, found: Numbers) -> None:
        """Raise ConfigError when keep_best names no number of the evaluation."""
        best = self.cfg.keep_best
        if best is not None and best not in found:
            raise ConfigError(f"keep_best: the evaluation has no {best}; it has {', '.join(sorted(found))}")
