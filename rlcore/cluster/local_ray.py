"""A Ray started on this machine, or a running one joined; and what its workers get of the user's surroundings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from typing import Any

import ray
from ray._private import services, worker
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from rlcore.cluster.deadlines import deadline
from rlcore.cluster.folder import RayFolder, sweep
from rlcore.cluster.signals import rays_kept_out
from rlcore.config import RayConfig
from rlcore.errors import ConfigError, WorkerError
from rlcore.waiting import tell

_TOKEN, _TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_SHM = "/dev/shm"
_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 60.0
# How a connection of HTTP/2, which Ray speaks, begins; and a SETTINGS frame without any.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Job(JobConfig):
    """Ray puts the driver's working directory and its script's first on the path of the workers, where a `rollout.py`
    of the user's would come before ours. They get the driver's path instead, in its order."""

    def _serialize(self) -> Any:
        self._py_driver_sys_path = [os.path.abspath(entry) for entry in reversed(sys.path)]  # each is put first
        return super()._serialize()


class LocalRay:
    """A Ray of the run's own: its folder at once, its processes with `start`."""

    def __init__(self) -> None:
        sweep()
        self.folder = RayFolder()
        self._before = {name: os.environ.pop(name, None) for name in (_TOKEN, _TOKEN_PATH)}
        os.environ[_TOKEN_PATH] = str(self.folder.token)
        AuthenticationTokenLoader.instance().reset_cache()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, cfg: RayConfig, devices: int, debug: bool) -> None:
        """At least `devices` CPUs, though the machine may have fewer. WorkerError when Ray does not come up."""
        cores, store = os.cpu_count() or 1, cfg.object_store_mib << 20
        where = _SHM if _free_bytes(_SHM) > store else str(self.folder.path)
        if where != _SHM:
            tell(
                f"{_SHM} has {_free_bytes(_SHM) >> 20} MiB, ray.object_store_mib is {cfg.object_store_mib}: Ray's "
                f"shared memory is in {where}, on disk (docker run --shm-size=2g makes {_SHM} larger)"
            )
        try:
            with rays_kept_out():
                ray.init(
                    "local",
                    num_cpus=max(cores, devices),
                    include_dashboard=False,
                    object_store_memory=store,
                    _plasma_directory=where,
                    _temp_dir=str(self.folder.path),
                    **_job(debug),
                )
        except Exception as e:  # Ray raises this very class when its own 30 seconds for a start are over
            load = os.getloadavg()[0]
            raise WorkerError(
                f"Ray does not start on this machine (load average {load:.0f}, {cores} cores): {e}"
            ) from e
        node: Any = worker._global_node
        for kind in ("raylet", "gcs_server"):
            for info in node.all_processes.get(kind, ()):
                self._processes[kind] = info.process

    def died(self) -> str | None:
        """Which of Ray's own processes has died."""
        for kind, process in self._processes.items():
            if process.poll() is not None:
                return f"Ray's {kind} (pid {process.pid})"
        return None

    def close(self) -> None:
        """After its processes have ended."""
        for name, value in self._before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        AuthenticationTokenLoader.instance().reset_cache()
        self.folder.remove()


def join(address: str, debug: bool) -> None:
    """Become a driver of the Ray cluster at `address`. ConfigError, within seconds, where there is none."""
    where = _reachable(address)
    try:
        with rays_kept_out(), deadline(_JOIN_SECONDS, f"joining the Ray cluster at {where}"):
            ray.init(where, **_job(debug))
    except (ConnectionError, RuntimeError) as e:
        raise ConfigError(
            f"ray.address: cannot join {address!r}: {e}; start a cluster with `ray start`, and where it asks for "
            "tokens, as Ray does by default, set RAY_AUTH_MODE=token"
        ) from e


def _job(debug: bool) -> dict[str, Any]:
    return {"job_config": Job(), "log_to_driver": debug, "logging_level": "INFO" if debug else "ERROR"}


def _reachable(address: str) -> str:
    """HOST:PORT of a cluster that answers: where nobody does, Ray itself says so after two minutes, and then exits."""
    if "://" in address:
        raise ConfigError(f"ray.address: {address!r}: give HOST:6379 and start rlcore on a machine of the cluster")
    try:
        found = services.canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as e:
        raise ConfigError(f"ray.address: {address!r} is no HOST:PORT of a Ray cluster: {e}") from e
    if found is None:
        raise ConfigError(f"ray.address: {address!r}, and no cluster runs here; start one with `ray start --head`")
    host, _, port = found.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as e:
        raise ConfigError(f"ray.address: nobody answers at {found} ({address!r}): {e}") from e
    if answer[3:4] != b"\x04":  # its SETTINGS
        raise ConfigError(f"ray.address: what answers at {found} ({address!r}) is not Ray")
    return found


def _free_bytes(folder: str) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
