"""Where things run: Ray started or joined, one placement group per set of roles, and whose turn the device is.

Colocated roles share one placement group and take a fraction of each of its devices, so rank i of every role sits on
device i (vLLM's ipc transfer needs that); split roles have a placement group each. A device is a GPU, or without GPUs a
CPU core: the same code places both.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlcore.cluster import cleanup as janitor
from rlcore.cluster.deadlines import Watch
from rlcore.config import DeadlineConfig, Device, Placement, PlacementConfig, RayConfig
from rlcore.errors import ConfigError, WorkerError

_PORTS = range(20_000, 32_768)  # above Ray's for its workers, below those the kernel hands out


class Cluster:
    """The Ray of one run. `roles` is how many devices each role takes: `{"actor": 2, "reference": 2, "rollout": 1}`.

    `device` is "cpu" or "gpu". Raises ConfigError when the cluster is too small, WorkerError when Ray or a placement
    group is not there within deadline.start_seconds.
    """

    def __init__(
        self, ray_cfg: RayConfig, cfg: PlacementConfig, deadline: DeadlineConfig, roles: dict[str, int], watch: Watch
    ) -> None:
        self.cfg, self.roles, self.watch = cfg, roles, watch
        self.seconds = deadline.start_seconds
        self.groups: dict[str, PlacementGroup] = {}
        self.run_id = secrets.token_hex(8)
        self._janitor: subprocess.Popen[bytes] | None = None
        self.local = ray_cfg.address is None
        self.colocated = cfg.mode == Placement.colocated
        try:
            self._start(ray_cfg)
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[assignment]
            gpus = resources.get("GPU", 0)
            self.device = "gpu" if cfg.device == Device.gpu or (cfg.device == Device.auto and gpus) else "cpu"
            self._place("GPU" if self.device == "gpu" else "CPU", resources)
        except BaseException:
            self.close()
            raise

    def _start(self, cfg: RayConfig) -> None:
        os.environ[janitor.VARIABLE] = self.run_id
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._janitor = subprocess.Popen(
            [sys.executable, "-S", str(Path(janitor.__file__)), self.run_id],
            stdin=subprocess.PIPE, start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != janitor.VARIABLE},
        )  # fmt: skip
        self.watch.also_alive.append(self._janitor_died)
        self.watch.guard()
        debug = bool(os.environ.get("RLCORE_DEBUG"))
        common: dict[str, Any] = {"log_to_driver": debug, "logging_level": "INFO" if debug else "ERROR"}
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            self._init(cfg, common)
        finally:  # Ray puts its own, which abort the driver before it can clean up
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _init(self, cfg: RayConfig, common: dict[str, Any]) -> None:
        if not self.local:
            try:
                with _deadline(self.seconds, f"joining the Ray cluster at {cfg.address}"):
                    ray.init(address=cfg.address, **common)
            except (ConnectionError, RuntimeError) as e:
                raise ConfigError(
                    f"ray.address: cannot join {cfg.address!r}: {e}; start a cluster with `ray start`, and where it "
                    "asks for tokens, as Ray does by default, set RAY_AUTH_MODE=token"
                ) from e
            return
        cores = os.cpu_count() or 1
        wanted = sum(self.roles.values()) if self.cfg.mode == Placement.split else max(self.roles.values())
        try:
            ray.init(
                address="local", num_cpus=max(cores, wanted), include_dashboard=False,
                object_store_memory=cfg.object_store_mib * 2**20, **common,
            )  # fmt: skip
        except Exception as e:  # Ray raises this very class when its own 30 seconds for a start are over
            load = os.getloadavg()[0]
            raise WorkerError(
                f"Ray does not start on this machine (load average {load:.0f}, {cores} cores): {e}"
            ) from e
        node: Any = worker._global_node
        self._ray_processes = {
            kind: info.process
            for kind, infos in node.all_processes.items()
            if kind in ("raylet", "gcs_server")
            for info in infos
        }
        self.watch.also_alive.append(self._ray_died)

    def _ray_died(self) -> str | None:
        for kind, process in self._ray_processes.items():
            if process.poll() is not None:
                return f"Ray's {kind} (pid {process.pid})"
        return None

    def _janitor_died(self) -> str | None:
        gone = self._janitor is not None and self._janitor.poll() is not None  # None: this cluster is closed
        return "the run's janitor process" if gone else None

    def _place(self, resource: str, resources: dict[str, float]) -> None:
        if self.colocated:
            shared = placement_group([{resource: 1.0}] * max(self.roles.values()), strategy="PACK", name="shared")
            self.groups = dict.fromkeys(self.roles, shared)
        else:
            for role, n in self.roles.items():
                self.groups[role] = placement_group([{resource: 1.0}] * n, strategy="PACK", name=role)
        needed = sum(g.bundle_count for g in set(self.groups.values()))
        if needed > resources.get(resource, 0):
            raise ConfigError(
                f"placement: the roles {self.roles} need {needed} {resource}s in mode {self.cfg.mode.value}, the Ray "
                f"cluster has {resources.get(resource, 0):g}; lower the ranks, colocate, or add nodes"
            )
        until = time.monotonic() + self.seconds
        for role, group in self.groups.items():
            if not group.wait(timeout_seconds=max(1.0, until - time.monotonic())):
                raise WorkerError(
                    f"placement group for role {role} ({group.bundle_count} {resource}s) was not ready within "
                    f"{self.seconds:g} s; other jobs hold the devices (`ray status` shows them)"
                )

    def strategy(self, role: str, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(
            self.groups[role], placement_group_bundle_index=index, placement_group_capture_child_tasks=True
        )

    def options(self, role: str, index: int, devices: int = 1) -> dict[str, Any]:
        """Ray actor options for the role's worker on device `index`: its share of the device, its environment.

        A worker over several `devices` (a tensor-parallel engine) takes none itself: vLLM places a process of its own
        on each of them.
        """
        share = round(1.0 / len(self.roles), 3) - 0.001 if self.colocated else 1.0
        env = {janitor.VARIABLE: self.run_id, "TOKENIZERS_PARALLELISM": "false"}
        if self.device == "cpu":
            env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if devices > 1:
            bundles = ",".join(str(i) for i in range(index, index + devices))
            env |= {"VLLM_RAY_PER_WORKER_GPUS": str(share), "VLLM_RAY_BUNDLE_INDICES": bundles}
        return {
            "num_cpus": share if self.device == "cpu" else 0,
            "num_gpus": share if self.device == "gpu" and devices == 1 else 0,
            "scheduling_strategy": self.strategy(role, index),
            "runtime_env": {"env_vars": env},
            "max_restarts": 0,
        }

    def address(self, role: str) -> tuple[str, int]:
        """(host, free port) on the node of the role's rank 0, where its ranks meet."""
        task = _free_address.options(num_cpus=0, scheduling_strategy=self.strategy(role, 0))
        ready, _ = ray.wait([ref := task.remote()], timeout=self.seconds)
        if not ready:
            raise WorkerError(f"no process could start on the node of {role} rank 0 within {self.seconds:g} s")
        return ray.get(ref)

    def close(self) -> None:
        """End everything the run started; safe to call twice, and after any failure."""
        if self._janitor is None:
            return
        self.watch.closed = True
        if self.local:
            ray.shutdown()
        else:
            for group in set(self.groups.values()):
                remove_placement_group(group)
            ray.shutdown()
        os.environ.pop(janitor.VARIABLE, None)
        janitor.sweep(self.run_id, spare=frozenset({os.getpid()}))
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait(timeout=30)
        self._janitor = None


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """End the process with a name when `what` takes longer: for calls into Ray that cannot be given a timeout."""

    def give_up() -> None:
        error = WorkerError(f"{what} took longer than deadline.start_seconds {seconds:g}")
        print(f"rlcore: WorkerError: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@ray.remote
def _free_address() -> tuple[str, int]:
    return ray.util.get_node_ip_address(), free_port()


def free_port() -> int:
    """A port nobody listens on, of those the kernel gives to nobody by itself: until the ranks bind it, no connection
    of another process takes it."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return port
    raise WorkerError(f"100 ports of {_PORTS.start} to {_PORTS.stop - 1} are all taken; end what holds them")


class Phases:
    """A clock over one step, and whose turn it is on shared devices: `with phase("rollout"): ...`.

    `seconds` is how long each phase took. `turn(phase)` is called on entering: it wakes and sleeps what takes turns.
    """

    def __init__(self, watch: Watch, turn: Callable[[str], None]) -> None:
        self.watch, self.turn = watch, turn
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.watch.phase = name
        began = time.monotonic()
        self.turn(name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}_s": s for name, s in self.seconds.items()}
