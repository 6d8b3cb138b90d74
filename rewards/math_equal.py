r"""Whether two mathematical answers are equal, by math-verify; and whether a gold answer can be read at all.

math-verify can be sent into minutes of big-number work, so text is cleaned and refused first (math_text.py). Its
plain-expression reader evaluates text as Python, and so does sympy wherever it is handed a string, as its LaTeX reader
does for every number: only the LaTeX reader is used, and while it works sympy, in this thread, reads numbers and
refuses every other string.

The verdict is the same in any thread and on a busy machine. math-verify's own timeouts are off: they count the time on
the wall, by alarm signals that only the main thread gets. Ours counts processor time; other threads have none, and
whoever started them must be able to end them (the reward pool kills the process).
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import math_verify
import sympy
import sympy.physics.units  # reads strings of its own while it is imported
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from sympy.core import random as sympy_random
from sympy.core.sympify import SympifyError
from sympy.parsing import sympy_parser

from rewards.math_text import (
    MOST_CHARACTERS,
    clean,
    is_prose,
    rational,
    split_unit,
    too_big,
    unfinished,
    words,
)
from rlcore.errors import UnparseableGold

_CPU_SECONDS = 5.0  # for one answer
_LATEX = [
    math_verify.LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        ),
    )
]
_POINT = 0.37  # where two expressions are compared first
_CLOSE = 1e-5  # wider than math-verify's 6 decimals
_WORDS_OF_A_GOLD = 100  # characters; a longer gold answer in words is an explanation, which no answer ever equals

_reading: ContextVar[bool] = ContextVar("reading", default=False)
_one_at_a_time = threading.RLock()  # sympy's caches and its random points belong to the process
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that are off on purpose

_LITERAL = re.compile(r"\d+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CALL = re.compile(r"[fghpqnA-Z](?:_\{?\w{1,3}\}?)?(?:'{1,3}|\^\{-1\})?\s{0,4}\([^()=]{1,80}\)\s{0,4}=([^=<>]{1,400})")
_EQUALS = re.compile(r"(?<![\\<>!:])=")


@lru_cache(maxsize=4096)
def readable(gold: str) -> str:
    """The gold answer, cleaned. UnparseableGold if it is empty, too long, too big, or neither mathematics nor words.

    Raises TimeoutError when reading it takes over 5 seconds of processor time.
    """
    text = clean(gold)
    if not text:
        raise UnparseableGold(f"the gold answer {gold[:80]!r} is empty or over {MOST_CHARACTERS} characters")
    value, _ = split_unit(text, "")
    if rational(value) is not None and not too_big(value):
        return text
    if too_big(text):
        raise UnparseableGold(f"the gold answer {gold[:80]!r} is nested too deep or too big to be worked out")
    if words(text) and len(text) <= _WORDS_OF_A_GOLD:
        return text
    with _limited(gold):
        parsed = [] if is_prose(text) else _parse(value)
    if not parsed or isinstance(parsed[0], str):
        raise UnparseableGold(f"the gold answer {gold[:80]!r} is neither mathematics that math-verify reads nor words")
    return text


def equal(gold: str, answer: str) -> bool:
    """Whether the cleaned `answer` equals a gold answer that readable() returned. A unit must agree if both have one.

    Raises TimeoutError when that takes over 5 seconds of processor time (on the main thread; elsewhere nobody watches).
    """
    if not answer:
        return False
    if gold == answer:
        return True
    called = _CALL.fullmatch(answer)
    if called and "=" not in gold:  # math-verify would solve f(3) = 17 for f
        answer = called[1].strip()
    if (plain := words(gold)) and plain == words(answer):
        return True
    gold_value, gold_unit = split_unit(gold, answer)
    value, unit = split_unit(answer, gold)
    if (gold_unit and unit and gold_unit != unit) or is_prose(gold_value) or is_prose(value):
        return False
    if too_big(value) or unfinished(gold_value, value):
        return False
    if _same(gold_value, value):
        return True
    if unit == "%" and not gold_unit:
        return _same(gold_value, f"\\frac{{{value}}}{{100}}")
    return gold_unit == "%" and not unit and _same(f"\\frac{{{gold_value}}}{{100}}", value)


def _same(gold: str, answer: str) -> bool:
    p, q = rational(gold), rational(answer)
    if p is not None and q is not None and (p == q or ("." in gold) == ("." in answer)):
        return p == q
    with _one_at_a_time, _limited(answer):
        sympy_random.seed(0)  # sympy tests equality at random points: the same verdict from every worker
        a, b = _parse(gold), _parse(answer)
        return not _plainly_differ(a, b) and not _contradicts_itself(answer) and _verify(a, b)


def _plainly_differ(gold: list[Any], answer: list[Any]) -> bool:
    """A quick no where math-verify could work for minutes: other kinds, other variables, other values at one point.

    It says nothing of relations, intervals and what it cannot work out. Values that are close are left to math-verify.
    """
    if not gold or not answer:
        return True
    a, b = gold[0], answer[0]
    kinds = {_kind(a), _kind(b)}
    if len(kinds) == 2 and "" not in kinds:
        return True
    if kinds != {"number"} or isinstance(a, sympy.Symbol) or isinstance(b, sympy.Symbol):
        return False
    names = sorted({s.name for s in a.free_symbols})
    if names != sorted({s.name for s in b.free_symbols}):
        return True
    try:
        p, q = (e.evalf(15, subs={s: _POINT + 0.1 * names.index(s.name) for s in e.free_symbols}) for e in (a, b))
        return bool(abs(p - q) > _CLOSE * max(1, abs(p), abs(q)))
    except MemoryError:
        raise
    except Exception:  # it has no value there
        return False


def _kind(parsed: Any) -> str:
    if getattr(parsed, "is_Matrix", False):
        return "matrix"
    if isinstance(parsed, (sympy.FiniteSet, sympy.Tuple)) and len(parsed) > 1:
        return f"{len(parsed)} elements"
    return "number" if isinstance(parsed, sympy.Expr) else ""


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
            return math_verify.parse(f"${text}$", _LATEX, parsing_timeout=0, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # no mathematics
        return []


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    try:
        with _numbers_only():
            return math_verify.verify(
                gold, answer, allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True
            )
    except MemoryError:
        raise
    except Exception:  # sympy fails in many ways on what a model may write: it is not the gold answer
        return False


class _Overrun(BaseException):
    """No Exception: sympy and math-verify catch those."""


@contextmanager
def _limited(text: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _Overrun

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _CPU_SECONDS)
    try:
        yield
    except _Overrun:
        raise TimeoutError(f"math-verify took over {_CPU_SECONDS:g} s for {text[:80]!r}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _numbers_only() -> Iterator[None]:
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


_evaluating = sympy_parser.parse_expr


def _read(text: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of sympy's parse_expr, which compiles and runs its text: while math-verify works, numbers only."""
    if not _reading.get():
        return _evaluating(text, *args, **kwargs)
    if not _LITERAL.fullmatch(str(text)):
        raise SympifyError(text)
    return sympy.Integer(str(text)) if str(text).isdigit() else sympy.Float(str(text))


sympy_parser.parse_expr = _read  # where sympify() looks it up; other threads, and other rules, keep theirs
