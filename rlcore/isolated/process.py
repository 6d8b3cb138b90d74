"""The pool's handle on one process: its pipes, what it has been given, what it is doing, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

from rlcore.isolated import caller
from rlcore.isolated.frames import Frames, Hello, packed
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.rule import Submission
from rlcore.isolated.shared_state import PAGE_BYTES, Page
from rlcore.processes import end_marked, end_tree
from rlcore.records import Prompt

_PIPE_WRITE = 1 << 18
_STACK_BYTES = 8000
_STACK_SECONDS = 0.1
_END_SECONDS = 10.0  # for the guard to clean up; then it is ended too
_MARK = "RLCORE_PROCESS"  # in the environment of a process and of all it starts
_PROMPT = tuple(f.name for f in dataclasses.fields(Prompt))


@dataclasses.dataclass(eq=False)
class Task:
    """One submission on its way through the pool. `number` grows from 1; `left` rules are to come."""

    number: int
    key: Any
    submission: Submission
    left: set[int]
    outcomes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Frame:
    """Submissions for one call of one rule.

    concurrent  beside others, in the event loop of the process
    apart       one submission of a call that failed; never again beside others
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
        pairs = [t.submission for t in self.tasks]
        submissions = [[{f: getattr(prompt, f) for f in _PROMPT}, response] for prompt, response in pairs]
        return packed(self.number, {"rule": self.rule, "concurrent": self.concurrent, "submissions": submissions})


class Process:
    """A running `python -m rlcore.isolated.caller` under its guard, with its rules loading."""

    def __init__(self, hello: Hello, cwd: str) -> None:
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.ready = False
        self.finished = 0  # frames
        self.started = self.moved = time.monotonic()  # moved: a byte to or from it
        self.inflight: dict[int, Frame] = {}  # given and not answered, in order
        self.submissions = 0  # in those
        self.reserved: list[Frame] = []  # that it gets before any other
        self.burst = 0  # number of the last task submitted when it was last given work while idle
        self.outgoing = bytearray()
        self._hello = hello
        self._frames = Frames(self.answers)
        self._trace = tempfile.TemporaryFile()
        self._mark = uuid.uuid4().hex
        self._open = True
        with tempfile.TemporaryFile() as file:
            file.truncate(PAGE_BYTES)
            self.page = Page(file.fileno())
            fds = (requests, answers, file.fileno(), self._trace.fileno())
            # -P: a math.py in the working directory must not shadow the standard library.
            self.guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlcore.isolated.caller", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=cwd,
                env=_environment(cwd) | {_MARK: self._mark},
            )
        os.close(requests)
        os.close(answers)
        os.set_blocking(self.requests, False)
        self.outgoing += packed(0, hello._asdict())
        self.flush()

    @property
    def pid(self) -> int:
        """Of the process; of its guard until that has started it."""
        return self.page.pid or self.guard.pid

    @property
    def first(self) -> Frame | None:
        """The oldest frame it has been given. The kinds that are never given together can be told by it."""
        return next(iter(self.inflight.values()), None)

    def give(self, frame: Frame) -> None:
        frame.given = time.monotonic()
        self.inflight[frame.number] = frame
        self.submissions += len(frame.tasks)
        self.outgoing += frame.bytes()
        self.flush()

    def answered(self, number: int) -> Frame:
        """The frame of this number, which the process has done with."""
        frame = self.inflight.pop(number)
        self.submissions -= len(frame.tasks)
        self.finished += 1
        return frame

    def flush(self) -> None:
        """Write what the pipe takes now; the rest stays in `outgoing`."""
        try:
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing[:_PIPE_WRITE])]
                self.moved = time.monotonic()
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing.clear()  # it is dead: `dead()` and the end of its answers say so

    def read(self) -> Iterator[tuple[int, Any]]:
        """(frame number, message) of each whole answer that has arrived."""
        while self._frames.read():
            self.moved = time.monotonic()
        while (found := self._frames.next()) is not None:
            yield found

    def dead(self) -> bool:
        """Whether the guard has ended, and with it the process and all it started."""
        try:
            return os.waitid(os.P_PID, self.guard.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # some library of the driver waits for every child
            return True

    def kill(self) -> None:
        """Tell the guard to end the process and all it started; `wait` for that. Answers already sent can be read."""
        if self._open:
            os.close(self.requests)
            self._open = False
        if self.page.pid and self.page.exit_code is None and not self.dead():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.page.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until nothing of a killed process is left. A guard that something has stopped or ended is replaced by us:
        what its process moved to other sessions is nobody's child then, and found by its mark, if it kept that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.guard.wait(_END_SECONDS)
        if self.guard.returncode != 0:
            if self.guard.returncode is None:
                end_tree(self.guard.pid)
            end_tree(self.page.pid)
            self.guard.wait()
            end_marked(f"{_MARK}={self._mark}", _END_SECONDS)

    def close(self) -> None:
        """Free what a process that has ended still holds here."""
        os.close(self.answers)
        self.page.close()
        self._trace.close()

    def show_stack(self) -> None:
        """Let the process write down where it hangs: its signal handler can while the interpreter is held for ever."""
        if not self.ready or self.dead():
            return
        with contextlib.suppress(OSError):
            os.kill(self.page.pid, signal.SIGUSR2)
        until = time.monotonic() + _STACK_SECONDS
        while not self.stack() and time.monotonic() < until:
            time.sleep(0.002)

    def stack(self) -> str:
        """Where it hung or crashed, from the innermost call to the user's function; "" if unknown."""
        text = os.pread(self._trace.fileno(), _STACK_BYTES, 0).decode(errors="replace")
        return text.partition(f'  File "{caller.__file__}"')[0]

    def how_it_ended(self) -> str:
        """By its exit code or a signal; that of its guard if that did not live to see it."""
        code = self.guard.returncode if self.page.exit_code is None else self.page.exit_code
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def outcome(self, why: str, seconds: float) -> Outcome:
        """Of the submission that hung, crashed or ate the memory of this process (`why`: timeout, crashed, memory)."""
        hello = self._hello
        memory = f"more than {hello.memory_mib} MiB ({hello.section}.memory_mib)"
        if why == "timeout":
            message = f"took longer than {hello.timeout_seconds:g} s ({hello.section}.timeout_seconds)"
            return Outcome(None, {}, "timeout", message, self.stack(), seconds)
        message = f"held {memory}" if why == "memory" else f"ended its process: {self.how_it_ended()}"
        if why != "memory" and self.page.exit_code == -signal.SIGABRT:  # what a failed allocation in C++ comes to
            message += f"; it may have wanted {memory}"
        return Outcome(None, {}, "crashed", message, self.stack(), seconds)


def _environment(cwd: str) -> dict[str, str]:
    """The driver's environment and import path; one thread, and sets in the same order in every process. A script
    that a function starts finds what lies beside it, as it does without us."""
    path = os.pathsep.join(entry or cwd for entry in sys.path)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
