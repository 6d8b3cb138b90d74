"""Two nodes on this machine: where roles are put, and how a wait for what runs there ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from rlcore.cluster import cleanup
from rlcore.cluster.deadlines import Calls, Watch, Worker
from rlcore.cluster.placement import PORTS, Cluster
from rlcore.config import DeadlineConfig, Placement, PlacementConfig, RayConfig
from rlcore.errors import ConfigError, SyncError, WorkerError

Split = tuple[Cluster, dict[str, list[Worker]]]
ROLES = {"actor": 2, "rollout": 1, "reference": 1}  # on nodes of 2 devices each


@ray.remote
class Rank:
    def where(self) -> tuple[str, str | None]:
        return node(), os.environ.get(cleanup.VARIABLE)

    def fail(self, error: Exception) -> None:
        raise error

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def node() -> str:
    return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    try:
        for _ in range(2):
            started.add_node(num_cpus=2, num_gpus=0, object_store_memory=80 << 20)
        yield started
    finally:
        started.shutdown()


def join(nodes: Nodes, roles: dict[str, int], mode: Placement = Placement.split) -> Cluster:
    ray_cfg, place = RayConfig(address=nodes.address), PlacementConfig(mode=mode)
    return Cluster(ray_cfg, place, DeadlineConfig(start_seconds=60), roles, Watch())


def start(cluster: Cluster, role: str, rank: int) -> Worker:
    worker = Worker(role, rank, Rank.options(**cluster.options(role, rank)).remote())
    cluster.watch.workers.append(worker)
    return worker


def call(calls: Calls, workers: list[Worker], method: str, *args: Any, seconds: float = 60) -> list[Any]:
    refs = [getattr(w.handle, method).remote(*args) for w in workers]
    return calls.gather(workers, refs, f"test.{method}", seconds)


def test_a_cluster_that_is_too_small_is_a_config_error_with_numbers(nodes: Nodes) -> None:
    with pytest.raises(ConfigError, match="need 5 CPUs in mode split, the Ray cluster has 4; lower the ranks"):
        join(nodes, {"actor": 3, "rollout": 2})


@pytest.fixture(scope="module")
def split(nodes: Nodes) -> Iterator[Split]:
    cluster = join(nodes, ROLES)
    try:
        yield cluster, {role: [start(cluster, role, i) for i in range(n)] for role, n in ROLES.items()}
    finally:
        cluster.close()
        assert cleanup.sweep(cluster.run_id) == 0  # nothing was left


def test_a_role_is_on_one_node_and_the_roles_fill_both(split: Split) -> None:
    cluster, workers = split
    assert cluster.device == "cpu" and not cluster.colocated
    found = {role: call(cluster.watch, of_role, "where") for role, of_role in workers.items()}
    nodes = {role: {node for node, _ in places} for role, places in found.items()}
    assert all(len(of_role) == 1 for of_role in nodes.values())
    assert nodes["actor"] != nodes["rollout"] == nodes["reference"]
    assert {run_id for places in found.values() for _, run_id in places} == {cluster.run_id}
    assert ray.available_resources().get("CPU", 0.0) == 0.0
    beside = ray.remote(node).options(num_cpus=0, scheduling_strategy=cluster.strategy("rollout", 0))
    assert ray.get(beside.remote(), timeout=60) in nodes["rollout"]
    host, port = cluster.address("actor")
    assert host == ray.util.get_node_ip_address() and port in PORTS


def test_what_a_worker_raises_names_it_and_what_was_going_on(split: Split) -> None:
    calls, ranks = Calls("load_bucket"), split[1]["actor"]
    with pytest.raises(SyncError, match="^actor rank 0, load_bucket: model.norm.weight$"):
        call(calls, ranks[:1], "fail", SyncError("model.norm.weight"))
    with pytest.raises(WorkerError, match="^actor rank 1 raised in load_bucket: ValueError: no$") as raised:
        call(calls, ranks[1:], "fail", ValueError("no"))
    assert "in fail" in raised.value.details


def test_a_late_answer_names_who_was_waited_for(split: Split) -> None:
    (late,) = split[1]["rollout"]
    with pytest.raises(WorkerError, match=r"^test.sleep: no answer from rollout rank 0 within 0.2 s, load_bucket$"):
        call(Calls("load_bucket"), [late], "sleep", 2.0, seconds=0.2)
    watch = split[0].watch
    watch.phase = "rollout"
    assert watch.any({late.handle.where.remote(): late}, 0.2) == []
    with pytest.raises(WorkerError, match=r"^test.sleep: no answer from rollout rank 0 within 0.2 s, phase rollout$"):
        call(watch, [late], "sleep", 0.0, seconds=0.2)


def test_a_death_ends_the_wait_for_another(split: Split) -> None:
    """The last test of this cluster: its reference is gone."""
    cluster, workers = split
    workers["reference"][0].handle.die.remote()
    cluster.watch.phase = "rollout"
    with pytest.raises(WorkerError, match="^reference rank 0 died during phase rollout: .* Ray's logs are under"):
        call(cluster.watch, workers["actor"], "sleep", 20.0)
    with pytest.raises(WorkerError, match="^reference rank 0 died during load_bucket: "):
        call(Calls("load_bucket"), workers["reference"], "where")
