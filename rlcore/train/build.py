"""Config -> Parts: the only module that knows who implements what. It alone imports rollout/ and rewards/."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import REWARD_MODEL
from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster, Phases
from rlcore.config import Config, SyncBackend, compute_dtype
from rlcore.data.prompts import Prompts
from rlcore.data.sources import source_names
from rlcore.errors import ConfigError, DataError
from rlcore.plugins import absolute
from rlcore.records import Prompt
from rlcore.runs.checkpoint import Checkpoints
from rlcore.runs.tracker import Tracker
from rlcore.train.run import Parts, Turns, columns

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rewards.manager import RewardManager
    from rlcore.workers.group import Actor, RewardModelLane


_LISTED = 10  # bad rows shown; all are in a file


def cache_dir() -> Path:
    """Where made models are kept: $RLCORE_CACHE, else ~/.cache/rlcore."""
    return Path(os.environ.get("RLCORE_CACHE", "~/.cache/rlcore")).expanduser()


def with_model(cfg: Config, path: str) -> Config:
    """A copy of `cfg` whose model.path is `path`: what "demo" or a GGUF file became."""
    changed, changed.model = copy.copy(cfg), copy.copy(cfg.model)
    changed.model.path = path
    return changed


def with_plugins(cfg: Config) -> Config:
    """A copy of `cfg` in which the advantage and the loss mean the same file in a rank, whose working directory may be
    another. Loads both, so that what is wrong with them is a ConfigError before anything is started."""
    from rlcore.algo.advantage import advantage_fn
    from rlcore.algo.loss import policy_loss

    changed, changed.advantage, changed.loss = copy.copy(cfg), copy.copy(cfg.advantage), copy.copy(cfg.loss)
    changed.advantage.name, changed.loss.name = absolute(cfg.advantage.name), absolute(cfg.loss.name)
    advantage_fn(changed.advantage)
    policy_loss(changed.loss)
    return changed


def as_directory(cfg: Config) -> Config:
    """The config with a GGUF model turned into a Hugging Face directory (once, cached); otherwise as it is."""
    if not cfg.model.path.endswith(".gguf"):
        return cfg
    from rlcore.models.load import to_directory

    file = Path(cfg.model.path).expanduser().resolve()
    identity = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
    out = cache_dir() / f"gguf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return with_model(cfg, str(to_directory(cfg.model, out)))


def build(
    cfg: Config, resolved: DictConfig, say: Callable[[str], None], prepare: Callable[[Config], Config] = as_directory
) -> Parts:
    """Start everything: rewards and data first, then Ray, then the models. Cleans up if it fails half way.

    `say(text)` tells the user what is being started. `prepare(cfg)` gives the config with a directory for a model, and
    may take minutes: what is wrong with the rewards is said before. Raises ConfigError, DataError or WorkerError.
    """
    from rewards.manager import RewardManager

    assert cfg.run_dir is not None
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = with_plugins(cfg)
    rewards = RewardManager(cfg.reward, cfg.rollout.max_response_tokens, run_dir / "quarantine.jsonl")
    cluster = None
    try:
        rewards.ready(cfg.deadline.start_seconds)
        cfg = prepare(cfg)
        from rlcore.models.load import load_tokenizer  # takes seconds: nothing is refused only after them

        say("data: reading and tokenizing")
        tokenizer = load_tokenizer(cfg.model)
        prompts, held_out = _read(cfg, tokenizer, say)
        rewards.demand_sources([p for each in (prompts, *held_out.values()) for p in each.all()])
        for each in (prompts, *held_out.values()):
            _leave_out_unscorable(each, rewards, cfg, say)
        evals = {name: each.all(limit=cfg.eval.prompts) for name, each in held_out.items()}
        watch = Watch()
        say("Ray: starting" if cfg.ray.address is None else f"Ray: joining {cfg.ray.address}")
        cluster = _cluster(cfg, watch)
        return _start(cfg, resolved, cluster, watch, tokenizer, prompts, evals, rewards, say)
    except BaseException:
        rewards.close()
        if cluster is not None:
            cluster.close()
        raise


def _read(cfg: Config, tokenizer: Any, say: Callable[[str], None]) -> tuple[Prompts, dict[str, Prompts]]:
    """The prompts to train on, and of each held-out source by its name."""
    prompts = Prompts(cfg.data.train, cfg.data, tokenizer, cfg.seed)
    in_order = copy.copy(cfg.data)
    in_order.curriculum = None
    held_out = {
        name: Prompts([source], in_order, tokenizer, cfg.seed)
        for name, source in zip(source_names(cfg.data.eval), cfg.data.eval, strict=True)
    }
    for each in (prompts, *held_out.values()):
        if each.dropped:
            say(f"data: left out {each.dropped} prompts of {each.sources} over data.max_prompt_tokens")
    return prompts, held_out


def _leave_out_unscorable(
    prompts: Prompts, rewards: RewardManager, cfg: Config, say: Callable[[str], None]
) -> None:  # fmt: skip
    """Leave out the rows whose gold answers cannot be read, and list them by file and line: nothing they would get
    could be trusted. DataError when they are more than reward.max_failed_fraction."""
    bad = rewards.unscorable(prompts.all(), cfg.deadline.start_seconds)
    if not bad:
        return
    listed = [f"  {prompts.at(prompt)}: {why}" for prompt, why in bad]
    what = f"{len(bad)} of {len(prompts)} rows of {prompts.sources} have a gold answer that cannot be read"
    shown = "\n".join(listed[:_LISTED])
    if len(bad) > cfg.reward.max_failed_fraction * len(prompts):
        raise DataError(
            f"{what}, more than reward.max_failed_fraction {cfg.reward.max_failed_fraction:g}; check reward.fns and "
            f"data.answer_column ({cfg.data.answer_column}). The first:\n{shown}"
        )
    everyone = Path(str(cfg.run_dir)) / "unparseable_gold.txt"
    with everyone.open("a", encoding="utf-8") as file:
        file.write("\n".join(listed) + "\n")
    say(f"data: {what}; left out, all listed in {everyone}. The first:\n{shown}")
    prompts.without({prompt.id for prompt, _ in bad})


def _cluster(cfg: Config, watch: Watch) -> Cluster:
    roles = {"actor": cfg.actor.ranks, "rollout": cfg.rollout.engines * cfg.rollout.tensor_parallel}
    if cfg.kl.coef > 0:
        roles["reference"] = cfg.reference.ranks
    if cfg.critic.ranks > 0:
        roles["critic"] = cfg.critic.ranks
    if REWARD_MODEL in cfg.reward.fns:
        roles[REWARD_MODEL] = cfg.reward_model.ranks
    return Cluster(cfg.ray, cfg.placement, cfg.deadline, roles, watch)


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


def start_actor(cfg: Config, cluster: Cluster, watch: Watch) -> Actor:
    from rlcore.workers.actor import ActorRank
    from rlcore.workers.group import Actor, rank_group

    return Actor(rank_group("actor", ActorRank, cfg.actor.ranks, cfg, cluster, watch), cfg)


def _reward_model(cfg: Config, cluster: Cluster, watch: Watch, rewards: RewardManager) -> RewardModelLane:
    """The ranks of the reward model, and its lane among the `rewards`."""
    from rlcore.workers.group import RewardModelLane, rank_group
    from rlcore.workers.reward_model import RewardModelRank

    ranks = cfg.reward_model.ranks
    lane = RewardModelLane(rank_group(REWARD_MODEL, RewardModelRank, ranks, cfg, cluster, watch), cfg)
    rewards.add(lane)
    return lane


def _start(
    cfg: Config, resolved: DictConfig, cluster: Cluster, watch: Watch, tokenizer: Any, prompts: Prompts,
    evals: dict[str, list[Prompt]], rewards: RewardManager, say: Callable[[str], None],
) -> Parts:  # fmt: skip
    """The Ray side of build(): every role at once, then one wait for all of them."""
    from rlcore.algo.advantage import advantage_fn
    from rlcore.algo.kl import Controller
    from rlcore.workers.critic import CriticRank
    from rlcore.workers.group import Critic, Reference, WorkerGroup, rank_group
    from rlcore.workers.reference import ReferenceRank
    from rollout.collector import Collector
    from rollout.engine import Engine

    dtype = compute_dtype(cfg.model, cluster.device)
    longest = max([prompts.longest, *(len(p.tokens) for held_out in evals.values() for p in held_out)])
    context = longest + cfg.rollout.max_response_tokens
    sleep = cluster.device == "gpu" and cluster.colocated
    backend = _sync_backend(cfg, cluster)
    engines = WorkerGroup(
        "rollout", Engine, cfg.rollout.engines, cluster, watch, cfg.deadline,
        lambda i: (
            cfg.model.path, cfg.rollout, dtype, cluster.device, cfg.seed, context, i, sleep, cfg.model.tokenizer,
            backend,
        ),
        devices_each=cfg.rollout.tensor_parallel,
    )  # fmt: skip
    actor = start_actor(cfg, cluster, watch)
    reference = critic = None
    if cfg.kl.coef > 0:
        reference = Reference(rank_group("reference", ReferenceRank, cfg.reference.ranks, cfg, cluster, watch), cfg)
    if cfg.critic.ranks > 0:
        critic = Critic(rank_group("critic", CriticRank, cfg.critic.ranks, cfg, cluster, watch), cfg)
    scorer = _reward_model(cfg, cluster, watch, rewards) if REWARD_MODEL in cfg.reward.fns else None
    groups = [engines, actor.group, *(role.group for role in (reference, critic, scorer) if role is not None)]
    say(f"workers: starting {' + '.join(f'{len(g.workers)} {g.role}' for g in groups)} on {cluster.device}, {dtype}")
    refs = [(w, w.handle.start.remote()) for g in groups for w in g.workers]
    started = watch.gather([w for w, _ in refs], [r for _, r in refs], "start", cfg.deadline.start_seconds)
    join = functools.partial(_join_nccl, cfg.rollout.tensor_parallel) if backend == "nccl" else None
    actor.connect(engines.workers, backend, join, cfg.deadline.publish_seconds)
    rollouts = Collector(
        engines.workers, prompts, rewards, lambda t: tokenizer.decode(t, skip_special_tokens=True), watch, cfg.rollout,
        cfg.reward, cfg.rollouts_per_prompt, cfg.seed, cfg.deadline.rollout_seconds, eos=started[0]["eos"],
    )  # fmt: skip
    tracker = Tracker(Path(str(cfg.run_dir)), cfg.tracker, resolved, cfg.steps, decode=tokenizer.decode)
    watch.on_fatal = lambda error: tracker.event("failed", error="WorkerError", message=str(error))
    tracker.event("data", prompts=len(prompts), dropped=prompts.dropped, eval={n: len(p) for n, p in evals.items()})
    tracker.event("workers", **{str(w): s for (w, _), s in zip(refs, started, strict=True)})
    rollouts.on_progress = tracker.progress
    kl = Controller(cfg.kl)
    return Parts(
        cfg=cfg, watch=watch, phases=Phases(watch, Turns(groups, sleep)), prompts=prompts, evals=evals,
        rollouts=rollouts, actor=actor, reference=reference, critic=critic, kl=kl, tracker=tracker,
        columns=columns(cfg, actor, reference, critic, kl),
        checkpoints=Checkpoints(tracker.run_dir, cfg.keep_checkpoints),
        advantage=advantage_fn(cfg.advantage),
        reward_names=rewards.names, dtype=dtype,
        rewards=rewards, cluster=cluster, groups=groups,
    )  # fmt: skip


def _join_nccl(tensor_parallel: int, engines: list[Any], seconds: float) -> Any:
    """Runs in the actor's rank 0, the only trainer process that needs vLLM's side of nccl, and only for it."""
    from rollout.receiver import join_nccl

    return join_nccl(tensor_parallel, engines, seconds)
