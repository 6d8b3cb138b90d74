"""The pool's handle on one worker process: its pipes, what it has been given, what it is doing, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from rewards import worker
from rewards.outcomes import Outcome
from rewards.worker import HEADER
from rlcore.isolated.guard import processes
from rlcore.isolated.shared_state import PAGE_BYTES, Page
from rlcore.records import Prompt, Response

_PIPE_READ = 1 << 18
_STACK_BYTES = 8000
_STACK_SECONDS = 0.1
_END_SECONDS = 10.0  # for the guard to clean up; then it is ended too
_MARK = "RLCORE_REWARD_WORKER"  # in the environment of a worker and of all it starts
_PROMPT = tuple(f.name for f in dataclasses.fields(Prompt))


@dataclasses.dataclass(eq=False)
class Task:
    """One sample, or one gold answer, on its way through the pool. `number` grows from 1; `left` rules are to come."""

    number: int
    key: Any
    prompt: Prompt
    response: Response
    left: set[int]
    outcomes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Frame:
    """Samples for one call of one rule.

    concurrent  beside others, in the event loop of the worker
    apart       one sample of a call that failed; never again beside others
    final       what happens to it now is its outcome: it is the first thing a new process does
    """

    number: int
    rule: int
    tasks: list[Task]
    concurrent: bool = False
    apart: bool = False
    final: bool = False
    given: float = 0.0

    def bytes(self) -> bytes:
        samples = [[{f: getattr(t.prompt, f) for f in _PROMPT}, t.response] for t in self.tasks]
        message = {"rule": self.rule, "concurrent": self.concurrent, "samples": samples}
        return _frame(self.number, message)


def plain(value: Any) -> Any:
    """What a dataset row may hold besides JSON (arrays, dates, bytes), as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def strict(value: Any) -> Any:
    """A dataset row as JSON of any reader: as `plain`, and numbers that are not finite are text ("nan", "inf")."""
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else strict(plain(value))


def _frame(number: int, message: Any) -> bytes:
    body = json.dumps(message, default=plain).encode()
    return HEADER.pack(len(body), number) + body


