"""`rlcore sft`: the policy learns the responses of the rows, by the policy loss `sft`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcore.config import Config
from rlcore.data.examples import Examples
from rlcore.data.sources import source_names
from rlcore.records import Batch, Group, Prompt
from rlcore.train.credit import Column, Rows
from rlcore.train.evaluate import HeldOut, Published, Sampled
from rlcore.train.learner import Learner
from rlcore.train.prepare import Say, require_model, require_scorable, with_directory
from rlcore.train.run import Parts
from rlcore.train.sampling import NoPrompts, Sampling, make_rewards

if TYPE_CHECKING:
    from rewards.manager import RewardManager
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.runs.tracker import Tracker
    from rlcore.workers.group import WorkerGroup


class HeldOutPrompts:
    """The prompts of held-out rows, to be answered and scored."""

    def __init__(self, name: str, groups: Sequence[Group]) -> None:
        self.sources, self._prompts = name, [group.prompt for group in groups]

    def __len__(self) -> int:
        return len(self._prompts)

    def all(self) -> list[Prompt]:
        return self._prompts

    def at(self, prompt: Prompt) -> str:
        return prompt.id

    def without(self, ids: Collection[str]) -> None:
        self._prompts = [prompt for prompt in self._prompts if prompt.id not in ids]


class Supervised:
    """A policy that learns from rows. Where reward.fns names functions, answers to the held-out rows are sampled and
    scored too, which needs engines."""

    role = "actor"
    whole_groups = False  # whether the rollouts of a group are learned from together
    shown = {"actor/loss": "loss"}  # numbers of held-out rows

    def __init__(self, cfg: Config, say: Say) -> None:
        self.rewards = make_rewards(cfg) if cfg.reward.fns and cfg.data.eval else None
        try:
            self.cfg = with_directory(cfg, say)
            self.require_model()
            self.tokenizer = self.load_tokenizer()
            self.rows = self.read(self.cfg.data.train)
            say(f"data: {len(self.rows)} rows; {self.rows.dropped} left out")
            self.held_out = self._held_out()
            self.sampling = None if self.rewards is None else self._sampling(self.rewards, say)
        except BaseException:
            self.close()
            raise

    def require_model(self) -> None:
        require_model(self.cfg)

    def load_tokenizer(self) -> Any:
        from rlcore.models.load import load_tokenizer

        return load_tokenizer(self.cfg.model)

    def read(self, sources: Sequence[str]) -> Any:
        """The rows of these sources: a Source that has `all(limit)`, `dropped` and a length."""
        cfg = self.cfg
        return Examples(sources, cfg.data, self.tokenizer, cfg.seed, cfg.rollout.max_response_tokens)

    def _held_out(self) -> dict[str, list[Group]]:
        cfg = self.cfg
        named = zip(source_names(cfg.data.eval), cfg.data.eval, strict=True)
        return {name: self.read([source]).all(limit=cfg.eval.prompts) for name, source in named}

    def _sampling(self, rewards: RewardManager, say: Say) -> Sampling:
        """Engines that answer the held-out rows."""
        asked = {name: HeldOutPrompts(name, groups) for name, groups in self.held_out.items()}
        require_scorable(list(asked.values()), rewards, self.cfg, say)
        evals = {name: prompts.all() for name, prompts in asked.items()}
        return Sampling(self.cfg, rewards, self.tokenizer, NoPrompts(), evals)

    def roles(self) -> dict[str, int]:
        sampling = {} if self.sampling is None else self.sampling.roles()
        return {self.role: self.cfg.actor.ranks} | sampling

    def facts(self) -> dict[str, Any]:
        """Of the rows, for the record."""
        evals = {name: len(groups) for name, groups in self.held_out.items()}
        return {"rows": len(self.rows), "dropped": self.rows.dropped, "eval": evals}

    def start(self, cluster: Cluster, watch: Watch) -> list[WorkerGroup]:
        self.model = self.make_model(cluster, watch)
        engines = [] if self.sampling is None else self.sampling.start(cluster, watch)
        return [*engines, self.model.group]

    def make_model(self, cluster: Cluster, watch: Watch) -> Any:
        """The handle of what learns."""
        from rlcore.workers.actor import Actor
        from rlcore.workers.actor_rank import ActorRank
        from rlcore.workers.group import rank_group

        ranks = rank_group(self.role, ActorRank, self.cfg.actor.ranks, self.cfg, cluster, watch)
        return Actor(ranks, self.cfg, whole_groups=self.whole_groups)

    def connect(self, answers: Mapping[str, list[dict[str, Any]]]) -> None:
        if self.sampling is not None:
            self.sampling.connect(self.model, answers["rollout"][0]["eos"])

    def columns(self) -> dict[str, Column]:
        """The columns its loss needs."""
        return {}

    def make_learner(self, columns: Mapping[str, Column]) -> Learner:
        return Learner(self.model)

    def parts(self, tracker: Tracker) -> Parts:
        columns = self.columns()
        batches = {name: Batch.from_groups(groups) for name, groups in self.held_out.items()}
        evaluations: list[Any] = [HeldOut(self.model, batches, columns, self.shown, tracker)] if batches else []
        if self.sampling is not None and self.rewards is not None:
            sampled = Sampled(self.cfg, self.sampling.rollouts, self.sampling.evals, self.rewards.names, tracker)
            evaluations += [Published(self.sampling), sampled]
        return Parts(self.rows, Rows(columns), self.make_learner(columns), evaluations)

    def close(self) -> None:
        if self.rewards is not None:
            self.rewards.close()
