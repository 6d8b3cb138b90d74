r"""Mathematics with the answer in `\boxed{}`, judged by math-verify.

math-verify alone gets some verdicts wrong (`2=3` equals 3, `1\,000` is 0, full-width digits are no digits) and can be
sent into minutes of big-number work, so text is cleaned and refused here first. Its plain-expression reader evaluates
text as Python, and so does sympy wherever it is handed a string, as its LaTeX reader does for every number: only the
LaTeX reader is used, and while it works sympy reads numbers and refuses every other string.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Any

import math_verify
import sympy
import sympy.physics.units  # reads strings of its own while it is imported
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify.errors import TimeoutException
from sympy.core import random as sympy_random
from sympy.core.sympify import SympifyError
from sympy.parsing import sympy_parser

from rlcore.records import Prompt, Score

MOST_CHARACTERS = 400  # a longer answer is wrong, whatever it says
DEEPEST = 8  # an answer nested deeper is wrong: the LaTeX reader's time grows faster than the depth
_READ_SECONDS = 5  # math-verify's own timeout, an integer: it is an alarm signal
_LATEX = [
    math_verify.LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        ),
    )
]

_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;:]|\{,\}|\\ |\s)(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?", re.ASCII)
_LITERAL = re.compile(r"\d+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_EQUALS = re.compile(r"(?<![\\<>!:])=")
_TEXT_UNIT = re.compile(
    r"(?:\\[,!;: ]|~|\s)*\\(?:text|textrm|textbf|mathrm|mathbf|mbox|operatorname)"
    r"\s*\{\s*(?P<unit>[A-Za-z][A-Za-z ./]*)\}(?P<power>\^\{?[23]\}?)?$"
)
_BARE_UNIT = re.compile(
    r"(?<=[\d}])(?:\\[,!;: ]|~|\s)*(?<!\\)\b"
    r"(?P<unit>mm|cm|dm|km|kg|mg|ml|mi|ft|mph|inch(?:es)?|feet|meters?|miles?|hours?|minutes?|seconds?|days?|years?|degrees?|dollars?|cents?|units?)(?P<power>\^\{?[23]\}?)?$"
)
_LONE_UNIT = re.compile(r"(?<=\d)(?:\\[,!;: ]|~|\s)+(?P<unit>[mgsLlh])(?P<power>\^\{?[23]\}?)?$")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?$")
# What would not fit into memory: towers, exponents of five digits, powers of powers of powers, big factorials, ...
_HUGE = (
    re.compile(r"\^\s*[{(\s]*-?\d+[\s})]*\^"),
    re.compile(r"(?:\^|\*\*)\s*[{(\s]*-?\d{5,}"),
    re.compile(r"(?:\*\*.*){2}"),
    re.compile(r"(?:[)}]\s*\^.*){3}"),
    re.compile(r"\d{4,}\s*!|[\d!]\s*!\s*!|!\s*[)}]+\s*!"),
    re.compile(r"\d{5,}[\s}]*\}?\s*\\choose|\\binom\s*\{?\s*\d{5,}"),
    re.compile(r"\d{101,}"),
    re.compile(r"operatorname\s*\{\s*(?:eye|zeros|ones|diag)"),
)


def boxed_math(prompt: Prompt, response: str) -> Score:
    r"""1.0 if the last `\boxed{}` of the response equals `prompt.answer`, else 0.0; part `boxed`: 1.0 if there is one.

    The gold answer is LaTeX or a plain number, with or without its own `\boxed{}` or `$`, or ends in GSM8K's `#### 72`.
    A unit must agree if both have one. Answers over 400 characters and numbers too big to write down are wrong. Raises
    ValueError for a gold answer that is empty or too long, TimeoutError when math-verify takes too long; must run on
    the main thread.
    """
    gold = _gold(prompt)
    box = last_box(response)
    if box is None:
        return Score(0.0, {"boxed": 0.0})
    answer = _clean(box)
    return Score(float(bool(answer) and _equal(gold, answer)), {"boxed": 1.0})


def last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}`; None if there is none, or it never closes."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opened = _BOX.match(text, at) if at >= 0 else None
    if opened is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, opened.end(), opened.end() + 20 * MOST_CHARACTERS):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[opened.end() : brace.start()]
    return None


def _gold(prompt: Prompt) -> str:
    box = last_box(prompt.answer)
    # GSM8K's gold answers are worked solutions that end in "#### 72".
    gold = _clean(prompt.answer.rpartition("####")[2] if box is None else box)
    if not gold:
        raise ValueError(f"prompt {prompt.id}: the gold answer {prompt.answer[:80]!r} is empty or over 400 characters")
    return gold


def _clean(text: str) -> str:
    """The same mathematics in ASCII digits, without dollar signs and thousands separators; "" if it is too long."""
    if len(text) > MOST_CHARACTERS:
        return ""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u00d7", "\\times ")
    plain = plain.replace("\\$", "").replace("$", "").replace("\\left", "").replace("\\right", "").strip()
    plain = _DEGREES.sub("", plain.removesuffix(".").strip())
    return _THOUSANDS.sub("", plain)


def _equal(gold: str, answer: str) -> bool:
    if gold == answer:
        return True
    gold_value, gold_unit = _split_unit(gold, answer)
    value, unit = _split_unit(answer, gold)
    if gold_unit and unit and gold_unit != unit:
        return False
    if _depth(value) > DEEPEST or any(huge.search(value) for huge in _HUGE):
        return False
    if _same(gold_value, value):
        return True
    if unit == "%" and not gold_unit:
        return _same(gold_value, f"\\frac{{{value}}}{{100}}")
    return gold_unit == "%" and not unit and _same(f"\\frac{{{gold_value}}}{{100}}", value)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "])}")
        deepest = max(deepest, depth)
    return deepest


def _split_unit(text: str, other: str) -> tuple[str, str]:
    """`12\\text{ cm}^2` -> ("12", "cm2"). A lone letter is a unit only if the other text too ends in a unit."""
    if text.endswith("%"):
        return text[:-1].rstrip("\\ "), "%"
    found = _TEXT_UNIT.search(text) or _BARE_UNIT.search(text)
    if found is None and any(r.search(other) for r in (_TEXT_UNIT, _BARE_UNIT, _LONE_UNIT)):
        found = _LONE_UNIT.search(text)
    if found is None or not any(c.isdigit() for c in text[: found.start()]):
        return text, ""
    unit = found["unit"].strip()
    unit = unit.lower().removesuffix("s") if len(unit) > 2 else unit
    return text[: found.start()], unit + (found["power"] or "").strip("^{}")


def _same(gold: str, answer: str) -> bool:
    if _NUMBER.fullmatch(gold) and _NUMBER.fullmatch(answer):
        return Decimal(gold.replace(",", "")) == Decimal(answer.replace(",", ""))
    sympy_random.seed(0)  # sympy tests equality at random points: the same verdict from every worker
    try:
        return not _contradicts_itself(answer) and _verify(_parse(gold), _parse(answer))
    except TimeoutException as e:
        raise TimeoutError(f"math-verify took over {_READ_SECONDS} s for {answer[:80]!r}") from e


def _contradicts_itself(answer: str) -> bool:
    """True for `2=3`: sides that are numbers and differ. math-verify would compare only the last one."""
    sides = _EQUALS.split(answer)
    if len(sides) < 2 or "," in answer:
        return False
    parsed = [_parse(side) for side in sides]
    numbers = [p for p in parsed if p and isinstance(p[0], sympy.Expr) and not p[0].free_symbols]
    return any(not _verify(numbers[-1], number) for number in numbers[:-1])


@lru_cache(maxsize=1024)
def _parse(text: str) -> list[Any]:
    if not text:
        return []
    try:
        with _numbers_only():
            return math_verify.parse(f"${text}$", _LATEX, parsing_timeout=_READ_SECONDS, raise_on_error=True)
    except Exception:  # no mathematics
        return []


def _read_number(text: Any, *args: Any, **kwargs: Any) -> sympy.Number:
    """In place of sympy's parse_expr, which compiles and runs its text."""
    if not _LITERAL.fullmatch(str(text)):
        raise SympifyError(text)
    return sympy.Integer(str(text)) if str(text).isdigit() else sympy.Float(str(text))


@contextmanager
def _numbers_only() -> Iterator[None]:
    evaluating = sympy_parser.parse_expr
    sympy_parser.parse_expr = _read_number  # where sympify() looks it up
    try:
        yield
    finally:
        sympy_parser.parse_expr = evaluating


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    try:
        with _numbers_only():
            return math_verify.verify(gold, answer, timeout_seconds=_READ_SECONDS, raise_on_error=True)
    except Exception:  # sympy fails in many ways on what a model may write: it is not the gold answer
        return False
