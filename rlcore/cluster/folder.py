"""The folder of one local Ray, for sockets, logs, its token: of a short name, its owner's only, gone at the end.

Ray's own, $TMPDIR/ray, has a name too long for sockets where a batch system made TMPDIR, belongs to whoever came first,
and keeps every session. Ours holds a lock while its driver lives: the next run finds what a killed one has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rlcore.errors import ConfigError

PREFIX = "rlcore-ray-"
_SOCKET_BYTES = 107  # the longest name that a socket can have on Linux
_RAYS_OWN = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_KEPT_BYTES = 1 << 20  # of the end of each log


class RayFolder:
    """Made at once. Raises ConfigError where no place of a short name can be written."""

    def __init__(self) -> None:
        self.path = _made()
        self._lock = _locked(self.path)
        self.token = self.path / "token"
        with open(os.open(self.token, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))

    def keep_logs(self, target: Path) -> None:
        """The end of every log that says anything goes to `target`, in place of what an earlier attempt kept there."""
        shutil.rmtree(target, ignore_errors=True)
        for log in sorted(self.path.glob("session_2*/logs/*")):
            if log.is_file() and (size := log.stat().st_size):
                target.mkdir(parents=True, exist_ok=True)
                with log.open("rb") as file:
                    file.seek(max(0, size - _KEPT_BYTES))
                    (target / log.name).write_bytes(file.read())

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove what killed runs of this user have left: folders whose lock nobody holds."""
    for place in _places():
        for folder in _owned(place):
            with contextlib.suppress(OSError), (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _owned(place: Path) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                found += [Path(entry.path)] if entry.stat(follow_symlinks=False).st_uid == os.getuid() else []
    return found


def _places() -> Iterator[Path]:
    """Where the folder may be, the best first."""
    named = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR")]
    for place in dict.fromkeys([*filter(None, named), "/dev/shm"]):
        if len(os.fsencode(os.path.abspath(place))) <= longest():
            yield Path(place).absolute()


def longest() -> int:
    """Bytes that the name of a place may have."""
    return _SOCKET_BYTES - _RAYS_OWN - len(f"/{PREFIX}12345678")


def _made() -> Path:
    for place in _places():
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # 0700
    raise ConfigError(
        f"no place for the folder of a local Ray: set TMPDIR to a folder that can be written and whose name has at "
        f"most {longest()} bytes, as Ray's sockets need it"
    )


def _locked(folder: Path) -> IO[bytes]:
    """The lock, held until it is closed or this process is gone. It gets its name when it is held: a `sweep` that comes
    between sees none."""
    unnamed = folder / "new"
    lock = unnamed.open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(folder / "lock")
    return lock
