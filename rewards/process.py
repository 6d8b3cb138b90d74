"""The pool's handle on one worker process: its pipes, what it has been given, what it is doing, and its end."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.worker import HEADER, PROGRESS
from rlcore.records import Prompt

_PIPE_READ = 1 << 18


@dataclass
class Task:
    """One sample on its way through the pool. `number` is 1 or more and unique in the pool."""

    number: int
    key: Any
    prompt: Prompt
    response: str

    def frame(self) -> bytes:
        prompt = {f: getattr(self.prompt, f) for f in ("id", "tokens", "answer", "row")}
        body = json.dumps({"prompt": prompt, "response": self.response}, default=plain).encode()
        return HEADER.pack(len(body), self.number) + body


class Progress(NamedTuple):
    """What a worker says it is doing: since when (time.monotonic), in which function, on which sample (0: none)."""

    started: float
    fn: int
    number: int


def plain(value: Any) -> Any:
    """What a dataset row may hold besides JSON (arrays, dates, bytes), as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


class Process:
    """A running `python -m rewards.worker`, leader of its own process group, with its functions loading."""

    def __init__(self, fns: Sequence[str], cwd: str) -> None:
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.ready = False
        self.failed: str | None = None
        self.finished = 0
        self.started = time.monotonic()
        self.inflight: deque[Task] = deque()
        self.outgoing = bytearray()
        self._incoming = bytearray()
        with tempfile.TemporaryFile() as page:
            page.truncate(PROGRESS.size)
            self._progress = mmap.mmap(page.fileno(), PROGRESS.size)
            fds = (requests, answers, page.fileno())
            # -P: a math.py in the working directory must not shadow the standard library.
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.worker", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=cwd,
                env=_environment(cwd),
            )
        os.close(requests)
        os.close(answers)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.answers, False)
        body = json.dumps(list(fns)).encode()
        self.outgoing += HEADER.pack(len(body), 0) + body
        self.flush()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def give(self, task: Task) -> None:
        self.inflight.append(task)
        self.outgoing += task.frame()
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes now; the rest stays in `outgoing`."""
        try:
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[:_PIPE_READ])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing.clear()  # it is dead: `dead()` and the end of its answers say so

    def read(self) -> Iterator[tuple[int, Any]]:
        """(sample number, message) of each whole answer that has arrived."""
        while chunk := self._chunk():
            self._incoming += chunk
        at = 0
        while len(self._incoming) - at >= HEADER.size:
            size, number = HEADER.unpack_from(self._incoming, at)
            if len(self._incoming) - at - HEADER.size < size:
                break
            at += HEADER.size + size
            yield number, json.loads(self._incoming[at - size : at])
        del self._incoming[:at]

    def _chunk(self) -> bytes:
        try:
            return os.read(self.answers, _PIPE_READ)
        except BlockingIOError:
            return b""

    def progress(self) -> Progress:
        """What the worker is doing now. The page is read until two reads agree: one read can mix two states, and an
        old start beside a new number would look like a sample that has run for hours."""
        seen = PROGRESS.unpack_from(self._progress)
        while (again := PROGRESS.unpack_from(self._progress)) != seen:
            seen = again
        return Progress(*seen) if seen[0] > 0 else Progress(0.0, 0, 0)

    def dead(self) -> bool:
        """Whether the process has ended. It stays a zombie, so its group's number is not used again before `kill`."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # some library of the driver waits for every child
            return True

    def kill(self) -> None:
        """End the process and its whole group; answers already sent can still be read."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def close(self) -> None:
        """Free the pipes of a killed process."""
        os.close(self.requests)
        os.close(self.answers)
        self._progress.close()


def _environment(cwd: str) -> dict[str, str]:
    """The driver's environment and import path; one thread, and sets in the same order in every worker."""
    path = os.pathsep.join(entry or cwd for entry in sys.path)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
