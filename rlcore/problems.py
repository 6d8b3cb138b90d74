"""Generated problems with answers a program can check: rows for `generate:arithmetic?...` and `generate:countdown?...`.

Every row has the columns question, answer and response (a correct worked or bare solution, what `rlcore sft` learns).

Held-out problems are never generated for training: a problem belongs to the split "eval" when the first eight bytes of
SHA-256 of its numbers and operations are a multiple of 10, and to "train" otherwise. Names and wording do not count, so
a held-out problem is not a known one told about someone else. The same arguments give the same rows on every machine.
"""

from __future__ import annotations

import hashlib
import random
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

Step = tuple[str, int]  # an operation and its second number


def arithmetic(
    size: int = 1000, seed: int = 1, split: str = "train", steps: int = 3, stories: float = 0.7, worked: float = 1.0
) -> list[dict[str, Any]]:
    """Stories and sums of 1 to `steps` operations (+, -, *) on whole numbers from 0 to 30.

    `stories` is the share of problems told in words, "Mia has 14 nuts. She sells 5. How many now?"; the others are
    "What is 14-5?". A sum's response writes down each operation before the answer, as in "14+7=21, 21-5=16\\n#### 16".
    So do a share `worked` of the stories'; the others answer at once: "#### 16". All are right.
    """
    _check("arithmetic", size, split)
    if not 1 <= steps <= 6:
        raise DataError(f"generate:arithmetic: steps={steps}, must be 1 to 6")
    for name, share in (("stories", stories), ("worked", worked)):
        if not 0.0 <= share <= 1.0:
            raise DataError(f"generate:arithmetic: {name}={share}, must be between 0 and 1")
    rng = random.Random(f"arithmetic {seed}")
    return _rows("arithmetic", size, split, lambda: _arithmetic_row(rng, steps, stories, worked))


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


def countdown(size: int = 1000, seed: int = 1, split: str = "train", numbers: int = 4) -> list[dict[str, Any]]:
    """Reach a target with +, -, * and / from `numbers` given numbers, each used exactly once.

    Rows also have the columns numbers (list of int) and target (int). Every target can be reached: response is one way.
    """
    _check("countdown", size, split)
    if not 2 <= numbers <= 6:
        raise DataError(f"generate:countdown: numbers={numbers}, must be 2 to 6")
    rng = random.Random(f"countdown {seed}")
    return _rows("countdown", size, split, lambda: _countdown_row(rng, numbers))


def _countdown_row(rng: random.Random, count: int) -> tuple[str, dict[str, Any]]:
    while True:
        given = [rng.randint(1, 25) for _ in range(count)]
        target, expression = _combine(rng, given)
        if 1 <= target <= 999 and target not in given:
            break
    listed = ", ".join(str(n) for n in given)
    question = f"Use each of the numbers {listed} exactly once, with + - * / and parentheses, to make {target}."
    row = {"question": question, "answer": str(target), "numbers": given, "target": target}
    row["response"] = f"{expression} = {target}\n#### {target}"
    return f"{sorted(given)} {target}", row


def _combine(rng: random.Random, given: list[int]) -> tuple[int, str]:
    """A random value made of all the given numbers, whole at every step, and how."""
    terms = [(n, str(n)) for n in given]
    while len(terms) > 1:
        a, left = terms.pop(rng.randrange(len(terms)))
        b, right = terms.pop(rng.randrange(len(terms)))
        op = rng.choice("+-*/" if b != 0 and a % b == 0 else "+-*")
        value = a // b if op == "/" else _apply(op, a, b)
        terms.append((value, f"({left} {op} {right})"))
    value, expression = terms[0]
    return value, expression[1:-1]


GENERATORS: dict[str, Callable[..., list[dict[str, Any]]]] = {"arithmetic": arithmetic, "countdown": countdown}


def _check(name: str, size: int, split: str) -> None:
    if size < 1:
        raise DataError(f"generate:{name}: size={size}, must be at least 1")
    if split not in SPLITS:
        raise DataError(f"generate:{name}: split={split}, must be one of {', '.join(SPLITS)}")


def held_out(key: str) -> bool:
    """Whether the problem with these numbers and operations belongs to the split "eval"."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def _rows(name: str, size: int, split: str, make: Callable[[], tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
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
