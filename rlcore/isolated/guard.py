"""The parent of one reward worker. It ends the worker when the driver is gone, and whatever the worker leaves behind.

A worker that hangs in one C call notices nothing, and its children know nothing of the pool. The guard sleeps in a
poll on the request pipe, which only the driver writes to: it reports the end of the driver however it ended. Orphans of
the worker, in sessions of their own too, become the guard's children, so it finds them all when the worker has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from rlcore.isolated.shared_state import Page

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = mmap.PAGESIZE
_CLEAN_UP_SECONDS = 5.0  # processes that even SIGKILL does not end by then are given up


def guarded(requests: int, others: Sequence[int], page: Page) -> None:
    """Fork; return in the child, the worker, at the head of its own session. The parent stays behind as its guard.

    requests, others  the protocol's file descriptors; the guard only watches the first for the end of the driver
    page              gets the worker's pid, and its exit code in the end
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    worker = os.fork()
    if worker:
        clean = False
        with contextlib.suppress(BaseException):
            for fd in (0, 1, 2, *others):
                with contextlib.suppress(OSError):
                    os.close(fd)
            clean = _watch(requests, worker, page)
        os._exit(0 if clean else 1)
    os.setsid()  # a signal to its own group does not reach the guard
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)
    page.pid = os.getpid()


def _watch(requests: int, worker: int, page: Page) -> bool:
    """Until the worker has ended; whether nothing it started is left."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    poll.register(requests, 0)  # an end of file is reported unasked
    while (code := _reap(worker)) is None:
        for fd, _ in poll.poll():
            if fd == requests:
                poll.unregister(requests)
                os.kill(worker, signal.SIGKILL)
            else:
                os.read(woken, 4096)
    page.exit_code = code
    return _end_orphans(worker)


def _reap(worker: int) -> int | None:
    """Take every ended child; the worker's exit code if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def _end_orphans(worker: int) -> bool:
    """SIGKILL the worker's group and all that became our child, until nothing is left; else the pool goes on."""
    with contextlib.suppress(OSError):
        os.killpg(worker, signal.SIGKILL)
    until = time.monotonic() + _CLEAN_UP_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return True
        for pid in [pid for pid, each in processes().items() if each.parent == os.getpid()]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return False


class Stat(NamedTuple):
    parent: int
    resident_bytes: int


def processes() -> dict[int, Stat]:
    """All processes of this machine by pid, from one look at each."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            found[int(pid)] = Stat(int(fields[1]), int(fields[21]) * _PAGE_BYTES)
    return found


def _prctl(option: int, value: int) -> None:
    """Where the system has no such call, clean-up reaches the worker's process group only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
