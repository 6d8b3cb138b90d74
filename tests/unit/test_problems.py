"""Generated problems: right, repeatable, and held-out ones never in the training split."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rlcore.compose.compose import RECIPES
from rlcore.data.generate import splits
from rlcore.data.generate.arithmetic import arithmetic
from rlcore.data.generate.countdown import countdown
from rlcore.data.sources import load_rows
from rlcore.errors import DataError
from rlcore.models import embedded
from rlcore.train.warm_up import made_of

_OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(expression: str) -> Fraction:
    """The value of + - * / on whole numbers, by walking the syntax tree."""

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            return _OPS[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        return Fraction(node.value)

    return walk(ast.parse(expression, mode="eval").body)


def numbers_of(question: str) -> str:
    """What makes a problem the same one however it is told: its numbers and what is done with them."""
    words = {"more": "+", "times": "*"}
    found = re.findall(r"\d+|[-+*(]|more|times|sells|loses|away|uses", question)
    return " ".join(words.get(f, "-" if f.isalpha() else f) for f in found)


def test_worked_responses_are_right_line_by_line() -> None:
    rows = arithmetic(size=500, seed=3, stories=0.5)
    for row in rows:
        working, answer = row["response"].split("\n")
        steps = working.split(", ")
        assert answer == f"#### {row['answer']}" and steps[-1].endswith(f"={row['answer']}")
        for step in steps:
            left, right = step.split("=")
            assert value(left) == int(right)
    asked = [row for row in rows if row["question"].startswith("What is")]
    assert len(asked) > 100
    for row in asked:
        assert value(row["question"].removeprefix("What is ").rstrip("?")) == int(row["answer"])


def test_worked_is_a_share_of_the_rows_and_changes_no_problem() -> None:
    bare, some, full = (arithmetic(size=1000, worked=w, stories=1.0) for w in (0.0, 0.3, 1.0))
    assert [r["question"] for r in bare] == [r["question"] for r in some] == [r["question"] for r in full]
    assert [r["answer"] for r in bare] == [r["answer"] for r in full]
    assert all(r["response"] == f"#### {r['answer']}" for r in bare)
    assert 200 < sum("=" in r["response"] for r in some) < 400


def test_stories_is_a_share_of_the_problems_and_sums_are_always_worked() -> None:
    rows = arithmetic(size=1000, stories=0.8, worked=0.0)
    sums = [r for r in rows if r["question"].startswith("What is")]
    assert 150 < len(sums) < 250
    assert all(("=" in r["response"]) == (r in sums) for r in rows)


def test_steps_bounds_the_operations() -> None:
    assert {r["response"].count("=") for r in arithmetic(size=300, steps=2)} == {1, 2}


def tries_and_answer(response: str) -> tuple[list[tuple[str, int]], str]:
    """The tries of a countdown response, as (expression, claimed value), and its answer."""
    found = re.fullmatch(r"<think>(.*)</think><answer>(.*)</answer>", response)
    assert found is not None, response
    tries = [t.split("=") for t in found[1].split(", ")]
    return [(expression, int(claimed)) for expression, claimed in tries], found[2]


@pytest.mark.parametrize("arguments", [{}, {"numbers": "5"}, {"numbers": "3", "largest": 9, "largest_value": 50}])
def test_countdown_tries_are_right_and_the_last_one_reaches_the_target(arguments: dict[str, Any]) -> None:
    for row in countdown(size=300, **arguments):
        tries, answer = tries_and_answer(row["response"])
        assert tries[-1] == (answer, row["target"]) and int(row["answer"]) == row["target"]
        for expression, claimed in tries:
            assert value(expression) == claimed >= 0
            assert sorted(map(int, re.findall(r"\d+", expression))) == sorted(row["nums"])
        assert len({claimed for _, claimed in tries}) == len(tries) <= 15  # none again, and a miss is not the target
        assert row["question"] == f"Using the numbers {row['nums']}, create an equation that equals {row['target']}."


def test_countdown_sums_and_products_need_no_parentheses() -> None:
    answers = [tries_and_answer(row["response"])[1] for row in countdown(size=1000, largest=12)]
    assert any("(" in a for a in answers)
    assert not any("(" in a for a in answers if set(a) <= set("0123456789+()") or set(a) <= set("0123456789*()"))


def test_countdown_bounds_and_the_numbers_of_numbers() -> None:
    rows = countdown(size=500)
    assert {len(r["nums"]) for r in rows} == {3, 4}
    assert max(n for r in rows for n in r["nums"]) > 60 and max(r["target"] for r in rows) > 80
    small = countdown(size=500, numbers="3", largest=9, largest_value=50)
    assert {len(r["nums"]) for r in small} == {3} and {n for r in small for n in r["nums"]} == set(range(1, 10))
    assert all(0 < r["target"] <= 50 and r["target"] not in r["nums"] for r in small)


def test_a_share_of_countdown_responses_gives_up_after_its_first_try() -> None:
    full, some, none = (countdown(size=1000, search=share) for share in (1.0, 0.3, 0.0))
    assert [r["question"] for r in full] == [r["question"] for r in some] == [r["question"] for r in none]
    first = [tries_and_answer(r["response"])[0][0] for r in full]
    assert [tries_and_answer(r["response"]) for r in none] == [([t], t[0]) for t in first]
    several = sum(r["response"].count("=") > 1 for r in full)
    assert 0.2 * several < sum(r["response"].count("=") > 1 for r in some) < 0.4 * several


@pytest.mark.parametrize("make", [arithmetic, countdown])
def test_same_seed_same_rows_other_seed_other_rows(make) -> None:
    assert make(size=50, seed=1) == make(size=50, seed=1)
    assert make(size=50, seed=1) != make(size=50, seed=2)
    assert make(size=20, seed=1) == make(size=50, seed=1)[:20]


def test_held_out_problems_are_never_trained_on() -> None:
    train = {numbers_of(r["question"]) for r in arithmetic(size=20_000, seed=1)}
    held_out = {numbers_of(r["question"]) for r in arithmetic(size=500, seed=1, split="eval")}
    assert len(held_out) > 300 and not train & held_out
    key, other = (
        {(tuple(sorted(r["nums"])), r["target"]) for r in countdown(size, 1, split, numbers="3", largest=9)}
        for size, split in ((5000, "train"), (200, "eval"))
    )
    assert len(other) > 50 and not key & other


def test_held_out_rows_are_distinct_and_running_out_is_an_error() -> None:
    assert len({r["question"] for r in arithmetic(size=1000, split="eval")}) == 1000
    with pytest.raises(DataError, match="ask for fewer"):
        arithmetic(size=1000, steps=1, stories=0, split="eval")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("generate:arithmetics", "no generator arithmetics"),
        ("generate:arithmetic?sise=3", "no argument sise; did you mean size"),
        ("generate:arithmetic?size=many", "size=many is not of type int"),
        ("generate:arithmetic?size=0", "must be at least 1"),
        ("generate:arithmetic?size", "size=1000&seed=1"),
        ("generate:arithmetic?split=test", "must be one of train, eval"),
        ("generate:arithmetic?worked=2", "between 0 and 1"),
        ("generate:countdown?numbers=9", "countdown: numbers=9, must be 2 to 6, or a range such as 3-4"),
        ("generate:countdown?numbers=4-3", "must be 2 to 6"),
        ("generate:countdown?numbers=3-", "must be 2 to 6"),
        ("generate:countdown?largest=101", "largest=101, must be 1 to largest_value=100"),
        ("generate:countdown?numbers=2&largest=1&largest_value=1", "no target found for 2 numbers"),
        ("generate:countdown?search=-1", "search=-1.0, must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(source: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_rows(source)


def test_arguments_reach_the_generator() -> None:
    rows = load_rows("generate:arithmetic?size=7&seed=5&split=eval&worked=0&steps=1").rows
    assert rows == arithmetic(size=7, seed=5, split="eval", worked=0.0, steps=1)


def files_behind(path: Path) -> set[Path]:
    """The file, and those of the generators that it builds on."""
    built_on = re.findall(r"^from rlcore\.data\.generate\.(\w+) import", path.read_text(), re.MULTILINE)
    return {path}.union(*(files_behind(Path(splits.__file__).with_name(f"{name}.py")) for name in built_on))


@pytest.mark.parametrize("name", sorted(embedded.EMBEDDED))
def test_an_embedded_model_is_made_anew_when_a_file_that_decides_it_changes(name: str) -> None:
    """Of the generators too that its own builds on: the puzzles' rows come out of a function that they all use."""
    files = set(made_of(name))
    assert files == files_behind(Path(embedded.__file__)) | {RECIPES / f"{embedded.EMBEDDED[name].warm_up}.yaml"}
    assert {"arithmetic.py", "countdown.py", "knights_knaves.py", "splits.py"} < {path.name for path in files}
    assert all(path.is_file() for path in files)
