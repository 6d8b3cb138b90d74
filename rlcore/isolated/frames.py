"""What a pool and its processes send each other through pipes: frames, each a HEADER and then JSON."""

from __future__ import annotations

import json
import os
import select
import struct
from typing import Any, NamedTuple

HEADER = struct.Struct("<QQ")  # bytes of JSON that follow, number of the frame (0: about the process)
APART = "apart"  # the answer for samples that are to be scored one by one
FRESH = "fresh"  # and for one that is to be scored first thing in a new process

_READ_BYTES = 1 << 18


class Hello(NamedTuple):
    """What a process is told first."""

    loader: str  # dotted path of a function; the process calls it as `loader(**given)` and gets the list of rules
    given: dict[str, Any]  # JSON
    section: str  # of the config that has the options below, for messages: "reward"
    timeout_seconds: float  # of one call, counted from its beginning in the process
    memory_mib: int  # that one process may have; with its children, at the time somebody looks


def packed(number: int, message: Any) -> bytes:
    body = json.dumps(message, default=plain).encode()
    return HEADER.pack(len(body), number) + body


def plain(value: Any) -> Any:
    """What a dataset row may hold besides JSON (arrays, dates, bytes), as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


class Frames:
    """The frames that come through a pipe. `closed` when whoever writes it is gone."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.closed = False
        self._bytes = bytearray()

    def wait(self) -> tuple[int, Any] | None:
        """The next frame; None at the end."""
        while (found := self.next()) is None and not self.closed:
            select.select([self.fd], [], [])
            self.read()
        return found

    def read(self) -> bool:
        """Take in what has arrived; whether there was anything."""
        try:
            chunk = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        self._bytes += chunk
        self.closed = not chunk
        return bool(chunk)

    def next(self) -> tuple[int, Any] | None:
        """A frame that has arrived whole, if there is one."""
        if len(self._bytes) < HEADER.size:
            return None
        size, number = HEADER.unpack_from(self._bytes)
        end = HEADER.size + size
        if len(self._bytes) < end:
            return None
        message = json.loads(self._bytes[HEADER.size : end])
        del self._bytes[:end]
        return number, message
