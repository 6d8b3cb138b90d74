r"""Whether two mathematical answers are equal, by math-verify; and whether a gold answer can be read at all.

Text is cleaned and refused first (text.py); of math-verify only the LaTeX reader is used, and while it works sympy, in
this thread, reads numbers and refuses every other string. Numbers are compared in numbers.py. Why: docs/rewards.md,
"Mathematics". The verdict is the same in any thread and on a busy machine: the limit is on processor time.
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
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import grader
from math_verify.parser import get_last_eq
from sympy.core import random as sympy_random
from sympy.core.sympify import SympifyError
from sympy.parsing import sympy_parser

from rewards.math.numbers import equal_values, rounds_to
from rewards.math.text import (
    MOST_CHARACTERS,
    apart,
    as_typeset,
    clean,
    clock,
    enclosure,
    is_formula,
    is_prose,
    rational,
    spelled,
    split_unit,
    too_big,
    unfinished,
    words,
)
from rlcore.errors import UnparseableGold

_CPU_SECONDS = 5.0  # for one answer
_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_WORDS_OF_A_GOLD = 100  # characters; a longer gold answer in words is an explanation, which no answer ever equals

_reading: ContextVar[bool] = ContextVar("reading", default=False)
_one_at_a_time = threading.RLock()  # sympy's caches and its random points belong to the process
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that are off on purpose

_LITERAL = re.compile(r"\d+|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CALL = re.compile(r"[fghpqnA-Z](?:_\{?\w{1,3}\}?)?(?:'{1,3}|\^\{-1\})?\s{0,4}\([^()=]{1,80}\)\s{0,4}=([^=<>]{1,400})")
_ASSIGNED = re.compile(r"\s*([A-Za-z]|[A-Za-z]_\d)\s*=\s*([^=<>]{1,100})")
_INEQUALITY = re.compile(r"[<>]|\\(?:l|g|n)eq?(?![A-Za-z])")
_ONE_OF, _ALL_OF = (
    re.compile(rf",?\s{{0,4}}(?:\\text\s{{0,4}}\{{\s{{0,4}}{w}\s{{0,4}}\}}|(?<![A-Za-z]){w}(?![A-Za-z]))")
    for w in ("or", "and")
)
_METRES = re.compile(r"(?<=\d)(?:\\[,!;: ]|~|\s)*m$")
_INDEX = re.compile(r"_\s*\{?\s*i\s*=")
_INVERTED = re.compile(r"[A-Z]\s?\^\s?(?:\{\s?(?:-1|T|\\top)|T|\\top)")
_LETTER_I = sympy.Symbol("i", real=True)
_EQUALS = re.compile(r"(?<![\\<>!:])=")


@lru_cache(maxsize=4096)
def readable(gold: str) -> str:
    """The gold answer, cleaned. UnparseableGold if it is empty, too long, too big, or neither mathematics nor words.

    LaTeX that math-verify cannot read is accepted if it is whole, without words and up to 100 characters long.

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
        parsed = None if is_prose(text) else parse(value, False)
    if parsed is None and not is_formula(text):
        raise UnparseableGold(f"the gold answer {gold[:80]!r} is neither mathematics that math-verify reads nor words")
    return text


def equal(gold: str, answer: str) -> bool:
    r"""Whether the cleaned `answer` equals a gold answer that readable() returned. A unit must agree if both have one.

    A list without brackets equals a set in any order and a tuple in the same order. Raises TimeoutError when that takes
    over 5 seconds of processor time (on the main thread; elsewhere nobody watches).
    """
    if not answer:
        return False
    if as_typeset(gold) == as_typeset(answer):
        return True
    gold, answer = _called(gold, answer), _called(answer, gold)
    time, other_time = clock(gold), clock(answer)
    if time and other_time:
        return time[:2] == other_time[:2] and (time[2] == other_time[2] or "" in (time[2], other_time[2]))
    if gold not in ("e", "i") and (plain := words(gold)) and plain == words(answer):
        return True
    gold_value, gold_unit = split_unit(gold, answer)
    value, unit = split_unit(answer, gold)
    if (gold_unit and unit and gold_unit != unit) or is_prose(gold_value) or is_prose(value):
        return False
    if too_big(value) or unfinished(gold_value, value):
        return False
    number = rational(gold_value)
    if number is not None and not gold_unit and not unit:
        value = _METRES.sub("", value)
    fraction = number is not None and 0 < abs(number) < 1  # a probability: 7/20 is 35%, not 0.35%
    if not (fraction and unit == "%" and not gold_unit) and _same(gold_value, value):
        return True
    if unit == "%" and not gold_unit:
        return _same(gold_value, f"\\frac{{{value}}}{{100}}")
    return gold_unit == "%" and not unit and _same(f"\\frac{{{gold_value}}}{{100}}", value)


