"""What a call into somebody else's code returned or raised: nothing is ever repeated, guessed or turned into a 0."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from rlcore.errors import UnparseableGold
from rlcore.secret_values import without_secrets

_MESSAGE = 500  # characters kept of an error's message
_TRACEBACK = 8000


class Outcome(NamedTuple):
    """What one function says of one sample.

    reward   None: no score. Then `status` says why; with status "" the function does not apply to the sample
    status   "" | "error" | "timeout" | "crashed" | "bad_value" | "unparseable_gold"
    seconds  of the call; of a batch, an equal share
    """

    reward: float | None
    parts: dict[str, float] = {}
    status: str = ""
    message: str = ""
    traceback: str = ""
    seconds: float = 0.0


class BadValue(Exception):
    """A function returned something that is not what it is for."""


def failure(e: BaseException) -> Outcome:
    """What an exception of a function means for its sample."""
    if isinstance(e, BadValue):
        return Outcome(None, status="bad_value", message=without_secrets(str(e))[:_MESSAGE])
    if isinstance(e, UnparseableGold):
        return Outcome(None, status="unparseable_gold", message=without_secrets(str(e))[:_MESSAGE])
    status = "timeout" if isinstance(e, TimeoutError) else "error"
    lines = traceback.format_exception(type(e), e, e.__traceback__, limit=-20)
    text = without_secrets("".join(lines))  # before a cut that may leave half of one
    return Outcome(None, status=status, message=last_line(e), traceback=text[-_TRACEBACK:])


def from_the_call_on(e: BaseException) -> BaseException:
    """`e`, caught by who made the call: its traceback begins in what was called, without the frame that called it."""
    if e.__traceback__ is not None and e.__traceback__.tb_next is not None:
        e.__traceback__ = e.__traceback__.tb_next
    return e


def last_line(e: BaseException) -> str:
    """`ValueError: what it says`, cut."""
    text = without_secrets("".join(traceback.format_exception_only(type(e), e)))
    return text.strip().split("\n")[-1][:_MESSAGE]  # not at what a terminal only might take for a line end
