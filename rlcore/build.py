"""Config -> Parts: the only module that knows who implements what. It alone imports rollout/ and rewards/."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore import checkpoint
from rlcore.checkpoint import Checkpoints
from rlcore.config import Config, SyncBackend, compute_dtype
from rlcore.data import Prompts
from rlcore.errors import ConfigError
from rlcore.placement import Cluster, Phases
from rlcore.protocols import AdvantageFn
from rlcore.records import Batch, Group, Prompt
from rlcore.tracker import Tracker
from rlcore.waits import Watch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rewards.pool import RewardPool
    from rlcore.workers.group import Actor, Scorer, WorkerGroup
    from rollout.collector import Collector


def cache_dir() -> Path:
    """Where made models are kept: $RLCORE_CACHE, else ~/.cache/rlcore."""
    return Path(os.environ.get("RLCORE_CACHE", "~/.cache/rlcore")).expanduser()


def with_model(cfg: Config, path: str) -> Config:
    """A copy of `cfg` whose model.path is `path`: what "demo" or a GGUF file became."""
    changed, changed.model = copy.copy(cfg), copy.copy(cfg.model)
    changed.model.path = path
    return changed


def as_directory(cfg: Config) -> Config:
    """The config with a GGUF model turned into a Hugging Face directory (once, cached); otherwise as it is."""
    if not cfg.model.path.endswith(".gguf"):
        return cfg
    from rlcore.workers.model import to_directory

    file = Path(cfg.model.path).expanduser().resolve()
    identity = f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
    out = cache_dir() / f"gguf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return with_model(cfg, str(to_directory(cfg.model, out)))


@dataclass
class Parts:
    """What the loop is made of. `build()` makes the real ones, tests/loop the fake ones."""

    cfg: Config
    watch: Watch
    phases: Phases
    prompts: Prompts
    evals: dict[str, list[Prompt]]
    rollouts: Collector
    actor: Actor
    reference: Scorer | None
    advantage: AdvantageFn
    tracker: Tracker
    checkpoints: Checkpoints
    reward_names: list[str]
    dtype: str
    max_logp_diff: float
    needs_old_logp: bool
    pool: RewardPool | None = None
    cluster: Cluster | None = None
    groups: list[WorkerGroup] = field(default_factory=list)

    @property
    def quarantine(self) -> str:
        return str(self.tracker.run_dir / "quarantine.jsonl")

    def restore(self) -> int:
        """The step to go on from: 0, or the newest checkpoint's, with weights, optimizer and data position restored."""
        found = self.checkpoints.latest()
        if found is None:
            return 0
        state = checkpoint.state_of(found)
        self.actor.load(found)
        self.prompts.restore(state["data"])
        self.tracker.event("resumed", step=state["step"], checkpoint=found.name)
        return state["step"]

    def save(self, step: int) -> Path:
        with self.phases("save"):
            saved = self.checkpoints.save(step, self.actor.save, {"data": self.prompts.state()})
        self.tracker.event("saved", step=step, checkpoint=saved.name)
        return saved

    def publish(self, version: int) -> dict[str, float]:
        """Weights to the engines; rollouts from now on carry `version`."""
        began = time.monotonic()
        numbers = self.actor.publish(version)
        self.rollouts.version = version
        return numbers | {"sync/seconds": time.monotonic() - began}

    def probe(self) -> float:
        """The largest difference between the engine's and the trainer's log-probabilities of one fresh sample.

        The loop checks every version with its own rollouts one step later; the last version has no later step.
        """
        with self.phases("probe"):
            prompts = next(iter(self.evals.values()), None) or self.prompts.all(limit=1)
            groups = self.rollouts.sample(prompts[:1], samples=2, temperature=self.cfg.rollout.temperature)
            batch = Batch.from_groups([Group([_scored(r) for r in g.rollouts]) for g in groups])
            difference = (self.actor.logp(batch) - batch.rollout_logp)[batch.mask].abs()
        return float(difference.max()) if len(difference) else 0.0

    def fields_read(self) -> set[str]:
        return set().union(*(g.fields_read() for g in self.groups))

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
        if self.cluster is not None:
            self.cluster.close()


def _scored(rollout: Any) -> Any:
    """A copy that counts as scored: its log-probabilities are what is wanted."""
    same = copy.copy(rollout)
    same.reward = 0.0
    return same


def build(cfg: Config, resolved: DictConfig, say: Callable[[str], None]) -> Parts:
    """Start everything: data and rewards first, then Ray, then the models. Cleans up if it fails half way.

    `say(text)` tells the user what is being started. Raises ConfigError, DataError or WorkerError.
    """
    from rewards.pool import RewardPool
    from rlcore.workers.model import load_tokenizer

    assert cfg.run_dir is not None
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    say("data: reading and tokenizing")
    tokenizer = load_tokenizer(cfg.model)
    prompts = Prompts(cfg.data.train, cfg.data, tokenizer, cfg.seed)
    evals: dict[str, list[Prompt]] = {}
    held_out = [Prompts(source, cfg.data, tokenizer, cfg.seed) for source in cfg.data.eval]
    for i, each in enumerate(held_out):
        name = each.name if each.name not in evals else f"{each.name}-{i + 1}"
        evals[name] = each.all(limit=cfg.eval.prompts)
    for each, source in zip([prompts, *held_out], [cfg.data.train, *cfg.data.eval], strict=True):
        if each.dropped:
            say(f"data: left out {each.dropped} prompts of {source} over data.max_prompt_tokens")
    quarantine = run_dir / "quarantine.jsonl"
    pool = RewardPool(cfg.reward.fns, cfg.reward.weights, cfg.reward.workers, cfg.reward.timeout_seconds, quarantine)
    cluster = None
    try:
        pool.ready(cfg.deadline.start_seconds)
        watch = Watch()
        say("Ray: starting" if cfg.ray.address is None else f"Ray: joining {cfg.ray.address}")
        cluster = _cluster(cfg, watch)
        return _start(cfg, resolved, cluster, watch, tokenizer, prompts, evals, pool, say)
    except BaseException:
        pool.close()
        if cluster is not None:
            cluster.close()
        raise


