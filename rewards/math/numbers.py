"""Whether two numbers, or two expressions at one point, are equal: fractions exactly, others to 500 digits.

Nothing is read from text here. What cannot be worked out within bounds equals nothing but itself.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import sympy

_POINT = sympy.Rational(37, 100)  # where two expressions are compared first
_DIGITS = 500  # two irrational numbers that agree in so many are equal
_MOST_BITS = 20_000  # of a fraction that is worked out
_LEAST = Fraction(1, 10**4)  # below it a decimal may be off by 2 in a million, not by half of the 6th decimal


def equal_values(a: Any, b: Any) -> bool | None:
    """Two expressions at one point. True is said of numbers only; None where they have no value or the same one."""
    if a == b:
        return not a.has(sympy.zoo, sympy.nan)
    names = sorted({s.name for s in a.free_symbols})
    if names and (isinstance(a, sympy.Symbol) or isinstance(b, sympy.Symbol)):
        return None
    if names != sorted({s.name for s in b.free_symbols}):
        return False
    at = {s: _POINT + sympy.Rational(names.index(s.name), 10) for e in (a, b) for s in e.free_symbols}
    decimal = a.has(sympy.Float) or b.has(sympy.Float)
    try:
        if not names and not decimal and _is_arithmetic(a) and _is_arithmetic(b):
            return _fraction(a) == _fraction(b)
        p, q = _value(a, at, 30), _value(b, at, 30)
        if not names and isinstance(a, sympy.Float) != isinstance(b, sympy.Float):
            return rounds_to(p, q)
        if not abs(p - q) <= (1e-12 if decimal else 1e-25) * max(abs(p), abs(q)):
            return False
        if names or decimal:
            return None if names else True
        return not _value(sympy.Add(a, sympy.Mul(-1, b, evaluate=False), evaluate=False), at, 10)
    except MemoryError:
        raise
    except OverflowError:  # a fraction too long to be worked out
        return False
    except Exception:  # it has no value there
        return None


def rounds_to(p: Any, q: Any) -> bool:
    """Whether two numbers are the same in 6 decimals; below 0.0001, where these say little, to 2 in a million."""
    if p == q:
        return True
    if max(abs(p), abs(q)) < _LEAST:
        return bool(abs(p - q) * 10**6 <= 2 * max(abs(p), abs(q)))
    return bool(round(p, 6) == round(q, 6))


def _value(e: Any, at: dict[Any, Any], digits: int) -> Any:
    """The complex value to so many digits. A part that 500 digits do not tell from 0 is 0; ValueError if not finite."""
    parts = e.evalf(digits, subs=at, maxn=_DIGITS).as_real_imag()
    if not all(part.is_Number and part.is_finite for part in parts):
        raise ValueError(f"{e} has no value")
    real, imaginary = (sympy.S.Zero if part.is_Float and part._prec == 1 else part for part in parts)
    return real + sympy.I * imaginary


def _is_arithmetic(e: Any) -> bool:
    """Whether it is made of whole numbers by + - * /, whole powers and factorials alone."""
    if e.is_Rational:
        return True
    if e.is_Add or e.is_Mul or isinstance(e, sympy.factorial):
        return all(_is_arithmetic(arg) for arg in e.args)
    return e.is_Pow and e.exp.is_Integer and _is_arithmetic(e.base)


def _fraction(e: Any) -> Fraction:
    """The value of _is_arithmetic(e). OverflowError if it is too long, another error if it has none."""
    if e.is_Rational:
        return _bounded(Fraction(e.p, e.q))
    if e.is_Pow:
        base, power = _fraction(e.base), int(e.exp)
        if _bits(base) * abs(power) > _MOST_BITS:
            raise OverflowError(f"a power of over {_MOST_BITS} bits")
        return base**power
    parts = [_fraction(arg) for arg in e.args]
    if isinstance(e, sympy.factorial):
        return Fraction(math.factorial(int(_bounded(parts[0], 12)) if parts[0].denominator == 1 else -1))
    made = parts[0]
    for part in parts[1:]:
        made = _bounded(made + part if e.is_Add else made * part)
    return made


def _bounded(number: Fraction, most_bits: int = 2 * _MOST_BITS) -> Fraction:
    if _bits(number) > most_bits:
        raise OverflowError(f"a number of over {most_bits} bits")
    return number


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())