class Process:
    """A running `python -m rewards.worker` under its guard, with its functions loading.

    hello     what the worker is told first: functions, context, limits
    inflight  frames given and not answered, in order; `samples` in all
    reserved  frames that it gets before any other
    burst     number of the last task submitted when it was last given work while idle
    """

    def __init__(self, hello: dict[str, Any], cwd: str) -> None:
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.ready = False
        self.finished = 0
        self.burst = 0
        self.started = self.moved = time.monotonic()  # moved: a byte to or from it
        self.inflight: dict[int, Frame] = {}
        self.samples = 0
        self.reserved: list[Frame] = []
        self.outgoing = bytearray()
        self._hello = hello
        self._incoming = bytearray()
        self._trace = tempfile.TemporaryFile()
        self._mark = uuid.uuid4().hex
        self._open = True
        with tempfile.TemporaryFile() as file:
            file.truncate(PAGE_BYTES)
            self.page = Page(file.fileno())
            fds = (requests, answers, file.fileno(), self._trace.fileno())
            # -P: a math.py in the working directory must not shadow the standard library.
            self.guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.worker", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=cwd,
                env=_environment(cwd) | {_MARK: self._mark},
            )
        os.close(requests)
        os.close(answers)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.answers, False)
        self.outgoing += _frame(0, hello)
        self.flush()

    @property
    def pid(self) -> int:
        """Of the worker; of its guard until that has started it."""
        return self.page.pid or self.guard.pid

    @property
    def first(self) -> Frame | None:
        """The oldest frame it has been given. The kinds that are never given together can be told by it."""
        return next(iter(self.inflight.values()), None)

    def give(self, frame: Frame) -> None:
        frame.given = time.monotonic()
        self.inflight[frame.number] = frame
        self.samples += len(frame.tasks)
        self.outgoing += frame.bytes()
        self.flush()

    def answered(self, number: int) -> Frame:
        """The frame of this number, which the worker has done with."""
        frame = self.inflight.pop(number)
        self.samples -= len(frame.tasks)
        self.finished += 1
        return frame

    def flush(self) -> None:
        """Write what the pipe takes now; the rest stays in `outgoing`."""
        try:
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[:_PIPE_READ])]
                self.moved = time.monotonic()
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing.clear()  # it is dead: `dead()` and the end of its answers say so

    def read(self) -> Iterator[tuple[int, Any]]:
        """(frame number, message) of each whole answer that has arrived."""
        while chunk := self._chunk():
            self._incoming += chunk
            self.moved = time.monotonic()
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

    def dead(self) -> bool:
        """Whether the guard has ended, and with it the worker and all it started."""
        try:
            return os.waitid(os.P_PID, self.guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # some library of the driver waits for every child
            return True

    def kill(self) -> None:
        """Tell the guard to end the worker and all it started; `wait` for that. Answers already sent can be read."""
        if self._open:
            os.close(self.requests)
            self._open = False
        if self.page.pid and self.page.exit_code is None and not self.dead():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.page.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until nothing of a killed process is left. A guard that something has stopped or ended is replaced by us:

        what its worker moved to other sessions is nobody's child then, and found by the mark in its environment, if it
        kept that.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.guard.wait(_END_SECONDS)
        if self.guard.returncode != 0:
            _kill([*tree(self.guard.pid), *tree(self.page.pid)])
            with contextlib.suppress(OSError):
                os.killpg(self.page.pid or self.guard.pid, signal.SIGKILL)
            self.guard.wait()
            until = time.monotonic() + _END_SECONDS
            while (left := _marked(f"{_MARK}={self._mark}")) and time.monotonic() < until:
                _kill(left)
                time.sleep(0.002)

    def close(self) -> None:
        """Free what a process that has ended still holds here."""
        os.close(self.answers)
        self.page.close()
        self._trace.close()

    def show_stack(self) -> None:
        """Let the worker write down where it hangs: its signal handler can while the interpreter is held for ever."""
        if not self.ready or self.dead():
            return
        with contextlib.suppress(OSError):
            os.kill(self.page.pid, signal.SIGUSR2)
        until = time.monotonic() + _STACK_SECONDS
        while not self.stack() and time.monotonic() < until:
            time.sleep(0.002)

    def stack(self) -> str:
        """Where a worker that hung or crashed was, from the innermost call to the user's function; "" if unknown."""
        text = os.pread(self._trace.fileno(), _STACK_BYTES, 0).decode(errors="replace")
        return text.partition(f'  File "{worker.__file__}"')[0]

    def how_it_ended(self) -> str:
        """By its exit code or a signal; that of its guard if that did not live to see the worker's."""
        code = self.guard.returncode if self.page.exit_code is None else self.page.exit_code
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def outcome(self, why: str, seconds: float) -> Outcome:
        """Of the sample that hung, crashed or ate the memory of this process (`why`: timeout, crashed, memory)."""
        if why == "timeout":
            message = f"took longer than {self._hello['timeout_seconds']:g} s (reward.timeout_seconds)"
            return Outcome(None, {}, "timeout", message, self.stack(), seconds)
        message, limit = f"ended its process: {self.how_it_ended()}", self._hello["memory_mib"]
        if why == "memory":
            message = f"held more than {limit} MiB (reward.memory_mib)"
        elif self.page.exit_code == -signal.SIGABRT:  # what a failed allocation in C++ comes to
            message += f"; it may have wanted more than {limit} MiB (reward.memory_mib)"
        return Outcome(None, {}, "crashed", message, self.stack(), seconds)


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants; [] if there is none."""
    seen, found = processes(), [pid] if pid else []
    for parent in found:
        found += [child for child, each in seen.items() if each.parent == parent]
    return [p for p in found if p in seen]


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _marked(entry: str) -> list[int]:
    """Processes with this entry in their environment, but for those that have ended."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if entry.encode() in file.read().split(b"\0"):
                found.append(pid)
    return found


def memory_bytes(guards: Sequence[int]) -> dict[int, int]:
    """Resident bytes of all descendants of each of these pids: shared pages count in each process that has them."""
    seen = processes()
    total = dict.fromkeys(guards, 0)
    for pid, each in seen.items():
        above = each.parent
        while above not in total and above in seen:
            above = seen[above].parent
        if above in total and pid not in total:
            total[above] += each.resident_bytes
    return total


def own_bytes(pids: Sequence[int]) -> int:
    """Bytes that these processes hold together, each page counted once and files not at all; slower to find out."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            held = [line.split() for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            total += sum(int(words[1]) << 10 for words in held)
    return total


def _environment(cwd: str) -> dict[str, str]:
    """The driver's environment and import path; one thread, and sets in the same order in every worker."""
    path = os.pathsep.join(entry or cwd for entry in sys.path)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
