"""Rules that are no rewards: what rlcore/isolated promises to whoever hands in a loader. Not a test itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlcore.isolated.outcome import BadValue, Outcome
from rlcore.isolated.rule import Call, Submission


@dataclass
class Echo:
    fn: Callable[..., Any]
    many: bool = False
    asynchronous: bool = False

    def calls(self, submissions: Sequence[Submission]) -> list[Call]:
        return [Call([i], (s.response.text,), {}) for i, s in enumerate(submissions)]

    def outcomes(self, submissions: Sequence[Submission], results: Sequence[tuple[Call, Any]]) -> list[Outcome]:
        if any(value is None for _, value in results):
            raise BadValue("nothing came back")
        return [Outcome(float(value), {"rewards": float("rewards" in sys.modules)}) for _, value in results]


def length(text: str) -> int | None:
    if text == "raise":
        raise KeyError(text)
    return None if text == "none" else len(text)


async def length_later(text: str) -> int | None:
    return length(text)


def load(times: int) -> list[Echo]:
    return [
        Echo(lambda text: times * (length(text) or 0)),
        Echo(length, many=True),
        Echo(length_later, asynchronous=True),
        Echo(lambda text: -1),
    ]
