"""Pools that end with the test, a mark on all that it starts, and waits that are noted instead of waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.pools import reward_pool
from rlcore.isolated.pool import Pool
from tests.processes.pools import Start, Tagged


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Pool] = []

    def start(fns: Any, workers: int = 1, timeout_seconds: float = 30.0, memory_mib: int = 500, **more: Any) -> Pool:
        made.append(reward_pool(fns, workers, timeout_seconds, memory_mib, **more))
        return made[-1]

    yield start
    for pool in made:
        pool.close()


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> Tagged:
    return Tagged(monkeypatch.setenv)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that coroutines of this process ask to sleep, in order: they are woken at once."""
    noted: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, *rest: Any) -> None:
        noted.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return noted
