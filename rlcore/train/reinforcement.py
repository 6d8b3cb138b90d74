"""`rlcore train`: rollouts that are sampled and scored, their advantages, a policy that learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore.config import Config, compute_dtype
from rlcore.train.agreement import Agreement
from rlcore.train.credit import Rewarded, policy_columns
from rlcore.train.evaluate import Sampled
from rlcore.train.learner import PolicyLearner
from rlcore.train.prepare import (
    Say,
    find_endings,
    openings,
    read_held_out,
    read_prompts,
    require_same_held_out,
    require_scorable,
    with_directory,
    with_plugins,
)
from rlcore.train.proof import (
    require_context,
    require_critic,
    require_directory,
    require_policy,
    require_reward_model,
    require_room,
)
from rlcore.train.run import Parts
from rlcore.train.sampling import Sampling, make_rewards

if TYPE_CHECKING:
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.runs.tracker import Tracker
    from rlcore.workers.group import WorkerGroup


class Reinforcement:
    """What is wrong with the rewards is said first: a model may take minutes to make ready."""

    def __init__(self, cfg: Config, say: Say) -> None:
        cfg = with_plugins(cfg)
        self.rewards = make_rewards(cfg)
        try:
            self.cfg = with_directory(cfg, say)
            from rlcore.models.load import load_tokenizer  # takes seconds: nothing is refused only after them

            require_directory(self.cfg)
            self.tokenizer = load_tokenizer(self.cfg.model)
            policy = require_policy(self.cfg, self.tokenizer, sampled=True)
            critic = require_critic(self.cfg, self.tokenizer) if cfg.critic.ranks > 0 else None
            require_reward_model(self.cfg)
            require_room(self.cfg, policy, critic)
            self.ends = find_endings(self.cfg, self.tokenizer, say)
            say("data: reading and tokenizing")
            self.prompts = read_prompts(self.cfg, self.tokenizer, say)
            held_out = read_held_out(self.cfg, self.tokenizer, say)
            self.held_out = {name: content for name, p in held_out.items() for content in p.content.values()}
            require_scorable([self.prompts, *held_out.values()], self.rewards, self.cfg, say)
            evals = {name: prompts.all(limit=self.cfg.eval.prompts) for name, prompts in held_out.items()}
            self.sampling = Sampling(self.cfg, self.rewards, self.tokenizer, self.ends, self.prompts, evals)
            if critic is not None:
                longest = self.prompts.longest + cfg.rollout.max_response_tokens
                require_context(self.cfg.critic.path or self.cfg.model.path, "critic.path", longest)
        except BaseException:
            self.rewards.close()
            raise

    def roles(self) -> dict[str, int]:
        cfg = self.cfg
        roles = {"actor": cfg.actor.ranks} | self.sampling.roles()
        if cfg.kl.coef > 0:
            roles["reference"] = cfg.reference.ranks
        if cfg.critic.ranks > 0:
            roles["critic"] = cfg.critic.ranks
        return roles

    def facts(self) -> dict[str, Any]:
        """Of the rows, for the record."""
        evals = {name: len(prompts) for name, prompts in self.sampling.evals.items()}
        prompts = self.prompts
        facts = {"prompts": len(prompts), "dropped": prompts.dropped, "eval": evals, "taken": prompts.notes}
        return facts | {"endings": self.ends.shown(), "opened": openings(prompts.all())}

    def require_same_rows(self, state: Mapping[str, Any]) -> None:
        """DataError where a checkpoint's state is of other rows."""
        self.prompts.restore(state["data"])
        require_same_held_out(state.get("held_out", {}), self.held_out, self.cfg.data.eval)

    def start(self, cluster: Cluster, watch: Watch) -> list[WorkerGroup]:
        from rlcore.workers.actor import Actor
        from rlcore.workers.actor_rank import ActorRank
        from rlcore.workers.critic import Critic
        from rlcore.workers.critic_rank import CriticRank
        from rlcore.workers.group import rank_group
        from rlcore.workers.reference import Reference
        from rlcore.workers.reference_rank import ReferenceRank

        cfg = self.cfg
        engines, *scorers = self.sampling.start(cluster, watch)
        self.dtype = compute_dtype(cfg.model, cluster.device)
        self.actor = Actor(rank_group("actor", ActorRank, cfg.actor.ranks, cfg, cluster, watch), cfg)
        self.reference = self.critic = None
        if cfg.kl.coef > 0:
            ranks = rank_group("reference", ReferenceRank, cfg.reference.ranks, cfg, cluster, watch)
            self.reference = Reference(ranks, cfg)
        if cfg.critic.ranks > 0:
            self.critic = Critic(rank_group("critic", CriticRank, cfg.critic.ranks, cfg, cluster, watch), cfg)
        others = [role.group for role in (self.reference, self.critic) if role is not None]
        return [engines, self.actor.group, *others, *scorers]

    def connect(self) -> None:
        self.sampling.connect(self.actor)

    def parts(self, tracker: Tracker) -> Parts:
        cfg, sampling = self.cfg, self.sampling
        sampling.rollouts.on_progress = tracker.progress
        evaluation = Sampled(cfg, sampling.rollouts, sampling.evals, self.rewards.names, tracker)
        probed = next(iter(sampling.evals.values()), None) or self.prompts.all(limit=1)
        return Parts(
            source=sampling.rollouts,
            columns=Rewarded(cfg, policy_columns(cfg, self.actor, self.reference, self.critic), tracker),
            learner=PolicyLearner(self.actor, sampling, cfg, self.critic, self.reference),
            evaluations=[evaluation] if sampling.evals else [],
            agreement=Agreement(cfg, self.dtype, self.actor, sampling.rollouts, probed),
            held_out=self.held_out,
        )

    def close(self) -> None:
        self.rewards.close()
