"""Writers killed at every line: run in an interpreter of its own, which forks a process for each death."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rlcore import files
from rlcore.files import written_aside
from rlcore.runs.checkpoint import Checkpoints, state_of

os.fsync = lambda handle: None  # a process that dies takes nothing of the system's cache with it
_TRACED = ("/rlcore/files.py", "/rlcore/runs/checkpoint.py", "/tests/processes/killed.py", "/shutil.py")


def deaths(work: Callable[[int], None], before: Callable[[int], object] = lambda n: None) -> Iterator[int]:
    """`before(n)`, then `work(n)` in a process that is killed before its n-th line, for n = 0, 1, ...; n, after each
    death and at the end, when one has come through."""
    n, died = 0, True
    while died:
        before(n)
        pid = os.fork()
        if pid == 0:
            sys.settrace(_die_at(n))
            work(n)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        yield n
        n += 1


def _die_at(n: int) -> Any:
    left = n

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(_TRACED):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def a_file(target: Path) -> int:
    """Old or new, whole, after each death. The number of deaths."""
    global _TRACED
    _TRACED += ("/pathlib.py",)  # between opening a file, which empties it, and writing to it
    target.write_text("first" * 1000)
    there, n = target.read_text(), 0
    for n in deaths(lambda n: files.write_text(target, f"{n} " * 1000)):
        now = target.read_text()
        assert now in (there, f"{n} " * 1000), now[:100]
        there = now
    assert there == f"{n} " * 1000 and os.listdir(target.parent) == [target.name]
    return n


def a_directory(target: Path, exchange: bool) -> int:
    """The same of a directory; where two names cannot be exchanged, once the next writer has begun."""
    if not exchange:
        files.exchange = lambda a, b: False
    _fill(target, "first")
    there, n = "first", 0
    for n in deaths(lambda n: _write(target, str(n))):
        if not exchange:
            _give_up(target)
        assert (now := _content(target)) in (there, str(n)), (n, there, now)
        there = now
    assert there == str(n) and os.listdir(target.parent) == [target.name]
    return n


def _write(target: Path, text: str) -> None:
    with written_aside(target) as aside:
        _fill(aside, text)


def _give_up(target: Path) -> None:
    try:
        with written_aside(target):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def _fill(directory: Path, text: str) -> None:
    (directory / "inside").mkdir(parents=True)
    (directory / "a.txt").write_text(text)
    (directory / "inside" / "b.txt").write_text(text)


def _content(directory: Path) -> str:
    (text,) = {path.read_text() for path in (directory / "a.txt", directory / "inside" / "b.txt")}
    return text


def checkpoints(run_dir: Path) -> int:
    """Step 1 is the best, 3 the newest; 4 is saved. After each death the newest is whole and the best still there; what
    saves step 5 then leaves those two alone."""
    begun, n = run_dir / "begun", 0
    for step, value in ((1, 0.9), (2, 0.2), (3, None)):
        _save(begun, step, value)
    assert _names(begun) == ["step_000001", "step_000003"]
    for n in deaths(lambda n: _save(run_dir / str(n), 4, 0.3), lambda n: shutil.copytree(begun, run_dir / str(n))):
        here = Checkpoints(run_dir / str(n), 1, "toy")
        latest = here.latest()
        assert latest is not None and latest.name in ("step_000003", "step_000004")
        assert (latest / "model.txt").read_text() == str(state_of(latest)["step"])
        assert here.best() == (1, 0.9)
        _save(run_dir / str(n), 5, 0.1)
        assert _names(run_dir / str(n)) == ["step_000001", "step_000005"]
        shutil.rmtree(run_dir / str(n))
    return n


def _save(run_dir: Path, step: int, value: float | None) -> None:
    def write(directory: Path) -> None:
        (directory / "model.txt").write_text(str(step))

    Checkpoints(run_dir, 1, "toy").save(step, write, {"data": {}}, value)


def _names(run_dir: Path) -> list[str]:
    return sorted(os.listdir(run_dir / "checkpoints"))
