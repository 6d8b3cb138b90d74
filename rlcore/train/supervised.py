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
from rlcore.train.prepare import (
    Say,
    find_endings,
    require_same_held_out,
    require_scorable,
    say_taken,
    with_directory,
)
from rlcore.train.proof import require_context, require_directory, require_policy, require_reward_model, require_room
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
    speaks = True  # whether what it learns to say has to end
    whole_groups = False  # whether the rollouts of a group are learned from together
    shown = {"actor/loss": "loss"}  # numbers of held-out rows

    def __init__(self, cfg: Config, say: Say) -> None:
        self.rewards = make_rewards(cfg) if cfg.reward.fns and cfg.data.eval else None
        try:
            self.cfg = with_directory(cfg, say)
            self.tokenizer = self.load_tokenizer()
            self.require_model()
            self.ends = find_endings(self.cfg, self.tokenizer, say) if self.speaks else None
            self.rows = self.read(self.cfg.data.train)
            say_taken(self.rows.notes, say)
            say(f"data: {len(self.rows)} rows; {self.rows.dropped} left out{_last_only(self.rows.last_only)}")
            self.held_out = self._held_out(say)
            self.require_fits()
            self.sampling = None if self.rewards is None else self._sampling(self.rewards, say)
        except BaseException:
            self.close()
            raise

    def load_tokenizer(self) -> Any:
        from rlcore.models.load import load_tokenizer

        require_directory(self.cfg)
        return load_tokenizer(self.cfg.model)

    def require_model(self) -> None:
        """Raise ConfigError when what learns cannot be trained, sampled where it is to be, and saved."""
        sampled = self.rewards is not None
        model = require_policy(self.cfg, self.tokenizer, sampled)
        if sampled:
            require_reward_model(self.cfg)
        require_room(self.cfg, model)

    def read(self, sources: Sequence[str]) -> Any:
        """The rows of these sources: a Source that has `all(limit)`, `dropped` and a length."""
        cfg = self.cfg
        return Examples(sources, cfg.data, self.tokenizer, cfg.seed, cfg.rollout.max_response_tokens, self.ends)

    def _held_out(self, say: Say) -> dict[str, list[Group]]:
        cfg = self.cfg
        read = dict(zip(source_names(cfg.data.eval), map(self.read, ([s] for s in cfg.data.eval)), strict=True))
        for rows in read.values():
            say_taken(rows.notes, say)
        self.held_out_content = {name: content for name, rows in read.items() for content in rows.content.values()}
        return {name: rows.all(limit=cfg.eval.prompts) for name, rows in read.items()}

    def require_fits(self) -> None:
        """Raise ConfigError when a row is longer than what the model was made for."""
        groups = [*self.rows.all(), *(group for held_out in self.held_out.values() for group in held_out)]
        longest = max(len(rollout.tokens) for group in groups for rollout in group.rollouts)
        # Of what is scored the last token is no text.
        require_context(self.cfg.model.path, "model.path", longest if self.speaks else longest - 1)

    def _sampling(self, rewards: RewardManager, say: Say) -> Sampling:
        """Engines that answer the held-out rows."""
        asked = {name: HeldOutPrompts(name, groups) for name, groups in self.held_out.items()}
        require_scorable(list(asked.values()), rewards, self.cfg, say)
        evals = {name: prompts.all() for name, prompts in asked.items()}
        assert self.ends is not None, f"{self.role} is no policy and cannot be sampled"
        return Sampling(self.cfg, rewards, self.tokenizer, self.ends, NoPrompts(), evals)

    def roles(self) -> dict[str, int]:
        sampling = {} if self.sampling is None else self.sampling.roles()
        return {self.role: self.cfg.actor.ranks} | sampling

    def facts(self) -> dict[str, Any]:
        """Of the rows, for the record."""
        evals = {name: len(groups) for name, groups in self.held_out.items()}
        facts = {"rows": len(self.rows), "dropped": self.rows.dropped, "eval": evals, "taken": self.rows.notes}
        return facts | ({} if self.ends is None else {"endings": self.ends.shown(), "last_only": self.rows.last_only})

    def require_same_rows(self, state: Mapping[str, Any]) -> None:
        """DataError where a checkpoint's state is of other rows."""
        self.rows.restore(state["data"])
        require_same_held_out(state.get("held_out", {}), self.held_out_content, self.cfg.data.eval)

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

    def connect(self) -> None:
        if self.sampling is not None:
            self.sampling.connect(self.model)

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
        learner = self.make_learner(columns)
        return Parts(self.rows, Rows(columns), learner, evaluations, held_out=self.held_out_content)

    def close(self) -> None:
        if self.rewards is not None:
            self.rewards.close()


def _last_only(rows: int) -> str:
    """What is said of rows of several turns of the assistant's, of which only the last can be learned."""
    return f"; in {rows} only the last turn is learned, as the chat template rewrites the earlier ones" if rows else ""
