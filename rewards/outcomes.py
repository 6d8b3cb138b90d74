"""What a reward function returned or raised, as an outcome: nothing is ever repeated, guessed or turned into a 0."""

from __future__ import annotations

import inspect
import math
import numbers
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from rlcore.errors import UnparseableGold
from rlcore.records import Score

_MESSAGE = 500  # characters kept of an error's message
_TRACEBACK = 8000
_OURS = tuple(str(Path(__file__).with_name(name)) for name in ("worker.py", "signatures.py"))


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
    """A reward function returned something that is not a reward."""


def listed(name: str, value: Any, count: int) -> list[Any]:
    """`value` as the `count` items that one call for `count` samples must return; never repeated to fit."""
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or isinstance(value, Score):
        shape = f" of shape {tuple(getattr(value, 'shape', ()))}" if getattr(value, "ndim", 0) else ""
        wrong = _unawaited(value) or f"not a list of {count} rewards"
        raise BadValue(f"{name} returned {type(value).__name__}{shape} {_shown(value)}, {wrong}")
    if len(value) != count:
        raise BadValue(f"{name} returned a {type(value).__name__} of {len(value)} for {count} samples")
    return list(value)


def checked(name: str, value: Any, where: str = "") -> Score:
    """`value` as a Score of finite floats; BadValue names the function, `where` (" at index 3") and the type.

    What is no number in a dict is ignored: it may hold text for the function's own use.
    """
    if isinstance(value, Score):
        parts = {str(k): _finite(f"{name}, part {k}", v, where) for k, v in value.parts.items()}
        return Score(_finite(name, value.reward, where), parts)
    if isinstance(value, dict):
        if "score" not in value:
            raise BadValue(f'{name} returned{where} a dict without "score": {_shown(value)}')
        others = {k: v for k, v in value.items() if k != "score" and _number(v) is not None}
        parts = {str(k): _finite(f"{name}, part {k}", v, where) for k, v in others.items()}
        return Score(_finite(name, value["score"], where), parts)
    return Score(_finite(name, value, where))


def _number(value: Any) -> float | None:
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    try:
        return float(value) if isinstance(value, numbers.Real) else None
    except OverflowError:  # an int beyond all floats
        return math.inf


def _finite(name: str, value: Any, where: str) -> float:
    number = _number(value)
    kind = type(value).__name__
    if number is None:
        wrong = _unawaited(value) or 'not a float, a dict with "score" or a Score'
        raise BadValue(f"{name} returned{where} {kind} {_shown(value)}, {wrong}")
    if not math.isfinite(number):
        raise BadValue(f"{name} returned{where} {number} ({kind}), not a finite number")
    return number


def _unawaited(value: Any) -> str:
    """What to do about a coroutine and the like; "" for any other value."""
    if not inspect.isawaitable(value):
        return ""
    if inspect.iscoroutine(value):
        value.close()  # or Python prints that it was never awaited
    return (
        "which has to be awaited: declare the function `async def` and await what it calls; of a decorated one the "
        "decorator's own function"
    )


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except Exception:
        return "(repr fails)"


def failure(e: BaseException) -> Outcome:
    """What an exception of a reward function means for its sample."""
    if isinstance(e, BadValue):
        return Outcome(None, status="bad_value", message=str(e)[:_MESSAGE])
    if isinstance(e, UnparseableGold):
        return Outcome(None, status="unparseable_gold", message=str(e)[:_MESSAGE])
    status = "timeout" if isinstance(e, TimeoutError) else "error"
    return Outcome(None, status=status, message=last_line(e), traceback=_traceback(e))


def last_line(e: BaseException) -> str:
    """`ValueError: what it says`, cut."""
    return "".join(traceback.format_exception_only(type(e), e)).strip().splitlines()[-1][:_MESSAGE]


def _traceback(e: BaseException) -> str:
    """As Python prints it, from the user's function on: the frames that called it are ours."""
    start = e.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename in _OURS:
        start = start.tb_next
    lines = traceback.format_exception(type(e), e, start or e.__traceback__, limit=-20)
    return "".join(lines)[-_TRACEBACK:]
