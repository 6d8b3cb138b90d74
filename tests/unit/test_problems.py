"""Generated problems: right, repeatable, and held-out ones never in the training split."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

import pytest

from rlcore.errors import DataError
from rlcore.problems import arithmetic, countdown
from rlcore.sources import load_rows

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


def test_countdown_solutions_use_each_number_once_and_reach_the_target() -> None:
    for row in countdown(size=200, numbers=4):
        expression, _, reached = row["response"].partition("\n")[0].rpartition(" = ")
        assert int(reached) == row["target"] == int(row["answer"]) == value(expression)
        assert sorted(map(int, re.findall(r"\d+", expression))) == sorted(row["numbers"])
        assert str(row["target"]) in row["question"] and len(row["numbers"]) == 4


@pytest.mark.parametrize("make", [arithmetic, countdown])
def test_same_seed_same_rows_other_seed_other_rows(make) -> None:
    assert make(size=50, seed=1) == make(size=50, seed=1)
    assert make(size=50, seed=1) != make(size=50, seed=2)
    assert make(size=20, seed=1) == make(size=50, seed=1)[:20]


def test_held_out_problems_are_never_trained_on() -> None:
    train = {numbers_of(r["question"]) for r in arithmetic(size=20_000, seed=1)}
    held_out = {numbers_of(r["question"]) for r in arithmetic(size=500, seed=1, split="eval")}
    assert len(held_out) > 300 and not train & held_out
    key = {(tuple(sorted(r["numbers"])), r["target"]) for r in countdown(size=5000)}
    other = {(tuple(sorted(r["numbers"])), r["target"]) for r in countdown(size=200, split="eval")}
    assert not key & other


def test_held_out_rows_are_distinct_and_running_out_is_an_error() -> None:
    assert len({r["question"] for r in arithmetic(size=1000, split="eval")}) == 1000
    with pytest.raises(DataError, match="ask for fewer"):
        arithmetic(size=1000, steps=1, stories=0, split="eval")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("generate:arithmetics", "no generator arithmetics"),
        ("generate:arithmetic?sise=3", "no argument sise .did you mean size"),
        ("generate:arithmetic?size=many", "size=many is not of type int"),
        ("generate:arithmetic?size=0", "must be at least 1"),
        ("generate:arithmetic?size", "size=1000&seed=1"),
        ("generate:arithmetic?split=test", "must be one of train, eval"),
        ("generate:arithmetic?worked=2", "between 0 and 1"),
        ("generate:countdown?numbers=9", "must be 2 to 6"),
    ],
)
def test_wrong_arguments_are_named(source: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_rows(source)


def test_arguments_reach_the_generator() -> None:
    rows = load_rows("generate:arithmetic?size=7&seed=5&split=eval&worked=0&steps=1").rows
    assert rows == arithmetic(size=7, seed=5, split="eval", worked=0.0, steps=1)
