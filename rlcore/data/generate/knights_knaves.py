"""Generated knights and knaves: rows for `generate:knights_knaves?people=2-5&...`, each puzzle with one solution.

Like the published puzzles of arXiv 2410.23123, which Logic-RL uses (arXiv 2502.14768). A puzzle told with other names,
or with its people in another order, is the same one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Sequence
from typing import Any

from rlcore.data.generate.splits import check_shares, check_size, number_range, split_rows
from rlcore.errors import DataError

# ("knight", 2), ("knave", 0), ("not", S), or two of them: ("and", S, S), ("or", S, S), ("if", S, S), ("iff", S, S).
Statement = tuple[Any, ...]
Solution = tuple[bool, ...]  # of each person: is a knight

WORDINGS = ("published", "short")
_MOST_PEOPLE = 8
_FEW = 4  # names of the short wording, where there are no more people
_JOINED = {"and": " and ", "or": " or ", "iff": " if and only if "}
_KINDS = ("knight", "knave", "not", "and", "or", "if", "iff")

_NAMES: Sequence[str] = (
    "Zoey Owen Mia Liam Ava Noah Emma Jack Ella Luke Lily Ethan Aria Logan Chloe Mason Grace Henry Olivia Samuel "
    "Sofia Daniel Harper David Amelia Jacob"
).split()
_SAID = (
    "{name} said that {claim}.",
    "{name} told you that {claim}.",
    "{name} expressed that {claim}.",
    '{name} was heard saying, "{quoted}".',
    '{name} stated, "{quoted}".',
    '{name} remarked, "{quoted}".',
    '{name} asserted: "{quoted}".',
    'According to {name}, "{quoted}".',
    'As {name} put it, "{quoted}".',
    '"{quoted}," {name} claimed.',
    '"{quoted}," {name} declared.',
)
_ISLAND = (
    "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always "
    "lie. You meet {count} inhabitants: {listed}. {said} So who is a knight and who is a knave?"
)


def knights_knaves(
    size: int = 1000,
    seed: int = 1,
    split: str = "train",
    people: str = "3",
    wording: str = "published",
    worked: float = 1.0,
) -> list[dict[str, Any]]:
    """Who is a knight and who is a knave, told by one statement of each: "Owen is a knave or Mia is a knight".

    `people` is a number from 2 to 8 or a range, all as likely: "2-5". `wording` short is one line, of four names. A
    share `worked` of the responses tries one case after the other, the others answer at once; all are right.
    """
    check_size("knights_knaves", size, split)
    if (allowed := number_range(people, 2, _MOST_PEOPLE)) is None:
        raise DataError(
            f"generate:knights_knaves: people={people}, must be a number from 2 to {_MOST_PEOPLE} or a range, as 2-5"
        )
    least, most = allowed
    if wording not in WORDINGS:
        raise DataError(f"generate:knights_knaves: wording={wording}, must be one of {', '.join(WORDINGS)}")
    check_shares("knights_knaves", worked=worked)
    rng = random.Random(f"knights_knaves {seed}")
    return split_rows("knights_knaves", size, split, lambda: _row(rng, rng.randint(least, most), wording, worked))


def _row(rng: random.Random, count: int, wording: str, worked: float) -> tuple[str, dict[str, Any]]:
    solutions: list[Solution] = []
    statements: list[Statement] = []
    while len(solutions) != 1:
        statements = [_statement(rng, speaker, count) for speaker in range(count)]
        solutions = solve(statements)
    names: list[str] = rng.sample(_NAMES[: max(count, _FEW)] if wording == "short" else _NAMES, count)
    claims = [_claim(s, names) for s in statements]
    roles = [f"{name} is a {_role(knight)}" for name, knight in zip(names, solutions[0], strict=True)]
    listed = "\n".join(f"({i}) {role}" for i, role in enumerate(roles, start=1))
    row: dict[str, Any] = {
        "question": _short(names, claims) if wording == "short" else _published(rng, names, claims),
        "answer": listed,
        "names": names,
        "solution": list(solutions[0]),
        "people": count,
    }
    thought = _worked(statements, names) if rng.random() < worked else "I see it at once."
    row["response"] = f"<think>{thought}</think><answer>{listed}</answer>"
    return key(statements), row


def solve(statements: list[Statement]) -> list[Solution]:
    """Every assignment in which what each person says is true exactly if that person is a knight."""
    cases, knights = _all_cases(len(statements))
    wrong = 0
    for statement, knight in zip(statements, knights, strict=True):
        wrong |= holds(statement, knights) ^ knight
    return [case for i, case in enumerate(cases) if not wrong >> i & 1]


def holds(statement: Statement, knights: list[int]) -> int:
    """The cases in which a statement is true, as bits: case i is bit i. `knights[p]`: those in which p is a knight."""
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return knights[parts[0]] if kind == "knight" else ~knights[parts[0]]
    if kind == "not":
        return ~holds(parts[0], knights)
    left, right = (holds(p, knights) for p in parts)
    return {"and": left & right, "or": left | right, "if": ~left | right, "iff": ~(left ^ right)}[kind]


@functools.cache
def _all_cases(count: int) -> tuple[list[Solution], list[int]]:
    """Who is a knight in each of the 2^count cases, and of each person in which cases."""
    cases = list(itertools.product((True, False), repeat=count))
    return cases, [sum(1 << i for i, case in enumerate(cases) if case[p]) for p in range(count)]


def _statement(rng: random.Random, speaker: int, count: int) -> Statement:
    """Of one other person, or of two people of whom one may be the speaker."""
    kind = rng.choice(_KINDS)
    if kind in ("knight", "knave", "not"):
        other = rng.choice([i for i in range(count) if i != speaker])
        return ("not", (rng.choice(_KINDS[:2]), other)) if kind == "not" else (kind, other)
    return (kind, *((rng.choice(_KINDS[:2]), i) for i in rng.sample(range(count), 2)))


def key(statements: list[Statement]) -> str:
    """The same for puzzles that differ in names, in the order of the people, or of what "and", "or", "iff" join.

    Everyone's colour is that of what they say, of whom; in as many rounds as there are people it spreads to all.
    """
    colours = [""] * len(statements)
    for _ in statements:
        shapes = [f"{colours[i]} says {_shape(s, i, colours)}" for i, s in enumerate(statements)]
        colours = [hashlib.sha256(shape.encode()).hexdigest() for shape in shapes]
    return " ".join(sorted(colours))


def _shape(statement: Statement, speaker: int, colours: list[str]) -> str:
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return f"{kind} {'self' if parts[0] == speaker else colours[parts[0]]}"
    if kind == "not":
        flipped = {"knight": "knave", "knave": "knight"}[parts[0][0]]
        return _shape((flipped, parts[0][1]), speaker, colours)
    shapes = [_shape(p, speaker, colours) for p in parts]
    return f"{kind} {shapes if kind == 'if' else sorted(shapes)}"


def _role(knight: bool) -> str:
    return "knight" if knight else "knave"


def _claim(statement: Statement, names: list[str]) -> str:
    kind, *parts = statement
    if kind in ("knight", "knave"):
        return f"{names[parts[0]]} is a {kind}"
    if kind == "not":
        return f"{names[parts[0][1]]} is not a {parts[0][0]}"
    return _join(kind, *(_claim(p, names) for p in parts))


def _join(kind: str, left: str, right: str) -> str:
    return f"if {left} then {right}" if kind == "if" else f"{left}{_JOINED[kind]}{right}"


def _short(names: list[str], claims: list[str]) -> str:
    return " ".join(f"{name} says {claim}." for name, claim in zip(names, claims, strict=True))


def _published(rng: random.Random, names: list[str], claims: list[str]) -> str:
    said = " ".join(
        rng.choice(_SAID).format(name=name, claim=claim, quoted=claim[0].upper() + claim[1:])
        for name, claim in zip(names, claims, strict=True)
    )
    comma = "," if len(names) > 2 else ""
    listed = f"{', '.join(names[:-1])}{comma} and {names[-1]}"
    return _ISLAND.format(count=len(names), listed=listed, said=said)


def _worked(statements: list[Statement], names: list[str]) -> str:
    """Case after case until one fits: who is what, then what each says with its parts called true or false, whether all
    of it is true, and whether that suits who says it."""
    cases, knights = _all_cases(len(names))
    truths = [holds(s, knights) for s in statements]
    lines = []
    for i, case in enumerate(cases):
        people = [f"{name} {_role(knight)}; " for name, knight in zip(names, case, strict=True)]
        checks = ""
        for p, knight in enumerate(case):
            true = bool(truths[p] >> i & 1)
            checks += (
                f"{people[p]}{_valued(statements[p], names, i)}: {_truth(true)}, {'ok. ' if true == knight else 'no.'}"
            )
            if true != knight:
                break
        lines.append("".join(people) + checks)
        if checks.endswith("ok. "):
            break
    return "\n".join(lines)


def _truth(true: bool) -> str:
    return "true" if true else "false"


def _valued(statement: Statement, names: list[str], case: int) -> str:
    """ "Owen is a knave (true) or Mia is a knight (false)", in the case of that number."""
    kind, *parts = statement
    if kind in _JOINED or kind == "if":
        return _join(kind, *(_valued(p, names, case) for p in parts))
    true = bool(holds(statement, _all_cases(len(names))[1]) >> case & 1)
    return f"{_claim(statement, names)} ({_truth(true)})"