def _cluster(cfg: Config, watch: Watch) -> Cluster:
    roles = {"actor": cfg.actor.ranks, "rollout": cfg.rollout.engines * cfg.rollout.tensor_parallel}
    if cfg.kl.coef > 0:
        roles["reference"] = cfg.reference.ranks
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

    return Actor(rank_group("actor", ActorRank, cfg.actor.ranks, cfg, cluster, watch), cfg.actor, cfg.steps)


def _start(
    cfg: Config, resolved: DictConfig, cluster: Cluster, watch: Watch, tokenizer: Any, prompts: Prompts,
    evals: dict[str, list[Prompt]], pool: RewardPool, say: Callable[[str], None],
) -> Parts:  # fmt: skip
    """The Ray side of build(): every role at once, then one wait for all of them."""
    from rlcore.algo.advantage import advantage_fn
    from rlcore.workers.group import Scorer, WorkerGroup, rank_group
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
    reference = None
    if cfg.kl.coef > 0:
        group = rank_group("reference", ReferenceRank, cfg.reference.ranks, cfg, cluster, watch)
        reference = Scorer(group, cfg.actor.microbatch_tokens)
    groups = [engines, actor.group] + ([reference.group] if reference else [])
    say(f"workers: starting {' + '.join(f'{len(g.workers)} {g.role}' for g in groups)} on {cluster.device}, {dtype}")
    refs = [(w, w.handle.start.remote()) for g in groups for w in g.workers]
    started = watch.gather([w for w, _ in refs], [r for _, r in refs], "start", cfg.deadline.start_seconds)
    join = functools.partial(_join_nccl, cfg.rollout.tensor_parallel) if backend == "nccl" else None
    actor.connect(engines.workers, backend, join, cfg.deadline.publish_seconds)
    rollouts = Collector(
        engines.workers, prompts, pool, lambda t: tokenizer.decode(t, skip_special_tokens=True), watch, cfg.rollout,
        cfg.rollouts_per_prompt, cfg.seed, cfg.deadline.rollout_seconds, eos=started[0]["eos"],
    )  # fmt: skip
    tracker = Tracker(Path(str(cfg.run_dir)), cfg.tracker, resolved, cfg.steps, decode=tokenizer.decode)
    watch.on_fatal = lambda error: tracker.event("failed", error="WorkerError", message=str(error))
    tracker.event("data", prompts=len(prompts), dropped=prompts.dropped, eval={n: len(p) for n, p in evals.items()})
    tracker.event("workers", **{str(w): s for (w, _), s in zip(refs, started, strict=True)})
    rollouts.on_progress = tracker.progress
    tolerance = cfg.sync.max_logp_diff
    return Parts(
        cfg=cfg, watch=watch, phases=Phases(watch, Turns(groups, sleep)), prompts=prompts, evals=evals,
        rollouts=rollouts, actor=actor, reference=reference, tracker=tracker,
        checkpoints=Checkpoints(tracker.run_dir, cfg.keep_checkpoints),
        advantage=advantage_fn(cfg.advantage),
        reward_names=pool.names, dtype=dtype,
        max_logp_diff=tolerance if tolerance is not None else {"float32": 1e-3}.get(dtype, 1.0),
        needs_old_logp=cfg.actor.epochs_per_step * cfg.actor.minibatches_per_step > 1,
        pool=pool, cluster=cluster, groups=groups,
    )  # fmt: skip


def _join_nccl(tensor_parallel: int, engines: list[Any], seconds: float) -> Any:
    """Runs in the actor's rank 0, the only trainer process that needs vLLM's side of nccl, and only for it."""
    from rollout.receiver import join_nccl

    return join_nccl(tensor_parallel, engines, seconds)


class Turns:
    """Whose turn a shared GPU is: engines and trainers sleep and wake by turns. On CPU, or split, nobody sleeps."""

    def __init__(self, groups: list[WorkerGroup], active: bool) -> None:
        self.engines, self.trainers = groups[0], groups[1:]
        self.active, self.awake = active, {g.role for g in groups}

    def __call__(self, phase: str) -> None:
        if not self.active:
            return
        # A sleeping engine has dropped its weights: it may sleep only where a publish comes before the next sample.
        self._set([self.engines], phase not in ("credit", "update"))
        self._set(self.trainers, phase not in ("rollout", "eval"))

    def _set(self, groups: list[WorkerGroup], awake: bool) -> None:
        for group in groups:
            if (group.role in self.awake) == awake:
                continue
            group.call("wake" if awake else "sleep", seconds=group.deadline.publish_seconds)
            (self.awake.add if awake else self.awake.discard)(group.role)
