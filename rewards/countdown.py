"""Countdown: make a target from given numbers with + - * / (TinyZero, github.com/Jiayi-Pan/TinyZero).

The equation is read by the small parser below, over exact fractions; nothing is evaluated as code. TinyZero evaluates
it as Python on floats, so it takes `2**3`, `7//2` and a result that is off by less than 1e-5. Here those are wrong.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any, TypeGuard

from rewards.format import last_answer
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt, Score

MOST_CHARACTERS = 300  # a longer equation is wrong, whatever it says
DEEPEST = 20  # so is one nested deeper: the parser calls itself once a level

_TOKEN = re.compile(r"\s*(?:(?P<number>0|[1-9]\d*)|(?P<sign>[-+*/()]))", re.ASCII)
_PLAIN = str.maketrans({"\u00d7": "*", "\u22c5": "*", "\u2217": "*", "\u00f7": "/", "\u2215": "/", "\u2212": "-"})


def countdown(prompt: Prompt, response: str, *, format_score: float = 0.0) -> Score:
    """1.0 if the last `<answer>` is an equation that makes the target of each given number used exactly once.

    Any other answer in tags gets `format_score` (TinyZero: 0.1), a response without gets 0.0; part `answered` tells
    which. Raises UnparseableGold unless the row has `nums` or `numbers`, whole numbers, and `target`.
    """
    numbers, target = _gold(prompt)
    answer = last_answer(response)
    if answer is None:
        return Score(0.0, {"answered": 0.0})
    return Score(1.0 if makes(answer, numbers, target) else format_score, {"answered": 1.0})


def countdown_gold(prompt: Prompt) -> None:
    """Raises UnparseableGold unless the row has whole numbers and a target."""
    _gold(prompt)


def makes(equation: str, numbers: list[int], target: int) -> bool:
    """Whether `equation` uses each of `numbers` exactly once and has the value `target`, exactly."""
    left, equals, right = equation.translate(_PLAIN).strip().partition("=")
    if len(equation) > MOST_CHARACTERS or (equals and right.strip() != str(target)):
        return False
    try:
        tokens = _tokens(left)
        # First the numbers: then none is bigger than a given one, however the equation goes on.
        if sorted(t for t in tokens if isinstance(t, int)) != sorted(numbers):
            return False
        return _Parser(tokens).value() == target
    except (ValueError, ZeroDivisionError):
        return False


def _gold(prompt: Prompt) -> tuple[list[int], int]:
    row = prompt.row
    column = "nums" if "nums" in row else "numbers"
    numbers, target = _from_text(row.get(column)), _from_text(row.get("target"))
    if isinstance(target, float) and target.is_integer():  # a column of a table with gaps holds floats
        target = int(target)
    if not isinstance(numbers, list) or not numbers or not all(map(_is_whole, numbers)):
        raise UnparseableGold(
            f"prompt {prompt.id}: countdown needs a column nums or numbers with a list of whole numbers, "
            f"not {repr(row.get(column))[:80]}"
        )
    if not _is_whole(target):
        raise UnparseableGold(
            f"prompt {prompt.id}: countdown needs a column target with a whole number, "
            f"not {repr(row.get('target'))[:80]}"
        )
    return numbers, target


def _from_text(value: Any) -> Any:
    """What a CSV file's text says in JSON; any other value as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(text: str) -> list[int | str]:
    tokens: list[int | str] = []
    at, text = 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"not arithmetic at {text[at : at + 10]!r}")
        tokens.append(found["sign"] or int(found["number"]))
        at = found.end()
    return tokens


class _Parser:
    """Recursive descent: a sum of products of factors, a factor is a number, a signed factor or a sum in parentheses.

    Raises ValueError for what is not an equation or too deep, ZeroDivisionError for a division by zero.
    """

    def __init__(self, tokens: list[int | str]) -> None:
        self._tokens, self._at = tokens, 0

    def value(self) -> Fraction:
        value = self._sum(0)
        if self._at < len(self._tokens):
            raise ValueError(f"not an equation at token {self._at}")
        return value

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while sign := self._take("+", "-"):
            term = self._product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while sign := self._take("*", "/"):
            factor = self._factor(depth)
            value = value * factor if sign == "*" else value / factor
        return value

    def _factor(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ValueError("nested too deep")
        if sign := self._take("+", "-"):
            value = self._factor(depth + 1)
            return value if sign == "+" else -value
        if self._take("("):
            value = self._sum(depth + 1)
            if not self._take(")"):
                raise ValueError("a parenthesis never closes")
            return value
        number = self._tokens[self._at] if self._at < len(self._tokens) else None
        if not isinstance(number, int):
            raise ValueError("a number is missing")
        self._at += 1
        return Fraction(number)

    def _take(self, *signs: str) -> str:
        """The next token if it is one of `signs`, and step over it; else ""."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        if not isinstance(token, str) or token not in signs:
            return ""
        self._at += 1
        return token
