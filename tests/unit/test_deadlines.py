"""Deadlines without Ray; with it: tests/stack/test_cluster.py."""

from __future__ import annotations

import os
import threading

import pytest

from rlcore.cluster.deadlines import Watch, deadline
from rlcore.errors import WorkerError


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
