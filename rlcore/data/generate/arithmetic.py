"""Generated sums and stories: rows for `generate:arithmetic?...`, with a worked or a bare solution to learn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from rlcore.data.generate.splits import check_shares, check_size, split_rows
from rlcore.errors import DataError

_SHE = ("Ada", "Mia", "Zoe", "Eva", "Lin", "Ruth", "Nora", "Iris")
_HE = ("Tom", "Sam", "Leo", "Max", "Ben", "Omar", "Ivan", "Hugo")
_PEOPLE = [(name, "She") for name in _SHE] + [(name, "He") for name in _HE]
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
    """Stories and sums of 1 to `steps` operations (+, -, *) on whole numbers from 0 to 30; all responses are right.

    A share `stories` of the problems is told in words, "Mia has 14 nuts. She sells 5. How many now?"; the others are
    "What is 14-5?". Sums, and a share `worked` of the stories, are worked out: "14+7=21, 21-5=16\\n#### 16".
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
        result = apply(op, value, k)
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
        value = apply(op, value, k)
        yield op, k


def apply(op: str, a: int, b: int) -> int:
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
