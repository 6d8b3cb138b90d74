"""Where things run: Ray started or joined, and one placement group per set of roles.

Colocated roles share one placement group and take a fraction of each of its devices, so rank i of every role sits on
device i (vLLM's ipc transfer needs that); split roles have a placement group each. A device is a GPU, or without GPUs a
CPU core: the same code places both.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlcore.cluster import cleanup
from rlcore.cluster.deadlines import Watch, Worker
from rlcore.cluster.local_ray import LocalRay, join
from rlcore.cluster.signals import held, mute_ray, shut_down_ray
from rlcore.config import DeadlineConfig, Device, Placement, PlacementConfig, RayConfig
from rlcore.errors import ConfigError, WorkerError
from rlcore.waiting import tell

PORTS = range(20_000, 32_768)  # above Ray's for its workers, below those the kernel hands out


class Cluster:
    """The Ray of one run. `roles` is how many devices each role takes: `{"actor": 2, "reference": 2, "rollout": 1}`.

    `device` is "cpu" or "gpu"; with `debug` Ray and the workers say all they can. Raises ConfigError when the cluster
    is too small, WorkerError when Ray or a placement group is not there within deadline.start_seconds.
    """

    def __init__(
        self,
        ray_cfg: RayConfig,
        cfg: PlacementConfig,
        deadline: DeadlineConfig,
        roles: dict[str, int],
        watch: Watch,
        debug: bool = False,
        keep_logs_in: Path | None = None,
    ) -> None:
        self.cfg, self.roles, self.watch, self._keep_logs_in = cfg, roles, watch, keep_logs_in
        self.seconds = deadline.start_seconds
        self.groups: dict[str, PlacementGroup] = {}
        self.run_id = secrets.token_hex(8)
        self.local: LocalRay | None = None
        self.colocated = cfg.mode == Placement.colocated
        self._cleanup: subprocess.Popen[bytes] | None = None
        try:
            self._start(ray_cfg, debug)
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[assignment]
            gpus = resources.get("GPU", 0)
            self.device = "gpu" if cfg.device == Device.gpu or (cfg.device == Device.auto and gpus) else "cpu"
            self._place("GPU" if self.device == "gpu" else "CPU", resources)
        except BaseException as e:
            self.close(e)
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.close(error)

    def _start(self, cfg: RayConfig, debug: bool) -> None:
        os.environ[cleanup.VARIABLE] = self.run_id
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if cfg.address is None:
            self.local = LocalRay()
        self._cleanup = subprocess.Popen(
            [sys.executable, "-S", cleanup.__file__, self.run_id, *([self.local.folder.path] if self.local else [])],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != cleanup.VARIABLE},
        )
        self.watch.also_alive.append(self._cleanup_died)
        self.watch.guard()
        if not debug:
            mute_ray()
        if self.local is None:
            join(str(cfg.address), debug)
        else:
            self.watch.also_alive.append(self.local.died)
            self.watch.on_fatal.append(self._keep_logs)
            if self._keep_logs_in is not None:
                self.watch.logs = f"Ray's logs are in {self._keep_logs_in}"
            self.local.start(cfg, self._devices(), debug)

    def _devices(self) -> int:
        """How many the roles take."""
        return max(self.roles.values()) if self.colocated else sum(self.roles.values())

    def _cleanup_died(self) -> str | None:
        gone = self._cleanup is not None and self._cleanup.poll() is not None  # None: this cluster is closed
        return "the run's cleanup process" if gone else None

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
        waiting = self.watch.waiting("placement", self.seconds)
        for role, group in self.groups.items():
            what = f"the {group.bundle_count} {resource}s of role {role}"
            while not group.wait(timeout_seconds=1):
                self.watch.look()
                waiting.look(lambda what=what: f"{what}, which other jobs hold (`ray status` shows them)")
                if waiting.seconds > self.seconds:
                    held_by = "other jobs hold them (`ray status` shows them)"
                    raise WorkerError(f"{what} were not free within {self.seconds:g} s: {held_by}")

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
        env = {cleanup.VARIABLE: self.run_id, "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
        if self.device == "cpu":
            env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if devices > 1:
            bundles = ",".join(str(i) for i in range(index, index + devices))
            env |= {"VLLM_RAY_PER_WORKER_GPUS": str(share), "VLLM_RAY_BUNDLE_INDICES": bundles}
        if self.local is not None:
            env["VLLM_RPC_BASE_PATH"] = str(self.local.folder.path)  # a TMPDIR may be too long for its sockets
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
        return self.watch.gather([Worker(role, 0, None)], [task.remote()], "a process on its node", self.seconds)[0]

    def close(self, error: BaseException | None = None) -> None:
        """End everything the run started; safe to call twice, and after any failure. Ray's logs are kept where `error`
        may be explained by them. A signal that comes meanwhile waits."""
        with held():
            self._close(error)

    def _close(self, error: BaseException | None) -> None:
        if self._cleanup is None:
            return
        self.watch.closed = True
        if self.local is None:
            for group in set(self.groups.values()):
                remove_placement_group(group)
        shut_down_ray()
        os.environ.pop(cleanup.VARIABLE, None)
        cleanup.sweep(self.run_id, spare=frozenset({os.getpid()}))
        if isinstance(error, WorkerError):
            self._keep_logs(error)
        assert self._cleanup.stdin is not None
        self._cleanup.stdin.close()
        self._cleanup.wait(timeout=30)
        self._cleanup = None
        if self.local is not None:
            self.local.close()

    def _keep_logs(self, _error: WorkerError) -> None:
        if self.local is not None and self._keep_logs_in is not None:
            try:
                self.local.folder.keep_logs(self._keep_logs_in)
            except OSError as e:  # what the run ended with is the news
                with suppress(OSError):
                    tell(f"Ray's logs are not in {self._keep_logs_in}, or not all of them: {e.strerror}")


@ray.remote
def _free_address() -> tuple[str, int]:
    return ray.util.get_node_ip_address(), free_port()


def free_port() -> int:
    """A port nobody listens on, of those the kernel gives to nobody by itself: until the ranks bind it, no connection
    of another process takes it."""
    for port in random.SystemRandom().sample(PORTS, min(100, len(PORTS))):
        with socket.socket() as s:
            try:
                s.bind(("", port))
            except OSError:
                continue
            return port
    raise WorkerError(f"100 ports of {PORTS.start} to {PORTS.stop - 1} are all taken; end what holds them")
