"""Ports that this machine gives."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rlcore.cluster import placement
from rlcore.errors import WorkerError


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
