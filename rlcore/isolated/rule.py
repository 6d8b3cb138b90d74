"""What a process calls: rules, which whoever makes the pool hands in, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from rlcore.isolated.outcome import Outcome
from rlcore.records import Prompt, Response


class Submission(NamedTuple):
    """One response to a prompt, to be said something of."""

    prompt: Prompt
    response: Response


class Call(NamedTuple):
    """Arguments for one call, and which of the submissions it is about."""

    index: list[int]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Rule(Protocol):
    """A function that is not ours, with what turns submissions into its arguments and its values into outcomes.

    The process makes each of `calls(submissions)` in turn, as `fn(*args, **kwargs)`, and hands (call, value) pairs to
    `outcomes`. Where `fn` raises there are no outcomes; of one submission what it raised is the outcome.
    """

    @property
    def fn(self) -> Callable[..., Any]: ...

    @property
    def many(self) -> bool:
        """Whether one call takes several submissions; else `calls` and `outcomes` get one at a time."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Whether what `fn` returns is awaited, with others beside it in one event loop."""
        ...

    def calls(self, submissions: Sequence[Submission]) -> list[Call]: ...

    def outcomes(self, submissions: Sequence[Submission], results: Sequence[tuple[Call, Any]]) -> list[Outcome]:
        """One outcome a submission. BadValue where what came back for several is wrong as a whole."""
        ...
