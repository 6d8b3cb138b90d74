"""No test here starts a process: they stay quick, and nothing else that runs disturbs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")
NOT_OURS = "fc-list"  # matplotlib, which reasoning_gym imports, asks once a machine which fonts there are
here = [False]  # whether one of our tests runs: a hook cannot be taken away again


def refuse(event: str, args: Any) -> None:
    if here[0] and event in STARTS and args[:1] != (NOT_OURS,):
        raise RuntimeError(f"{event} {str(args)[:200]}: a test that starts a process belongs in tests/processes")


sys.addaudithook(refuse)


@pytest.fixture(autouse=True)
def starts_no_process() -> Iterator[None]:
    here[0] = True
    yield
    here[0] = False
