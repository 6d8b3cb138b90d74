"""The stages: what each command feeds the one loop. A new one is a line here and a file that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlcore.plugins import plugin

if TYPE_CHECKING:
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.config import Config
    from rlcore.runs.tracker import Tracker
    from rlcore.train.prepare import Say
    from rlcore.train.run import Parts
    from rlcore.workers.group import WorkerGroup

# One update of prompts_per_step rows or pairs a step, of texts that are given.
_GIVEN_TEXTS: dict[str, Any] = {
    "actor.minibatches_per_step": 1,
    "actor.epochs_per_step": 1,
    "kl.coef": 0,
    "rollout.temperature": 1,
    "critic.ranks": 0,
}


class Ready(Protocol):
    """A stage whose rows are read and whose model is a directory: `cfg` says which. Made by `(cfg, say)`.

    roles    devices of each role
    start    the groups of its roles, whose processes exist and have not loaded
    connect  once they have: what `start` of each worker answered, by group
    parts    source, columns, learner and evaluations
    """

    cfg: Config
    tokenizer: Any

    def roles(self) -> dict[str, int]: ...
    def facts(self) -> dict[str, Any]: ...
    def start(self, cluster: Cluster, watch: Watch) -> list[WorkerGroup]: ...
    def connect(self, answers: Mapping[str, list[dict[str, Any]]]) -> None: ...
    def parts(self, tracker: Tracker) -> Parts: ...
    def close(self) -> None: ...


class Stage(NamedTuple):
    """One command of `rlcore`.

    loss   the loss.name it learns by; None: any that weighs what rewards say
    made   the class whose objects are Ready
    needs  keys that can have one value only
    """

    command: str
    loss: str | None
    made: str
    needs: Mapping[str, Any] = {}

    def ready(self, cfg: Config, say: Say) -> Ready:
        return plugin(self.made, "stage")(cfg, say)


STAGES: dict[str, Stage] = {
    stage.command: stage
    for stage in (
        Stage("train", None, "rlcore.train.reinforcement.Reinforcement"),
        Stage("sft", "sft", "rlcore.train.supervised.Supervised", _GIVEN_TEXTS),
        Stage("train-rm", "bradley_terry", "rlcore.train.scoring.Scoring", _GIVEN_TEXTS),
        Stage("dpo", "dpo", "rlcore.train.dpo.Preferred", _GIVEN_TEXTS | {"loss.aggregation": "sequence_sum"}),
    )
}


def stage_of(loss: str) -> Stage:
    """The stage that a run with this loss.name is of."""
    return next((stage for stage in STAGES.values() if stage.loss == loss), STAGES["train"])
