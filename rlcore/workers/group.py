"""The driver's handle on the n ranks of a role: split by tokens, scatter, call, gather.

A driver never talks to one rank: it calls a method on all of them and waits through `Watch`, which has a deadline and
knows who died.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import merge
from rlcore.config import ActorConfig, Config, DeadlineConfig
from rlcore.placement import Cluster
from rlcore.records import Batch
from rlcore.waits import Watch, Worker
from rlcore.workers.packing import plan, split


class WorkerGroup:
    """The ranks of one role, each a Ray actor on its own share of a device.

    `make(rank)` gives the constructor's arguments; `devices_each` is how many bundles of the placement group one
    worker spans. Workers are created at once; `call("start", ...)` does the slow part.
    """

    def __init__(
        self, role: str, cls: type, ranks: int, cluster: Cluster, watch: Watch, deadline: DeadlineConfig,
        make: Callable[[int], tuple[Any, ...]], devices_each: int = 1,
    ) -> None:  # fmt: skip
        self.role, self.watch, self.deadline = role, watch, deadline
        remote = ray.remote(cls)
        self.workers = [
            Worker(
                role,
                rank,
                remote.options(**cluster.options(role, rank * devices_each, devices_each)).remote(*make(rank)),
            )
            for rank in range(ranks)
        ]
        watch.workers += self.workers

    def call(self, method: str, *args: Any, seconds: float, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
        """`method(*args)` on every rank at the same time (`each` gives a rank its own arguments); results by rank."""
        own = each or [args] * len(self.workers)
        refs = [getattr(w.handle, method).remote(*a) for w, a in zip(self.workers, own, strict=True)]
        return self.watch.gather(self.workers, refs, f"{self.role}.{method}", seconds)

    def fields_read(self) -> set[str]:
        return set().union(*self.call("fields_read", seconds=60))


def rank_group(role: str, cls: type, ranks: int, cfg: Config, cluster: Cluster, watch: Watch) -> WorkerGroup:
    """A group whose ranks meet in one torch process group."""
    host, port = cluster.address(role)
    return WorkerGroup(
        role, cls, ranks, cluster, watch, cfg.deadline, lambda rank: (rank, ranks, host, port, cfg, cluster.device)
    )


class Scorer:
    """Token log-probabilities from the ranks of a group; the reference is nothing else."""

    def __init__(self, group: WorkerGroup, microbatch_tokens: int) -> None:
        self.group, self.microbatch_tokens = group, microbatch_tokens

    def logp(self, batch: Batch) -> Tensor:
        """(N,) float32: the log-probability of each token of `batch` under this model, 0 where mask is False."""
        plans = plan(batch.lengths.tolist(), len(self.group.workers), self.microbatch_tokens)
        mine = [[i for microbatch in rank for i in microbatch] for rank in plans]
        each = []
        for indices, rank in zip(mine, plans, strict=True):
            local = iter(range(len(indices)))
            each.append((batch.select(indices), [[next(local) for _ in microbatch] for microbatch in rank]))
        parts = self.group.call("logp", each=each, seconds=self.group.deadline.update_seconds)
        logp = torch.zeros(len(batch.tokens))
        for indices, part in zip(mine, parts, strict=True):
            logp[batch.tokens_of(indices)] = part
        return logp


class Actor(Scorer):
    """The policy being trained: log-probabilities, updates, weights out, checkpoints."""

    def __init__(self, group: WorkerGroup, cfg: ActorConfig, steps: int) -> None:
        super().__init__(group, cfg.microbatch_tokens)
        self.cfg, self.steps = cfg, steps

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """All optimizer updates of step `step` (0-based) on its batch; metrics `actor/...` and `sync/logp_diff_max`."""
        work = split(
            batch,
            len(self.group.workers),
            self.microbatch_tokens,
            self.cfg.minibatches_per_step,
            self.cfg.epochs_per_step,
        )
        rate = learning_rate(step, self.steps, self.cfg)
        stats = self.group.call("update", each=[(w, rate) for w in work], seconds=self.group.deadline.update_seconds)
        return merge(stats) | {"actor/lr": rate}

    def connect(self, engines: list[Worker], backend: str, join: Callable[..., Any] | None, seconds: float) -> None:
        """Open the way for weights; `join` opens an nccl group with the engines (rollout.receiver.join_nccl)."""
        self.group.call("connect", [e.handle for e in engines], backend, seconds, join, seconds=seconds)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to every engine as `version`, verified there; see rlcore/weights.py."""
        return self.group.call("publish", version, seconds=self.group.deadline.publish_seconds)[0]

    def save(self, directory: Path) -> None:
        self.group.call("save", str(directory.resolve()), seconds=self.group.deadline.update_seconds)

    def load(self, directory: Path) -> None:
        self.group.call("load", str(directory.resolve()), seconds=self.group.deadline.update_seconds)