def _called(text: str, other: str) -> str:
    """`17` of `f(3) = 17` where the other is no equation: math-verify would solve it for f."""
    called = _CALL.fullmatch(text)
    return called[1].strip() if called and "=" not in other else text


def _same(gold: str, answer: str) -> bool:
    gold, answer = apart(gold, answer if enclosure(answer) != "," else ""), apart(answer, gold)
    p, q = rational(gold), rational(answer)
    if p is not None and q is not None:
        return p == q or (("." in gold) != ("." in answer) and rounds_to(p, q))
    gold, answer = _bracketed(gold, answer), _bracketed(answer, gold)
    if {enclosure(gold), enclosure(answer)} == {"(", "{"}:  # a pair is no set
        return False
    with _one_at_a_time, _limited(answer):
        sympy_random.seed(0)  # sympy tests equality at random points: the same verdict from every process
        matrices = bool(_INVERTED.search(gold) and _INVERTED.search(answer))
        a, b = parse(gold, matrices), parse(answer, matrices)
        if a is None or b is None or _contradicts_itself(answer):
            return False
        return _equal(*_alike(a, b, gold, answer))


def _equal(a: Any, b: Any) -> bool:
    quick = _quickly(a, b)
    return _verify(a, b) if quick is None else quick


def _bracketed(text: str, other: str) -> str:
    r"""Where the other is a tuple: `1,2` as `(1,2)`, `y=1,x=2` as `(2,1)`, `1 or 2` and `x=1,x=2` as sets.

    Names that are neighbours in the alphabet are put in its order, others stay as written.
    """
    listed = _ALL_OF.sub(",", text)
    if enclosure(other) != "(":
        return text
    if _ONE_OF.search(text) and not _INEQUALITY.search(text):
        return f"\\{{{_ONE_OF.sub(',', text)}\\}}"
    if enclosure(listed) != ",":
        return text
    found = [_ASSIGNED.fullmatch(part) for part in listed.split(",")]
    pairs = [(one[1], one[2]) for one in found if one]
    if len(pairs) < len(found):
        return text if "=" in listed or _INEQUALITY.search(listed) else f"({listed})"
    names = sorted(name for name, _ in pairs)
    if len(set(names)) < len(names):
        return f"\\{{{listed}\\}}"
    if all(ord(after[-1]) - ord(name[-1]) == 1 for name, after in zip(names, names[1:], strict=False)):
        pairs.sort()
    return f"({','.join(value for _, value in pairs)})"


def _alike(a: Any, b: Any, gold: str, answer: str) -> tuple[Any, Any]:
    """A row or column and a tuple both as tuples; a list of inequalities and a set both as sets.

    Of `5>x>1` and `1<x<5` both are written the same way.
    """
    if isinstance(a, sympy.And) and isinstance(b, sympy.And) and _bounds(a) and _bounds(b):
        a, b = (sympy.And(*(getattr(r, "canonical", r) for r in both.args)) for both in (a, b))
        return a, b
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq) and a.lhs == b.lhs and isinstance(a.rhs, sympy.FiniteSet):
        return a.rhs, b.rhs  # y = \pm x
    if "matrix" in (_kind(a), _kind(b)) and "(" in (enclosure(gold), enclosure(answer)):
        return _tuple(a), _tuple(b)
    if isinstance(b, sympy.FiniteSet) and isinstance(a, (sympy.Interval, sympy.Union)):
        return a, _solved(b, answer)
    if isinstance(a, sympy.FiniteSet) and isinstance(b, (sympy.Interval, sympy.Union)):
        return _solved(a, gold), b
    return a, b


def _tuple(parsed: Any) -> Any:
    if isinstance(parsed, sympy.Interval):
        return sympy.Tuple(parsed.start, parsed.end)
    return sympy.Tuple(*parsed) if _kind(parsed) == "matrix" and 1 in parsed.shape else parsed


