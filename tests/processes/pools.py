"""What tests of the reward pool share: samples, waiting for outcomes, and who is still alive. Not a test itself."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.signatures import Fn
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.pool import Pool
from rlcore.records import Prompt, Response

Start = Callable[..., Pool]
"""start(fns, workers=1, timeout_seconds=30.0, memory_mib=500, context={}): a pool that the test need not close."""

PATIENCE = (0.4, 2.0, 10.0)
"""Seconds that a sample is given where another one hangs. A busy machine may take as long for one that is fine: then
all of it is done again with the next number."""

MISBEHAVING = str(Path(__file__).with_name("misbehaving.py"))


def fn(function: str, file: str = MISBEHAVING, name: str = "", **args: Any) -> Fn:
    return Fn(name or function, f"{file}:{function}", args)


def prompt(i: int = 0, **row: Any) -> Prompt:
    value = float(i)
    messages = [{"role": "user", "content": f"question {value:g}"}]
    return Prompt(f"test:{i}", [1, 2], "3", {"value": value, "question": f"question {value:g}"} | row, messages)


def collect(pool: Pool, seconds: float = 120.0) -> dict[Any, dict[str, Outcome]]:
    """Everything pending; fails when it does not come."""
    results: dict[Any, dict[str, Outcome]] = {}
    until = time.monotonic() + seconds
    while pool.pending:
        for key, outcomes in pool.poll(wait_seconds=1.0):
            assert key not in results
            results[key] = outcomes
        assert time.monotonic() < until, f"{pool.pending} samples never came"
    return results


def run(pool: Pool, responses: Sequence[str]) -> list[Outcome]:
    """The outcomes of the pool's only function, in order."""
    for i, response in enumerate(responses):
        pool.submit(i, prompt(i), Response(response))
    results = collect(pool)
    return [results[i][pool.names[0]] for i in range(len(responses))]


class Tagged:
    """Marks all processes started from now on, and finds those that are left, whatever session they moved to."""

    def __init__(self, setenv: Callable[[str, str], None]) -> None:
        name, mark = "RLCORE_TEST_POOL", uuid.uuid4().hex
        setenv(name, mark)
        self._mark = f"{name}={mark}".encode()

    def alive(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                tagged = self._mark in (entry / "environ").read_bytes().split(b"\0")
                if tagged and int(entry.name) != os.getpid():
                    found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
            except OSError:
                continue
        return found

    def assert_gone(self) -> None:
        until = time.monotonic() + 30
        while left := self.alive():
            assert time.monotonic() < until, left
            time.sleep(0.05)
