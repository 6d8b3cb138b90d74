"""What a reward function returned, as rewards: nothing is ever repeated, guessed or turned into a 0."""

from __future__ import annotations

import inspect
import math
import numbers
from typing import Any

from rlcore.isolated.outcome import BadValue
from rlcore.records import Score


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
