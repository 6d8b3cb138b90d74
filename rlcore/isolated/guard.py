"""The parent of one process of a pool: ends it when the driver is gone, and then whatever it has left behind.

A process that hangs in one C call notices nothing, and its children know nothing of the pool. The guard sleeps in a
poll on the request pipe, which only the driver writes to: it reports the end of the driver however it ended. Orphans,
in sessions of their own too, become the guard's children, so it finds them all when its process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Sequence

from rlcore.isolated.shared_state import Page
from rlcore.processes import kill, tree

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLEAN_UP_SECONDS = 5.0  # processes that even SIGKILL does not end by then are given up


def guarded(requests: int, others: Sequence[int], page: Page) -> None:
    """Fork; return in the child, at the head of its own session. The parent stays behind as its guard.

    requests, others  the protocol's file descriptors; the guard only watches the first for the end of the driver
    page              gets the child's pid, and its exit code in the end
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    child = os.fork()
    if child:
        clean = False
        with contextlib.suppress(BaseException):
            for fd in (0, 1, 2, *others):
                with contextlib.suppress(OSError):
                    os.close(fd)
            clean = _watch(requests, child, page)
        os._exit(0 if clean else 1)
    os.setsid()  # a signal to its own group does not reach the guard
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)
    page.pid = os.getpid()


def _watch(requests: int, child: int, page: Page) -> bool:
    """Until the child has ended; whether nothing it started is left."""
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
    while (code := _reap(child)) is None:
        for fd, _ in poll.poll():
            if fd == requests:
                poll.unregister(requests)
                os.kill(child, signal.SIGKILL)
            else:
                os.read(woken, 4096)
    page.exit_code = code
    return _end_orphans(child)


def _reap(child: int) -> int | None:
    """Take all that have ended; the child's exit code if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def _end_orphans(child: int) -> bool:
    """SIGKILL the child's group and all that became ours, until nothing is left; else the pool goes on."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    until = time.monotonic() + _CLEAN_UP_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return True
        kill(tree(os.getpid())[1:])
        time.sleep(0.002)
    return False


def _prctl(option: int, value: int) -> None:
    """Where the system has no such call, clean-up reaches the child's process group only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
