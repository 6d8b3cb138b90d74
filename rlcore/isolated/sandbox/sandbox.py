"""Run a program that nobody trusts: `run(argv, stdin, files, limits) -> Ran`. Linux only, and never un-isolated.

jail.py starts it in namespaces of its own: no network, no files of ours, limits on all it can use, and nothing of it is
left afterwards. What it sees and may do, what this needs, and what it does not protect from: docs/isolation.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_GRACE_SECONDS = 30.0  # beyond the wall clock, for a busy machine to start and to end a program
_REPORT = 1 << 20  # bytes of the report that are read at most
_SCRATCH_FILES = 10_000


class SandboxUnavailable(RuntimeError):
    """This machine does not allow the isolation; the message says which step was refused and what to do."""


class SandboxError(RuntimeError):
    """The program could not be started, or the sandbox itself failed. Not the program's doing."""


class Limits(NamedTuple):
    """What one program may use. `memory_mib`: address space of each process, and resident memory of all together."""

    wall_seconds: float = 6.0
    cpu_seconds: int = 6
    memory_mib: int = 512
    file_mib: int = 16
    scratch_mib: int = 64
    processes: int = 32
    open_files: int = 64


DEFAULT = Limits()


class Ran(NamedTuple):
    """How a program ended. `exit_code`: as subprocess has it, -N for signal N; None when the sandbox ended it.

    `reason`: "" it ended by itself, "wall" or "memory" over that limit, "cpu" killed by the limit of CPU time,
    "stopped" by us. stdout and stderr: text, bytes that are not UTF-8 replaced, at most `file_mib` each.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    reason: str = ""


def run(
    argv: Sequence[str],
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT,
    show: Sequence[str] = (),
) -> Ran:
    """Run `argv` to its end, with `files` (name -> text) in its working directory.

    Raises SandboxUnavailable, or SandboxError when the program cannot be started.
    Example: `run(["/usr/bin/wc", "-l"], "a\\nb\\n").stdout == "2\\n"`.
    """
    program = start(argv, stdin, files, limits, show)
    try:
        return program.wait()
    finally:
        program.stop()


def start(
    argv: Sequence[str],
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT,
    show: Sequence[str] = (),
    fds: Sequence[int] = (),
) -> Program:
    """Start `argv` and return at once; `fds` are open descriptors that the program inherits under the same numbers.

    The caller must call `stop` in the end, whatever happened.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(f"the sandbox needs Linux, this is {sys.platform}")
    for name in files or {}:
        if not name or "/" in name or name in (".", ".."):
            raise SandboxError(f"{name!r}: files of a sandbox have plain names, without folders")
    for path in show:
        if not os.path.exists(path):
            raise SandboxError(f"{path}: no such folder to show to a program in the sandbox")
    shown = [*_interpreter(), *map(os.path.realpath, show)]
    return Program(list(argv), stdin, dict(files or {}), limits, shown, list(fds))


@functools.cache
def missing() -> str:
    """What this machine lacks for a sandbox, in words; "" where it has everything. Tried, not guessed."""
    try:
        ran = run([python(), "-I", "-S", "-c", "print(6 * 7)"])
    except (SandboxUnavailable, SandboxError) as e:
        return str(e)
    return "" if ran.stdout == "42\n" else f"a program that prints 42 ended as {ran}"


def python() -> str:
    """The interpreter itself, not a virtual environment's link to it: it has the standard library only."""
    return os.path.realpath(sys.executable)


def _interpreter() -> list[str]:
    """Where its standard library is: by the path that it was found by, and where that leads."""
    return [path for path in {sys.base_prefix, os.path.realpath(sys.base_prefix)} if path != "/"]


class Program:
    """A program in a sandbox."""

    def __init__(
        self, argv: list[str], stdin: str, files: dict[str, str], limits: Limits, show: list[str], fds: list[int]
    ) -> None:
        self._deadline = time.monotonic() + limits.wall_seconds + _GRACE_SECONDS
        self._open: list[int] = []
        self._stopped = False
        try:
            given = self._memory_file(stdin.encode("utf-8", "replace"))
            self._stdout, self._stderr = self._memory_file(), self._memory_file()
            stdio = [given, self._stdout, self._stderr]
            spec = self._memory_file(json.dumps(_spec(argv, files, limits, show, stdio)).encode())
            self._report, report = self._pipe()
            lifeline, self._lifeline = self._pipe()
            script = str(Path(__file__).with_name("jail.py"))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(spec), str(report), str(lifeline)],
                pass_fds=[spec, report, lifeline, *stdio, *fds],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
            )
        except BaseException:
            self._close()
            raise
        for fd in (given, spec, report, lifeline):
            os.close(fd)
            self._open.remove(fd)

    def wait(self) -> Ran:
        """Wait for its end: at most its wall clock and a grace. Everything that it started is gone then."""
        line = self._report_line()
        self._end()
        if not line:
            reason = "stopped" if self._stopped else ""
            if reason:
                return Ran(None, self._text(self._stdout), self._text(self._stderr), reason)
            raise SandboxError(f"the sandbox ended without a report: {self._text(self._stderr)[-500:]}")
        report: dict[str, Any] = json.loads(line)
        if "refused" in report:
            raise SandboxUnavailable(f"the kernel refused: {report['refused']}. {_ADVICE}")
        if "unstarted" in report:
            raise SandboxError(f"the program cannot be started in the sandbox: {report['unstarted']}")
        reason = "cpu" if report["code"] == -signal.SIGXCPU else report["reason"]
        return Ran(report["code"], self._text(self._stdout), self._text(self._stderr), reason)

    def stop(self) -> None:
        """End it and all that it started, now, and free what it held. To be called once, also after `wait`."""
        self._stopped = True
        self._end()
        self._close()

    def _report_line(self) -> bytes:
        got = b""
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        while b"\n" not in got and len(got) < _REPORT:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return b""
            chunk = os.read(self._report, 1 << 16)
            if not chunk:
                return b""
            got += chunk
        return got.partition(b"\n")[0]

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()  # it kills the namespace and waits for it to be empty
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _text(self, fd: int) -> str:
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0).decode("utf-8", "replace")

    def _memory_file(self, content: bytes = b"") -> int:
        fd = os.memfd_create("sandbox")
        self._open.append(fd)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open += ends
        return ends

    def _close(self) -> None:
        for fd in self._open:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._open.clear()


_ADVICE = (
    "The sandbox needs user namespaces (sysctl user.max_user_namespaces above 0; on Ubuntu 24.04 also "
    "kernel.apparmor_restrict_unprivileged_userns=0), Linux 5.14 or newer and, in a container, leave to use them "
    "(docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
)


def _spec(argv: list[str], files: dict[str, str], limits: Limits, show: list[str], stdio: list[int]) -> dict[str, Any]:
    mib = 1 << 20
    return {
        "argv": argv,
        "files": files,
        "show": show,
        "stdio": stdio,
        "wall_seconds": limits.wall_seconds,
        "memory_mib": limits.memory_mib,
        "scratch_mib": limits.scratch_mib,
        "scratch_files": _SCRATCH_FILES,
        "environment": {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": "0",  # sets in the same order every time
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
        "rlimits": {
            "RLIMIT_CPU": max(1, limits.cpu_seconds),
            "RLIMIT_AS": limits.memory_mib * mib,
            "RLIMIT_FSIZE": limits.file_mib * mib,
            "RLIMIT_NPROC": limits.processes + 2,  # without root the two processes of the sandbox count too
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        },
    }
