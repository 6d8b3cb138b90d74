"""The processes of this machine: who they are, and how to end those that something left behind.

Standard library only: the clean-up process and the guards, which import it, stay at a few MB.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LOOK_SECONDS = 0.01


class Stat(NamedTuple):
    parent: int
    resident_bytes: int


def processes() -> dict[int, Stat]:
    """All processes by pid, from one look at each."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            found[int(pid)] = Stat(int(fields[1]), int(fields[21]) * _PAGE_BYTES)
    return found


def tree(pid: int) -> list[int]:
    """`pid`, then all that descends from it; [] if there is no such process."""
    seen, found = processes(), [pid] if pid else []
    for parent in found:
        found += [child for child, each in seen.items() if each.parent == parent]
    return [p for p in found if p in seen]


def marked(mark: str) -> list[int]:
    """The other processes that were started with `mark`, NAME=value, in their environment and have not ended."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark.encode() in file.read().split(b"\0") and int(pid) != os.getpid():
                found.append(int(pid))
    return found


def kill(pids: Iterable[int]) -> None:
    """SIGKILL each that is still there."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def end_tree(pid: int) -> None:
    """SIGKILL `pid`, all that descends from it, and its process group if it leads one."""
    kill(tree(pid))
    if pid > 0:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def end_marked(mark: str, deadline_seconds: float, spare: Collection[int] = ()) -> int:
    """SIGKILL all with this mark but `spare`, until none is left or the deadline has passed; how many there were."""
    killed: set[int] = set()
    until = time.monotonic() + deadline_seconds
    while (left := [p for p in marked(mark) if p not in spare]) and time.monotonic() < until:
        kill(left)
        killed.update(left)
        time.sleep(_LOOK_SECONDS)
    return len(killed)
