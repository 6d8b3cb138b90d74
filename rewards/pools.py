"""The pools of scoring processes: reward functions, called by rlcore/isolated, which knows nothing of rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from rewards import GOLD
from rewards.signatures import Fn
from rlcore.isolated.frames import Hello
from rlcore.isolated.pool import Pool
from rlcore.isolated.rule import Submission
from rlcore.records import Prompt, Response

_LOADER = "rewards.load.rules"


def reward_pool(
    fns: Sequence[Fn],
    workers: int,
    timeout_seconds: float,
    memory_mib: int,
    context: Mapping[str, Any] | None = None,
) -> Pool:
    """A pool of `workers` processes that score with `fns`, and with `check_gold` read the gold answers of theirs.

    `context`: keyword arguments for all functions that have parameters of these names. Raises as `Pool` does.
    """
    given = {"fns": list(fns), "context": dict(context or {})}
    hello = Hello(_LOADER, given, "reward", timeout_seconds, memory_mib)
    return Pool(hello, [fn.name for fn in fns], workers, [gold_name(fn.name) for fn in fns if fn.spec in GOLD])


def gold_name(name: str) -> str:
    """What the rule is called that reads the gold answers of a function."""
    return f"gold of {name}"


def check_gold(pool: Pool, prompts: Iterable[tuple[Hashable, Prompt]]) -> None:
    """Queue the gold answers of (key, prompt) pairs for the functions of a reward pool that can say if they read them.

    Each comes out of `poll` with an outcome under each one's `gold_name`: status "unparseable_gold", or "" if all is
    well. They get the prompts without tokens and messages.
    """
    bare = ((key, dataclasses.replace(prompt, tokens=[], messages=[])) for key, prompt in prompts)
    pool.submit_all(((key, Submission(prompt, Response(""))) for key, prompt in bare), pool.on_request)
