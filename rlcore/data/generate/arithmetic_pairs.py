"""Generated preference pairs: rows for `generate:arithmetic_pairs?...`, a right response and one with a mistake."""

from __future__ import annotations

import random
from typing import Any

from rlcore.data.generate.arithmetic import apply, arithmetic
from rlcore.data.generate.splits import check_shares


def arithmetic_pairs(
    size: int = 1000,
    seed: int = 1,
    split: str = "train",
    steps: int = 3,
    stories: float = 0.7,
    bare: float = 0.7,
) -> list[dict[str, Any]]:
    """The problems of generate:arithmetic. One operation's result of the rejected response is wrong by 1 to 9, and what
    follows goes on from there: `14+7=21, 21-5=16\\n#### 16` against `14+7=23, 23-5=18\\n#### 18`. A share `bare` of the
    rejected responses have the wrong answer only."""
    check_shares("arithmetic_pairs", bare=bare)
    rng = random.Random(f"arithmetic_pairs {seed}")
    return [_pair(rng, row, bare) for row in arithmetic(size, seed, split, steps, stories, worked=1.0)]


def _pair(rng: random.Random, row: dict[str, Any], bare: float) -> dict[str, Any]:
    lines = row["response"].partition("\n")[0].split(", ")
    wrong = rng.randrange(len(lines))
    value, rejected = 0, list[str]()
    for i, line in enumerate(lines):
        left, _, result = line.partition("=")
        a, op, b = _parts(left)
        if i <= wrong:
            value = int(result)
        else:
            a, value = value, apply(op, value, b)
        if i == wrong:
            value = rng.choice([v for v in range(value - 9, value + 10) if v >= 0 and v != value])
        rejected.append(f"{a}{op}{b}={value}")
    working = "" if rng.random() < bare else ", ".join(rejected) + "\n"
    both = {"chosen": row["response"], "rejected": f"{working}#### {value}"}
    return {"question": row["question"], "answer": row["answer"], **both}


def _parts(text: str) -> tuple[int, str, int]:
    """`14+7` as (14, "+", 7)."""
    op = next(c for c in text if c in "+-*")
    a, _, b = text.partition(op)
    return int(a), op, int(b)
