"""Generated countdown problems: rows for `generate:countdown?...`, with a search to learn, found or given up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from rlcore.data.generate.arithmetic import apply
from rlcore.data.generate.splits import TRIES, check_shares, check_size, number_range, split_rows
from rlcore.errors import DataError

_MOST_MISSES = 14

Term = tuple[int, str, str]  # a value, how it is made, and the last operation of that, if any


def countdown(
    size: int = 1000,
    seed: int = 1,
    split: str = "train",
    numbers: str = "3-4",
    largest: int = 99,
    largest_value: int = 100,
    search: float = 1.0,
) -> list[dict[str, Any]]:
    """Make a target with + - * / from 3 or 4 given numbers (`numbers`: "4", or a range), each used exactly once.

    The given numbers go up to `largest`, the target and all that is worked out on the way to `largest_value`. A share
    `search` of the responses tries until the target is made, the others give up after their first try; docs/data.md.
    """
    check_size("countdown", size, split)
    if (allowed := number_range(numbers, 2, 6)) is None:
        raise DataError(f"generate:countdown: numbers={numbers}, must be 2 to 6, or a range such as 3-4")
    fewest, most = allowed
    if not 1 <= largest <= largest_value:
        raise DataError(f"generate:countdown: largest={largest}, must be 1 to largest_value={largest_value}")
    check_shares("countdown", search=search)
    rng = random.Random(f"countdown {seed}")

    def make() -> tuple[str, dict[str, Any]]:
        return _countdown_row(rng, rng.randint(fewest, most), largest, largest_value, search)

    return split_rows("countdown", size, split, make)


def _countdown_row(
    rng: random.Random, count: int, largest: int, largest_value: int, search: float
) -> tuple[str, dict[str, Any]]:
    for _ in range(TRIES):
        given = [rng.randint(1, largest) for _ in range(count)]
        solution = _combine(rng, given, largest_value)
        if solution is not None and solution[0] > 0 and solution[0] not in given:
            break
    else:
        raise DataError(f"generate:countdown: no target found for {count} numbers; raise {largest=}, {largest_value=}")
    target, expression = solution
    tries = _tries(given, largest_value, target)
    tries.setdefault(target, expression)
    if rng.random() >= search:
        tries = dict(list(tries.items())[:1])
    thought = ", ".join(f"{expression}={value}" for value, expression in tries.items())
    row = {
        "question": f"Using the numbers {given}, create an equation that equals {target}.",
        "answer": str(target),
        "nums": given,
        "target": target,
        "response": f"<think>{thought}</think><answer>{list(tries.values())[-1]}</answer>",
    }
    return f"{sorted(given)} {target}", row


def _tries(given: list[int], largest_value: int, target: int) -> dict[int, str]:
    """The first 14 values that a search in order comes upon, and how, but none after the target."""
    tries: dict[int, str] = {}
    terms = [(n, str(n), "") for n in sorted(given, reverse=True)]
    for value, expression in _search(terms, largest_value):
        tries.setdefault(value, expression)
        if value == target or len(tries) == _MOST_MISSES:
            break
    return tries


def _search(terms: list[Term], largest_value: int) -> Iterator[tuple[int, str]]:
    """Every value of all the terms and how it is made, in an order of pairs and operations that is always the same."""
    if len(terms) == 1:
        yield terms[0][:2]
    for i, j in itertools.combinations(range(len(terms)), 2):
        a, b = sorted((terms[i], terms[j]), key=lambda term: -term[0])
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        for op in "+-*/":
            if (made := _join(op, a, b, largest_value)) is not None:
                yield from _search([made, *rest], largest_value)


def _combine(rng: random.Random, given: list[int], largest_value: int) -> tuple[int, str] | None:
    """A random value made of all the given numbers, and how; None when a step is not a whole number in the range."""
    terms: list[Term] = [(n, str(n), "") for n in given]
    while len(terms) > 1:
        a, b = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        made = _join(rng.choice("+-*/"), a, b, largest_value)
        if made is None:
            return None
        terms.append(made)
    return terms[0][:2]


def _join(op: str, a: Term, b: Term, largest_value: int) -> Term | None:
    """`a op b`, or None when that is not a whole number from 0 to `largest_value`."""
    (x, left, inner_left), (y, right, inner_right) = a, b
    if op == "/" and (y == 0 or x % y != 0):
        return None
    value = x // y if op == "/" else apply(op, x, y)
    if not 0 <= value <= largest_value:
        return None
    left = f"({left})" if op in "*/" and inner_left in ("+", "-") else left
    right = f"({right})" if inner_right and _binds(op, inner_right) else right
    return value, f"{left}{op}{right}", op


def _binds(op: str, inner: str) -> bool:
    """Whether `a op (b inner c)` needs its parentheses."""
    return op == "/" or (op == "*" and inner != "*") or (op == "-" and inner in "+-")
