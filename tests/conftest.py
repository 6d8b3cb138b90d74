"""One thread a process, unless OMP_NUM_THREADS asks for more; and at the end the files that took the most time."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator

import pytest

# Before torch is imported, here and in what the tests start: its threads spin whenever anything else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

cpu_seconds: Counter[str] = Counter()


def _used() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = _used()
    try:
        return (yield)
    finally:
        cpu_seconds[item.nodeid.partition("::")[0]] += _used() - before


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist hands its seconds to the first one
        session.config.workeroutput["cpu_seconds"] = dict(cpu_seconds)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    cpu_seconds.update(getattr(node, "workeroutput", {}).get("cpu_seconds", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cpu_seconds:
        terminalreporter.section("slowest files, in CPU-seconds")
    for file, seconds in cpu_seconds.most_common(10):
        terminalreporter.line(f"{seconds:7.1f}  {file}")
