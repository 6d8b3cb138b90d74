"""Deadlines without Ray; with it: tests/stack/test_cluster.py."""

from __future__ import annotations

import errno
import os
import sys
import threading
from typing import Any

import pytest

from rlcore.cluster import deadlines
from rlcore.cluster.deadlines import Watch, Worker, deadline
from rlcore.errors import WorkerError
from rlcore.waiting import Waiting


def test_a_call_that_takes_no_timeout_ends_the_process_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), list[int]()
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    with deadline(0.01, "joining the Ray cluster at nowhere"):
        assert ended.wait(30)
    assert codes == [WorkerError.exit_code]
    said = "rlcore: WorkerError: joining the Ray cluster at nowhere took longer than 0.01 s\n"
    assert capsys.readouterr().err == said


def test_a_full_disk_or_a_closed_screen_keeps_no_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        done.append("asked")
        raise OSError(errno.ENOSPC, "No space left on device")

    done, codes = list[str](), list[int]()
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys.stderr, "write", fails)
    deadlines._exit(WorkerError("Ray's raylet died"), [fails, lambda error: done.append(str(error))])
    assert codes == [WorkerError.exit_code] and done == ["asked", "asked", "Ray's raylet died"]


def test_a_call_that_returns_in_time_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = list[int]()
    monkeypatch.setattr(os, "_exit", codes.append)
    with deadline(30, "joining"):
        timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    for timer in timers:
        timer.join(20)
    assert timers and not any(t.is_alive() for t in timers) and codes == []


def test_what_died_is_named_with_the_phase() -> None:
    watch = Watch()
    watch.also_alive += [lambda: None, lambda: "Ray's raylet (pid 7)"]
    watch.phase = "update"
    with pytest.raises(WorkerError, match=r"^Ray's raylet \(pid 7\) died during phase update; the run cannot go on"):
        watch.look()
    watch.look()  # it really looks once a second


def test_a_long_wait_says_for_whom_in_which_phase() -> None:
    said, now = list[str](), [0.0]

    class Slow(Watch):
        def waiting(self, what: str, seconds: float) -> Waiting:
            return Waiting(what, seconds, clock=lambda: now[0], say=said.append)

        def any(self, refs: Any, seconds: float) -> list[Any]:
            now[0] += 30.0
            return list(refs)[: now[0] == 60.0] or (list(refs) if now[0] >= 240.0 else [])

        def get(self, ref: Any, worker: Worker) -> Any:
            return ref

    watch = Slow()
    watch.phase = "update"
    ranks = [Worker("actor", rank, None) for rank in range(3)]
    assert watch.gather(ranks, [7, 8, 9], "actor.update", 3600) == [7, 8, 9]  # type: ignore[list-item]
    assert said == [
        f"actor.update: waiting for actor rank 1, actor rank 2, phase update, for {minutes} min; the limit is 60 min"
        for minutes in (1, 3)
    ]


def test_a_wait_that_took_as_long_before_is_no_news() -> None:
    watch, now = Watch(), [0.0]
    watch.over(Waiting("actor.update", 3600, clock=lambda: now.append(now[-1] + 100) or now[-1]))
    said = list[str]()
    again = watch.waiting("actor.update", 3600)
    again._clock, again._say, again._began = (lambda: now[0]), said.append, 0.0
    for now[0] in (150.0, 250.0):
        again.look(lambda: "actor rank 0")
    assert len(said) == 1
