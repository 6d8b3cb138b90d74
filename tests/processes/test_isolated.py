"""Pools for whoever hands in a loader, and the one killer of processes: by tree, by mark, and after a driver's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlcore.cluster import cleanup
from rlcore.errors import ConfigError
from rlcore.isolated.frames import Hello
from rlcore.isolated.pool import Pool
from rlcore.processes import end_marked, end_tree, marked, processes, tree
from rlcore.records import Prompt, Response

LOADER = "tests.processes.echo.load"
PROMPT = Prompt("p", [], "")
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
# A child, and a grandchild in a session of its own.
FAMILY = [sys.executable, "-S", "-c", f"import subprocess; a = {SLEEP}; subprocess.run(a, start_new_session=True)"]


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"RLCORE_TEST={uuid.uuid4().hex}"
    yield mark
    end_marked(mark, 10.0)


def start(command: list[str], mark: str, count: int) -> subprocess.Popen[bytes]:
    """Until `count` processes with the mark are there."""
    process = subprocess.Popen(command, env=os.environ | dict([mark.split("=")]))
    until = time.monotonic() + 60
    while len(marked(mark)) < count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def hello(given: dict[str, int] | None = None, loader: str = LOADER) -> Hello:
    return Hello(loader, {"times": 3} if given is None else given, "games", 30.0, 2048)


def test_what_is_called_is_handed_in() -> None:
    pool = Pool(hello(), ["thrice", "batch", "later"], 2, on_request=["spare"])
    try:
        pool.ready(60.0)
        for text in ("four", "none", "raise"):
            pool.submit(text, PROMPT, Response(text))
        pool.submit("spare", PROMPT, Response(""), ["spare"])
        found = {}
        while pool.pending:
            found |= dict(pool.poll(1.0))
    finally:
        pool.close()
    assert {name: o[:3] for name, o in found["four"].items()} == {
        "thrice": (12.0, {"rewards": 0.0}, ""),
        "batch": (4.0, {"rewards": 0.0}, ""),
        "later": (4.0, {"rewards": 0.0}, ""),
    }, "and no reward is loaded for it"
    assert {name: o.status for name, o in found["none"].items()} == {
        "thrice": "", "batch": "bad_value", "later": "bad_value",
    }  # fmt: skip
    assert found["spare"]["spare"].reward == -1.0
    for outcome in found["raise"].values():
        first = outcome.traceback.splitlines()[1]
        assert outcome.status == "error" and "echo.py" in first, "it begins in the function that was called"


def test_what_is_called_alone_waits_for_those_side_by_side() -> None:
    """A process is given the next call as soon as its last asynchronous one is answered, before its event loop ends."""
    pool = Pool(hello(), ["thrice", "batch", "later"], 1, on_request=["spare"])
    try:
        pool.ready(60.0)
        found = []
        for i in range(200):
            pool.submit(i, PROMPT, Response("four"))
            while pool.pending:
                found += pool.poll(1.0)
    finally:
        pool.close()
    assert [message for _, outcomes in found for message in {o.message for o in outcomes.values()} if message] == []


@pytest.mark.parametrize(
    ("given", "loader", "says"),
    [
        ({"times": 3}, "tests.processes.nothing.load", "games: cannot import tests.processes.nothing"),
        ({"times": 3}, "tests.processes.echo.nothing", "games: .* has no function nothing"),
        ({}, LOADER, "games.fns: loading ends the process"),
    ],
)
def test_a_loader_that_cannot_be_called_is_named(given: dict[str, int], loader: str, says: str) -> None:
    pool = Pool(hello(given, loader), ["a"], 1)
    try:
        with pytest.raises(ConfigError, match=says):
            pool.ready(60.0)
    finally:
        pool.close()


def test_messages_name_the_section_that_was_handed_in() -> None:
    with pytest.raises(ConfigError, match="games.memory_mib: 0, must be at least 1"):
        Pool(hello()._replace(memory_mib=0), ["a"], 1)
    with pytest.raises(ConfigError, match="games.workers: 0"):
        Pool(hello(), ["a"], 0)


def test_a_tree_ends_by_its_id(mark: str) -> None:
    family = start(FAMILY, mark, 2)
    assert tree(family.pid) == [family.pid, *[p for p in marked(mark) if p != family.pid]]
    end_tree(family.pid)
    assert family.wait(10) == -signal.SIGKILL
    until = time.monotonic() + 10
    while marked(mark) and time.monotonic() < until:  # SIGKILL has been sent to all of them
        time.sleep(0.01)
    assert marked(mark) == [] and tree(family.pid) == [] == tree(0)


def test_those_with_a_mark_end_but_for_the_spared(mark: str) -> None:
    family, other = start(FAMILY, mark, 2), start(SLEEP, mark, 3)
    assert end_marked(mark, 10.0, spare={other.pid}) == 2
    assert family.wait(10) == -signal.SIGKILL and marked(mark) == [other.pid]
    assert end_marked(mark, 0.0) == 0 and marked(mark) == [other.pid], "the deadline is over"
    assert end_marked(mark, 10.0) == 1 and other.wait(10) == -signal.SIGKILL


def test_the_clean_up_process_is_small_and_ends_what_carries_the_runs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started as a run starts it, from anywhere and without site-packages; its driver is killed."""
    run_id = uuid.uuid4().hex
    mark = f"{cleanup.VARIABLE}={run_id}"
    other = start(SLEEP, mark, 1)
    command = [sys.executable, "-S", str(Path(cleanup.__file__)), run_id]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", env=environment)
    try:
        time.sleep(0.5)
        assert process.poll() is None and processes()[process.pid].resident_bytes < 25 << 20
        assert other.poll() is None, "the driver lives"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0 and other.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        other.kill()