def _solved(parsed: Any, text: str) -> Any:
    """The numbers that meet one of the inequalities (`x<1 or x>2`), or all of them (`x>1 and x<2`)."""
    relations = parsed.args
    joined = sympy.Union if _ONE_OF.search(text) else sympy.Intersection if _ALL_OF.search(text) else None
    if joined is None or not all(_bounds(r) for r in relations) or len(parsed.free_symbols) != 1:
        return parsed
    try:
        return joined(*(r.as_set() for r in relations))
    except MemoryError:
        raise
    except Exception:  # sympy cannot solve it
        return parsed


def _bounds(relation: Any) -> bool:
    """Whether it is `x<1`, `1<x` or `1<x<2`: sympy can work for minutes to solve others."""
    if isinstance(relation, sympy.And):
        return all(_bounds(part) for part in relation.args)
    if not isinstance(relation, sympy.Rel):
        return False
    sides = relation.lhs, relation.rhs
    return any(s.is_Symbol for s in sides) and any(not s.free_symbols for s in sides)


def _quickly(a: Any, b: Any) -> bool | None:
    """Whether two numbers are equal; False for other kinds, other variables, other values at one point; else None.

    math-verify could work for minutes where this says False. It says nothing of relations and intervals.
    """
    kinds = {_kind(a), _kind(b)}
    if len(kinds) == 2 and "" not in kinds:
        return False
    if kinds != {"number"}:
        return None
    return equal_values(a, b)


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
    parsed = [parse(side, False) for side in sides]
    numbers = [p for p in parsed if isinstance(p, sympy.Expr) and not p.free_symbols]
    return any(not _equal(numbers[-1], number) for number in numbers[:-1])


class _Reader(_Latex2Sympy):
    """math-verify's LaTeX reader, but `i` is the imaginary unit unless it counts, and `X` is not `x`."""

    def __init__(self, text: str, matrices: bool) -> None:
        super().__init__(is_real=True, config=ConversionConfig(lowercase_symbols=False))
        self._counts_with_i = bool(_INDEX.search(text))
        self._matrices = matrices

    def convert_atom_expr(self, atom_expr: Any) -> Any:
        made = super().convert_atom_expr(atom_expr)
        if isinstance(made, sympy.Pow):
            return sympy.Pow(self._named(made.base), made.exp, evaluate=False)
        return self._named(made)

    def _named(self, made: Any) -> Any:
        if made is sympy.I:  # the reader takes a capital I for it
            return sympy.Symbol("I", real=True)
        if made == _LETTER_I and not self._counts_with_i:
            return sympy.I
        if self._matrices and isinstance(made, sympy.Symbol) and re.fullmatch("[A-SU-Z]", made.name):
            return sympy.Symbol(made.name, commutative=False)
        return made


@lru_cache(maxsize=1024)
def parse(text: str, matrices: bool) -> Any:
    """The text as sympy's expression, relation, set or matrix; None if it is none of these.

    With matrices, the order in a product of capital letters counts.
    """
    text = spelled(text)
    if not text or "'" in text:
        return None
    with numbers_only():
        normal = normalize_latex(text, _NORMAL).strip()
        for latex in dict.fromkeys((normal, get_last_eq(normal))):
            try:
                return _Reader(text, matrices).parse(latex)
            except MemoryError:
                raise
            except Exception:  # no mathematics
                continue
    return None


def _verify(gold: Any, answer: Any) -> bool:
    try:
        with numbers_only():
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
def numbers_only() -> Iterator[None]:
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

_absolutely = grader.sympy_numeric_eq


def _relatively(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """In place of math-verify's comparison of numbers, to which all below 1e-15 are the same, and 1e-9 is 0.0."""
    if not _reading.get() or not isinstance(a, sympy.Expr) or not isinstance(b, sympy.Expr):
        return _absolutely(a, b, float_rounding, numeric_precision)
    equal_there = equal_values(a, b)
    if equal_there is None and a.free_symbols and (a.has(sympy.Float) or b.has(sympy.Float)):
        return _absolutely(a, b, float_rounding, numeric_precision)
    return equal_there is True


grader.sympy_numeric_eq = _relatively
