"""Signals while Ray starts or stops. In between Python's own handlers do: what they raise ends the run in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray._private import utils, worker

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def rays_kept_out() -> Iterator[None]:
    """Around ray.init, which puts handlers of its own: one in Python, and in `connect`, which starts no process, one in
    C that aborts the driver before it can clean up. A signal is answered when Ray has started: what a handler raises
    while a process is being forked, Python drops."""
    connect, set_handler = worker.connect, utils.set_sigterm_handler

    def connected(*args: Any, **kwargs: Any) -> None:
        with postponed():
            connect(*args, **kwargs)

    worker.connect, utils.set_sigterm_handler = connected, lambda handler: None
    try:
        with held():
            yield
    finally:
        worker.connect, utils.set_sigterm_handler = connect, set_handler


def shut_down_ray() -> None:
    """ray.shutdown, in which C++ takes away the handlers that it has put, and with them ours."""
    with postponed() as put_back:
        if (node := worker._global_node) is not None:
            kill = node.kill_all_processes

            def kill_all_processes(**how: Any) -> None:  # the longest part, after what happens in C++
                put_back()
                kill(**how)

            node.kill_all_processes = kill_all_processes
        ray.shutdown()


@contextmanager
def postponed() -> Iterator[Callable[[], None]]:
    """Signals wait until the end, and find the handlers of the beginning, or where these are put back already. Nothing
    may be started in here, for it would inherit that signals are blocked."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}

    def put_back() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield put_back
    finally:
        put_back()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def held() -> Iterator[None]:
    """Around what must not be left half done and takes seconds: the first signal that comes is answered at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ENDING}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    for number in ENDING:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def mute_ray() -> None:
    """Ray's own lines about a death come before ours and say less."""
    worker.listen_error_messages = lambda *args: None
