"""What is on disk is whole: written aside, flushed, renamed. And who may write: a lock that ends with its holder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlcore.errors import ConfigError
from rlcore.waiting import Waiting

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path to write a file, or make a directory, at: when the block ends, it is flushed and takes `target`'s place.

    Killed at any moment, or when the block raises, `target` is what it was before or all that the block wrote. One
    writer at a time; the next removes what a killed one left.
    """
    target = target.resolve()
    aside = _hidden(target, "partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    _delete(aside)
    _recover(target)
    try:
        yield aside
        _flush_all(aside)
        _replace(aside, target)
        _flush(target.parent)
    finally:
        _delete(aside)


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_aside(target) as aside:
        aside.write_text(text, encoding="utf-8")


def require_writable(directory: Path, key: str) -> None:
    """Make `directory`, and write a file in it; raise ConfigError naming `key` and the reason where that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b" " * 4096)
            file.flush()
    except OSError as e:
        raise ConfigError(f"{key}: cannot write to {directory}: {e.strerror}; give another directory") from e


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there. Killed half way, nothing is at `path`; `sweep` finds the rest."""
    aside = _hidden(path, "partial")
    _delete(aside)
    if path.exists():
        path.rename(aside)
        _delete(aside)


def sweep(directory: Path) -> None:
    """Delete what killed processes have left in a directory that nobody else writes to now."""
    for leftover in directory.glob(".*.partial"):
        _delete(leftover)


@contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, waiting up to `wait_seconds` for another process to let go of it.

    Raises ConfigError naming it when that process does not. The lock ends with the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_seconds
    waiting = Waiting(str(path.parent), wait_seconds)
    with path.open("w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise ConfigError(
                        f"{path.parent}: another rlcore process is at work here (it holds {path})"
                    ) from None
                waiting.look(lambda: f"another rlcore process, which holds {path},")
                time.sleep(0.5)
        yield


def exchange(a: Path, b: Path) -> bool:
    """Two paths trade what is at them, in one step; False where the kernel or the file system cannot."""
    try:
        return ctypes.CDLL(None).renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0
    except (OSError, AttributeError):
        return False


def _replace(aside: Path, target: Path) -> None:
    if not target.is_dir():
        aside.replace(target)
    elif not exchange(aside, target):
        target.rename(_hidden(target, "old"))
        aside.rename(target)
        _recover(target)


def _recover(target: Path) -> None:
    """After a kill in `_replace`: what was there goes back if nothing took its place, else it goes."""
    old = _hidden(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    _delete(old)


def _hidden(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{end}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush_all(path: Path) -> None:
    if path.is_dir():
        for inside in (p for p in path.rglob("*") if not p.is_symlink()):
            _flush(inside)
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
