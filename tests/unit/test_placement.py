"""What a user sees when Ray itself does not start."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import ray

from rlcore.cluster import placement
from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.config import Config
from rlcore.errors import WorkerError


@pytest.mark.filterwarnings("error")  # what its guard thread says while it closes
def test_a_ray_that_does_not_start_is_named_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(*args: object, **settings: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - Ray's own words and class

    monkeypatch.setattr(ray, "init", times_out)
    cfg = Config()
    with pytest.raises(WorkerError, match=r"Ray does not start .*load average \d+.*timed out during startup"):
        Cluster(cfg.ray, cfg.placement, cfg.deadline, {"actor": 1}, Watch())
    time.sleep(1)


def test_a_port_is_none_the_kernel_hands_out_and_none_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of those was gone again before torch bound it, taken by another run."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    port = placement.free_port()
    assert not first <= port <= last
    monkeypatch.setattr(placement, "PORTS", range(port, port + 2))
    with socket.socket() as taken:
        taken.bind(("", port))
        assert {placement.free_port() for _ in range(10)} == {port + 1}
        monkeypatch.setattr(placement, "PORTS", range(port, port + 1))
        with pytest.raises(WorkerError, match=f"ports of {port} to {port} are all taken"):
            placement.free_port()
