"""Generated problems with answers a program can check: rows for `generate:arithmetic?...` and `generate:countdown?...`.

Every row has the columns question, answer and response: what `rlcore sft` learns, a worked or a bare solution. All are
right but countdown's that give up.

Held-out problems are never generated for training: a problem belongs to the split "eval" when the first eight bytes of
SHA-256 of its numbers and operations are a multiple of 10, and to "train" otherwise. Names and wording do not count, so
a held-out problem is not a known one told about someone else. The same arguments give the same rows on every machine.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from rlcore.errors import DataError

SPLITS = ("train", "eval")
_HELD_OUT_ONE_IN = 10
_TRIES = 10_000  # without a new problem: there are no more, or nearly

_PEOPLE = (
    [(name, "She") for name in ("Ada", "Mia", "Zoe", "Eva", "Lin", "Ruth", "Nora", "Iris")]
    + [(name, "He") for name in ("Tom", "Sam", "Leo", "Max", "Ben", "Omar", "Ivan", "Hugo")]
)  # fmt: skip
_THINGS = ("apples", "books", "coins", "cards", "stamps", "shells", "pens", "eggs", "cups", "nuts", "keys", "toys")
_TOLD = {
    "+": ("buys {k} more", "finds {k} more", "gets {k} more", "is given {k} more"),
    "-": ("sells {k}", "loses {k}", "gives away {k}", "uses up {k}"),
    "*": ("ends up with {k} times as many",),
}
_LARGEST_START = 15
_LARGEST_VALUE = 30
_MOST_MISSES = 14

Step = tuple[str, int]  # an operation and its second number
Term = tuple[int, str, str]  # a value, how it is made, and the last operation of that, if any


def arithmetic(
    size: int = 1000, seed: int = 1, split: str = "train", steps: int = 3, stories: float = 0.7, worked: float = 1.0
) -> list[dict[str, Any]]:
    """Stories and sums of 1 to `steps` operations (+, -, *) on whole numbers from 0 to 30.

    `stories` is the share of problems told in words, "Mia has 14 nuts. She sells 5. How many now?"; the others are
    "What is 14-5?". A sum's response writes down each operation before the answer, as in "14+7=21, 21-5=16\\n#### 16".
    So do a share `worked` of the stories'; the others answer at once: "#### 16". All are right.
    """
    check_size("arithmetic", size, split)
    if not 1 <= steps <= 6:
        raise DataError(f"generate:arithmetic: steps={steps}, must be 1 to 6")
    check_shares("arithmetic", stories=stories, worked=worked)
    rng = random.Random(f"arithmetic {seed}")
    return split_rows("arithmetic", size, split, lambda: _arithmetic_row(rng, steps, stories, worked))


def _arithmetic_row(rng: random.Random, steps: int, stories: float, worked: float) -> tuple[str, dict[str, Any]]:
    start = rng.randint(2, _LARGEST_START)
    chain = list(_chain(rng, start, rng.randint(1, steps)))
    story = rng.random() < stories
    question = _as_story(rng, start, chain) if story else _as_sum(start, chain)
    value, lines = start, []
    for op, k in chain:
        result = _apply(op, value, k)
        lines.append(f"{value}{op}{k}={result}")
        value = result
    response = f"#### {value}"
    if rng.random() < worked or not story:
        response = ", ".join(lines) + "\n" + response
    key = f"{start} " + " ".join(f"{op}{k}" for op, k in chain)
    return key, {"question": question, "answer": str(value), "response": response}


def _chain(rng: random.Random, value: int, length: int) -> Iterator[Step]:
    for _ in range(length):
        ops = ["+"] * (value < _LARGEST_VALUE) + ["-"] * (value > 0) + ["*"] * (0 < value <= _LARGEST_VALUE // 2)
        op = rng.choice(ops)
        most = {"+": _LARGEST_VALUE - value, "-": value, "*": _LARGEST_VALUE // max(value, 1)}[op]
        k = rng.randint(2, min(most, 3)) if op == "*" else rng.randint(1, min(most, 9))
        value = _apply(op, value, k)
        yield op, k


def _apply(op: str, a: int, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def _as_story(rng: random.Random, start: int, chain: list[Step]) -> str:
    (name, pronoun), things = rng.choice(_PEOPLE), rng.choice(_THINGS)
    told = [f"{pronoun} {rng.choice(_TOLD[op]).format(k=k)}." for op, k in chain]
    return f"{name} has {start} {things}. {' '.join(told)} How many now?"


def _as_sum(start: int, chain: list[Step]) -> str:
    text, sums = str(start), False
    for op, k in chain:
        text = f"({text})" if op == "*" and sums else text
        text, sums = f"{text}{op}{k}", op != "*"
    return f"What is {text}?"


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

    The given numbers are from 1 to `largest`; the target, which can always be reached, and all that is worked out on
    the way are whole numbers from 0 to `largest_value`. Rows also have the columns nums (list of int) and target (int),
    as the published data (Jiayi-Pan/Countdown-Tasks-3to4).

    A response tries one thing after the other and answers with its last try, as in
    "<think>5+3+2=10, 5+3-2=6, (5+3)*2=16</think><answer>(5+3)*2</answer>". A share `search` of them goes on until the
    target is made (that takes at most 15 tries: what 14 have missed is found at once). The others answer with their
    first try, mostly the sum of all the numbers, and mostly wrong.
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
    for _ in range(_TRIES):
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
    value = x // y if op == "/" else _apply(op, x, y)
    if not 0 <= value <= largest_value:
        return None
    left = f"({left})" if op in "*/" and inner_left in ("+", "-") else left
    right = f"({right})" if inner_right and _binds(op, inner_right) else right
    return value, f"{left}{op}{right}", op


def _binds(op: str, inner: str) -> bool:
    """Whether `a op (b inner c)` needs its parentheses."""
    return op == "/" or (op == "*" and inner != "*") or (op == "-" and inner in "+-")


def check_size(name: str, size: int, split: str) -> None:
    if size < 1:
        raise DataError(f"generate:{name}: size={size}, must be at least 1")
    if split not in SPLITS:
        raise DataError(f"generate:{name}: split={split}, must be one of {', '.join(SPLITS)}")


def check_shares(name: str, **shares: float) -> None:
    for share, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise DataError(f"generate:{name}: {share}={value}, must be between 0 and 1")


def number_range(text: str, least: int, most: int) -> tuple[int, int] | None:
    """ "3" as (3, 3), "3-4" as (3, 4); None for any other text, and for what is not from `least` to `most`."""
    found = re.fullmatch(r"(\d)(?:-(\d))?", text, re.ASCII)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    return (low, high) if least <= low <= high <= most else None


def held_out(key: str) -> bool:
    """Whether the problem with these numbers and operations belongs to the split "eval"."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def split_rows(
    name: str, size: int, split: str, make: Callable[[], tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """`size` rows of the split. Held-out questions are all different; small ones come again in training, as they do."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    misses = 0
    while len(rows) < size:
        key, row = make()
        if held_out(key) != (split == "eval") or row["question"] in seen:
            misses += 1
            if misses == _TRIES:
                raise DataError(f"generate:{name}: only {len(rows)} different problems of split {split}; ask for fewer")
            continue
        misses = 0
        rows.append(row)
        if split == "eval":
            seen.add(row["question"])
    return rows
