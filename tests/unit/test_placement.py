"""Ports that this machine gives, the folder of a local Ray, and clusters that are not there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlcore.cluster import folder, local_ray, placement
from rlcore.cluster.folder import RayFolder, sweep
from rlcore.cluster.placement import Cluster
from rlcore.errors import ConfigError, WorkerError


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


@pytest.fixture
def no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders of Ray are made; what other runs of this machine have is not looked at."""
    monkeypatch.setattr(folder, "_places", lambda: [tmp_path])
    yield tmp_path


def test_a_ray_has_a_folder_of_its_owner_only_until_it_ends(no_other_place: Path) -> None:
    ours = RayFolder()
    assert stat.S_IMODE(ours.path.stat().st_mode) == 0o700 and stat.S_IMODE(ours.token.stat().st_mode) == 0o600
    assert len(ours.token.read_text()) == 64 and RayFolder().token.read_text() != ours.token.read_text()
    sweep()
    assert ours.path.is_dir()  # it is in use
    ours.remove()
    assert not ours.path.exists()


def test_a_killed_runs_folder_goes_with_the_next(no_other_place: Path) -> None:
    left, foreign = no_other_place / f"{folder.PREFIX}abc", no_other_place / f"{folder.PREFIX}link"
    (left / "session_2026/logs").mkdir(parents=True)
    (left / "lock").touch()
    foreign.symlink_to(no_other_place)
    (no_other_place / f"{folder.PREFIX}new").mkdir()  # has not got its lock yet
    sweep()
    assert sorted(os.listdir(no_other_place)) == [f"{folder.PREFIX}link", f"{folder.PREFIX}new"]


def test_logs_that_say_something_are_kept_the_end_of_them(no_other_place: Path) -> None:
    ours, kept = RayFolder(), no_other_place / "run/ray_logs"
    logs = ours.path / "session_2026-01-01/logs"
    (logs / "old").mkdir(parents=True)
    (logs / "raylet.out").write_bytes(b"a" * 10 + b"b" * (1 << 20))
    (logs / "raylet.err").touch()
    kept.mkdir(parents=True)
    (kept / "of an earlier attempt").touch()
    ours.keep_logs(kept)
    assert os.listdir(kept) == ["raylet.out"] and (kept / "raylet.out").read_bytes() == b"b" * (1 << 20)


def test_the_folder_is_where_a_socket_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "job" / ("x" * 90)
    long.mkdir(parents=True)
    for name in ("RAY_TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long))
    ours = RayFolder()
    try:
        with socket.socket(socket.AF_UNIX) as s:
            sockets = ours.path / "session_2026-01-01_00-00-00_000000_4194304/sockets"
            sockets.mkdir(parents=True)
            s.bind(str(sockets / "plasma_store"))
    finally:
        ours.remove()
    monkeypatch.setattr(folder, "_places", lambda: [tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=f"set TMPDIR to a folder .* at most {folder.longest()} bytes"):
        RayFolder()


def test_nobody_waits_for_a_cluster_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"ray.address: 'ray://h:10001': give HOST:6379"):
        local_ray.join("ray://h:10001", False)
    with pytest.raises(ConfigError, match="ray.address: 'h' is no HOST:PORT of a Ray cluster"):
        local_ray.join("h", False)
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def not_ray() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad request\r\n\r\n")

        threading.Thread(target=not_ray, daemon=True).start()
        with pytest.raises(ConfigError, match=f"what answers at .*:{address.rpartition(':')[2]} .* is not Ray"):
            local_ray.join(address, False)
    with pytest.raises(ConfigError, match=f"nobody answers at .*'{address}'.*refused"):
        local_ray.join(address, False)


def test_logs_that_cannot_be_kept_hide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cluster = SimpleNamespace(local=SimpleNamespace(folder=SimpleNamespace(keep_logs=full)), _keep_logs_in=tmp_path)
    Cluster._keep_logs(cluster, WorkerError("an engine died"))  # type: ignore[arg-type]
    assert f"Ray's logs are not in {tmp_path}, or not all of them: No space" in capsys.readouterr().out
