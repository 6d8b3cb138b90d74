"""What a user sees when Ray itself does not start."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlcore.cluster import placement


def test_a_port_is_none_the_kernel_hands_out_and_none_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of those was gone again before torch bound it, taken by another run."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    port = placement.free_port()
    assert not first <= port <= last
    with socket.socket() as taken:
        taken.bind(("", port))
        monkeypatch.setattr(placement, "_PORTS", range(port, port + 2))
        monkeypatch.setattr(random, "SystemRandom", lambda: SimpleNamespace(sample=lambda ports, n: list(ports)))
        assert placement.free_port() == port + 1
