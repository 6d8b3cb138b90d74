"""Signals while Ray starts or stops. In between Python's own handlers do: what they raise ends the run in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray._private import utils, worker

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def rays_kept_out() -> Iterator[None]:
    """Around ray.init, which puts handlers of its own: one in Python, and one in C from which the process aborts.

    The second comes with `connect`, which starts no process: during it signals wait, and find our handlers again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    connect, set_handler = worker.connect, utils.set_sigterm_handler

    def connected(*args: Any, **kwargs: Any) -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            connect(*args, **kwargs)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    worker.connect, utils.set_sigterm_handler = connected, lambda handler: None
    try:
        yield
    finally:
        worker.connect, utils.set_sigterm_handler = connect, set_handler


@contextmanager
def held() -> Iterator[None]:
    """Around what must not be left half done and takes seconds: the first signal that comes is answered at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}

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
