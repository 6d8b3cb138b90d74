"""The side of a run that samples: rewards, engines, and the way of the weights to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import REWARD_MODEL
from rlcore.algo.shaping import carries_signal
from rlcore.compose.check import unknown_choice
from rlcore.config import Config, SyncBackend, compute_dtype, ruled_out
from rlcore.data.endings import Endings, text_of
from rlcore.errors import ConfigError
from rlcore.records import Prompt

if TYPE_CHECKING:
    from rewards.manager import RewardManager
    from rlcore.cluster.deadlines import Watch
    from rlcore.cluster.placement import Cluster
    from rlcore.data.prompts import Prompts
    from rlcore.workers.actor import Actor
    from rlcore.workers.group import WorkerGroup


def make_rewards(cfg: Config) -> RewardManager:
    """The functions of reward.fns, loaded in their processes: what is wrong with them is known before anything else."""
    from rewards.manager import RewardManager

    rewards = RewardManager(cfg.reward, cfg.rollout.max_response_tokens, Path(str(cfg.run_dir)) / "quarantine.jsonl")
    try:
        rewards.ready(cfg.deadline.start_seconds)
    except BaseException:
        rewards.close()
        raise
    return rewards


class NoPrompts:
    """The source of a stage that samples to evaluate only."""

    longest = 0

    def take(self, n: int) -> list[Prompt]:
        return []

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Sampling:
    """Engines that sample `prompts`, which may be none, and the held-out ones, `evals`; what they say until one of the
    ending tokens, `ends`, is scored.

    `start` makes the engines' processes; `connect` opens the weights' way to them, and from then on `rollouts` is the
    collector.
    """

    def __init__(
        self,
        cfg: Config,
        rewards: RewardManager,
        tokenizer: Any,
        ends: Endings,
        prompts: Prompts | NoPrompts,
        evals: Mapping[str, list[Prompt]],
    ) -> None:
        self.cfg, self.rewards, self.tokenizer, self.ends = cfg, rewards, tokenizer, ends
        self.prompts, self.evals = prompts, evals
        self.longest = max([prompts.longest, *(len(p.tokens) for each in evals.values() for p in each)])
        from rlcore.models.architecture import require_sampled

        require_sampled(cfg.model.path, self.longest, cfg.rollout)

    def roles(self) -> dict[str, int]:
        """Devices of each of its roles."""
        cfg = self.cfg
        roles = {"rollout": cfg.rollout.engines * cfg.rollout.tensor_parallel}
        return roles | ({REWARD_MODEL: cfg.reward_model.ranks} if REWARD_MODEL in cfg.reward.fns else {})

    def start(self, cluster: Cluster, watch: Watch) -> list[WorkerGroup]:
        """The groups of its roles, whose processes exist and have not loaded."""
        from rlcore.workers.group import Members, WorkerGroup
        from rollout.engine import Engine, EngineSpec

        cfg = self.cfg
        self.cluster, self.watch = cluster, watch
        if wrong := unknown_choice(cfg, cluster.device):
            raise ConfigError("; ".join(wrong))
        self.backend = _sync_backend(cfg, cluster)
        trains = not isinstance(self.prompts, NoPrompts)
        spec = EngineSpec(
            model_path=cfg.model.path,
            tokenizer=cfg.model.tokenizer,
            dtype=compute_dtype(cfg.model, cluster.device),
            device=cluster.device,
            seed=cfg.seed,
            max_model_tokens=self.longest + cfg.rollout.max_response_tokens,
            ends=self.ends.ids,
            backend=self.backend,
            sleeps=cluster.device == "gpu" and cluster.colocated,
            says_kept=trains and bool(ruled_out(cfg.rollout)),
            debug=cfg.debug,
        )
        self.engines = WorkerGroup(
            Members("rollout", Engine, cfg.rollout.engines, cfg.rollout.tensor_parallel),
            lambda i: (spec._replace(index=i), cfg.rollout),
            cluster,
            watch,
            cfg.deadline,
        )
        return [self.engines, *([self._reward_model()] if REWARD_MODEL in cfg.reward.fns else [])]

    def _reward_model(self) -> WorkerGroup:
        """The ranks of the reward model, which scores among the `rewards`."""
        from rlcore.workers.group import rank_group
        from rlcore.workers.reward_model import RewardModelLane
        from rlcore.workers.reward_model_rank import RewardModelRank

        cfg = self.cfg
        ranks = cfg.reward_model.ranks
        lane = RewardModelLane(rank_group(REWARD_MODEL, RewardModelRank, ranks, cfg, self.cluster, self.watch), cfg)
        self.rewards.add(lane)
        return lane.group

    def connect(self, actor: Actor) -> None:
        from rollout.collector import Collector, response_text

        cfg, workers = self.cfg, self.engines.workers
        join = functools.partial(_join_nccl, cfg.rollout.tensor_parallel) if self.backend == "nccl" else None
        actor.connect(workers, self.backend, join, cfg.deadline.publish_seconds)
        self.actor = actor
        decode = functools.partial(text_of, self.tokenizer)
        text = response_text(decode, self.ends.ids, self.tokenizer.pad_token_id)
        teaches = functools.partial(carries_signal, cfg=cfg.rollout)
        self.rollouts = Collector(workers, self.prompts, self.rewards, self.watch, cfg, text, teaches)

    def publish(self, version: int) -> dict[str, float]:
        """The actor's weights to every engine, whose samples carry `version` from now on."""
        numbers = self.actor.publish(version)
        self.rollouts.version = version
        return numbers


def _sync_backend(cfg: Config, cluster: Cluster) -> str:
    if cfg.sync.backend != SyncBackend.auto:
        backend = cfg.sync.backend.value
    elif cluster.device == "cpu":
        backend = "shm"
    else:
        backend = "ipc" if cluster.colocated else "nccl"
    needed = cfg.rollout.engines * cfg.rollout.tensor_parallel
    if backend == "ipc" and cfg.actor.ranks < needed:
        raise ConfigError(
            f"sync.backend ipc: rollout.engines x rollout.tensor_parallel is {needed}, actor.ranks {cfg.actor.ranks}; "
            "each engine takes the weights from an actor rank on its own GPU, so actor.ranks must be at least as many"
        )
    if cluster.device == "cpu" and cfg.rollout.tensor_parallel > 1:
        raise ConfigError(
            f"rollout.tensor_parallel is {cfg.rollout.tensor_parallel}: on CPU an engine is one process; use 1"
        )
    if (backend == "shm") != (cluster.device == "cpu"):
        raise ConfigError(f"sync.backend is {backend} on {cluster.device}: shm is for CPU, ipc and nccl are for GPUs")
    return backend


def _join_nccl(tensor_parallel: int, engines: list[Any], seconds: float) -> Any:
    """Runs in the actor's rank 0, the only trainer process that needs vLLM's side of nccl, and only for it."""
    from rollout.receiver import join_nccl

    return join_nccl(tensor_parallel, engines, seconds)
