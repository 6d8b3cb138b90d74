"""What a process and its guard tell the pool without a message: a page of shared memory.

The pool can read it while a function holds the interpreter for ever, and after the process has ended.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

# Start of the frame (time.monotonic), whether earlier work left threads or children behind, number of the frame (0:
# none). The number comes last because fields are written in order: who reads it sees a start that belongs to it, or 0.
_RUNNING = struct.Struct("<dQQ")
_BEAT = struct.Struct("<d")  # the event loop was alive at this time; 0: it does not run
_PID = struct.Struct("<q")
_ENDED = struct.Struct("<qq")  # 1 when the process has ended, and its exit code
_RETIRED = struct.Struct("<q")  # 1: the process ended on purpose and wants its frames run by another
_AT_BEAT, _AT_PID, _AT_ENDED, _AT_RETIRED = 24, 32, 40, 56
PAGE_BYTES = 64


class Running(NamedTuple):
    """The frame a process is at: since when (time.monotonic), after what was left behind or not, which (0: none)."""

    started: float
    leftovers: bool
    number: int


class Page:
    """The shared page behind a file descriptor of PAGE_BYTES bytes; zeroed at first."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PAGE_BYTES)

    def close(self) -> None:
        self._memory.close()

    def begin(self, started: float, leftovers: bool, number: int) -> None:
        _RUNNING.pack_into(self._memory, 0, 0.0, 0, 0)
        _RUNNING.pack_into(self._memory, 0, started, leftovers, number)

    def idle(self) -> None:
        _RUNNING.pack_into(self._memory, 0, 0.0, 0, 0)

    def running(self) -> Running:
        """What the process is at now. The page is read until two reads agree: one read can mix two states, and an old
        start beside a new number would look like a sample that has run for hours."""
        seen = _RUNNING.unpack_from(self._memory, 0)
        while (again := _RUNNING.unpack_from(self._memory, 0)) != seen:
            seen = again
        started, leftovers, number = seen
        return Running(started, bool(leftovers), number) if started > 0 else Running(0.0, False, 0)

    @property
    def beat(self) -> float:
        return _BEAT.unpack_from(self._memory, _AT_BEAT)[0]

    @beat.setter
    def beat(self, now: float) -> None:
        _BEAT.pack_into(self._memory, _AT_BEAT, now)

    @property
    def pid(self) -> int:
        """Of the process; 0 before it has begun."""
        return _PID.unpack_from(self._memory, _AT_PID)[0]

    @pid.setter
    def pid(self, pid: int) -> None:
        _PID.pack_into(self._memory, _AT_PID, pid)

    @property
    def exit_code(self) -> int | None:
        """Of the process, a signal as its negative number; None while it lives or if nobody saw its end."""
        ended, code = _ENDED.unpack_from(self._memory, _AT_ENDED)
        return code if ended else None

    @exit_code.setter
    def exit_code(self, code: int) -> None:
        _ENDED.pack_into(self._memory, _AT_ENDED, 1, code)

    @property
    def retired(self) -> bool:
        return bool(_RETIRED.unpack_from(self._memory, _AT_RETIRED)[0])

    @retired.setter
    def retired(self, retired: bool) -> None:
        _RETIRED.pack_into(self._memory, _AT_RETIRED, retired)
