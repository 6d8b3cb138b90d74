"""The driver's handle on the n ranks of a role: create, call, gather.

A driver never talks to one rank: it calls a method on all of them and waits through `Watch`, which has a deadline and
knows who died.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from rlcore.cluster.deadlines import Watch, Worker
from rlcore.cluster.placement import Cluster
from rlcore.config import Config, DeadlineConfig


class Place(NamedTuple):
    """Where a rank is: its number of `world`, the (host, port) where they meet, "cpu" or "gpu"."""

    rank: int
    world: int
    meeting: tuple[str, int]
    device: str


class Members(NamedTuple):
    """Who a group is: `ranks` actors of class `cls`, each over `devices_each` bundles of the placement group."""

    role: str
    cls: type
    ranks: int
    devices_each: int = 1


class WorkerGroup:
    """The ranks of one role, each a Ray actor on its own share of a device.

    `make(rank)` gives the constructor's arguments. Workers are created at once; `call("start", ...)` is the slow part.
    """

    def __init__(
        self,
        members: Members,
        make: Callable[[int], tuple[Any, ...]],
        cluster: Cluster,
        watch: Watch,
        deadline: DeadlineConfig,
    ) -> None:
        self.role, self.watch, self.deadline = members.role, watch, deadline
        remote, each = ray.remote(members.cls), members.devices_each
        self.workers = []
        for rank in range(members.ranks):
            options = cluster.options(self.role, rank * each, each)
            self.workers.append(Worker(self.role, rank, remote.options(**options).remote(*make(rank))))
        watch.workers += self.workers

    def call(self, method: str, *args: Any, seconds: float, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
        """`method(*args)` on every rank at the same time (`each` gives a rank its own arguments); results by rank."""
        return self.finish(method, self.begin(method, *args, each=each), seconds)

    def begin(self, method: str, *args: Any, each: list[tuple[Any, ...]] | None = None) -> list[ray.ObjectRef]:
        """The first half of `call`: does not wait."""
        own = each or [args] * len(self.workers)
        return [getattr(w.handle, method).remote(*a) for w, a in zip(self.workers, own, strict=True)]

    def finish(self, method: str, refs: list[ray.ObjectRef], seconds: float) -> list[Any]:
        """The second half: results by rank, within `seconds` from now."""
        return self.watch.gather(self.workers, refs, f"{self.role}.{method}", seconds)

    def fields_read(self) -> set[str]:
        return set().union(*self.call("fields_read", seconds=60))


def rank_group(role: str, cls: type, ranks: int, cfg: Config, cluster: Cluster, watch: Watch) -> WorkerGroup:
    """A group whose ranks meet in one torch process group."""
    meeting = cluster.address(role)
    make = lambda rank: (Place(rank, ranks, meeting, cluster.device), cfg)  # noqa: E731
    return WorkerGroup(Members(role, cls, ranks), make, cluster, watch, cfg.deadline)
