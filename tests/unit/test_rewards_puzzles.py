"""Verdicts of the puzzle rules: countdown, knights and knaves, and the format that goes with them."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from rewards.countdown import DEEPEST, MOST_CHARACTERS, countdown, countdown_gold, makes
from rewards.format import last_answer, think_answer
from rewards.knights_knaves import knights_knaves, knights_knaves_gold, knights_knaves_solved, logic_rl_format
from rlcore.data.generate.countdown import countdown as countdown_rows
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt, Score


def prompt(row: dict[str, Any], answer: str = "") -> Prompt:
    return Prompt(id="test:7", tokens=[1], answer=answer, row=row)


EQUATIONS = [
    # numbers, target, equation, verdict
    ([1, 2, 3], 9, "(1 + 2) * 3", True),
    ([1, 2, 3], 9, "(1+2)*3=9", True),
    ([1, 2, 3], 9, "(1+2)*3 = 9 ", True),
    ([1, 2, 3], 9, "(1+2)*3 = 10", False),
    ([1, 2, 3], 9, "9 = (1+2)*3", False),
    ([1, 2, 3], 9, "(1+2)*3 = 9 = 9", False),
    ([1, 2, 3], 9, "(1+2)*3 =", False),
    ([1, 2, 3], 9, "3 * (1 + 2", False),
    ([1, 2, 3], 9, "3 * 1 + 2)", False),
    ([1, 2, 3], 7, "1+2*3", True),
    ([1, 2, 3], 9, "1+2*3", False),
    ([1, 2, 3], 0, "3-2-1", True),
    ([8, 4, 2], 1, "8/4/2", True),
    ([8, 4, 2], 4, "8/4/2", False),
    ([3, 3, 8, 8], 24, "8/(3-8/3)", True),
    ([1, 3, 3], 1, "1/3*3", True),
    ([1, 2, 3], 9, "(1+2)*3*1", False),
    ([1, 2, 3], 3, "1+2", False),
    ([1, 1, 3], 5, "1+1+3", True),
    ([1, 1, 3], 4, "1+3", False),
    ([12, 3], 15, "1 2 + 3", False),
    ([12, 3], 15, "12 3", False),
    ([2, 3], 8, "2**3", False),
    ([7, 2], 3, "7//2", False),
    ([5, 3], 2, "-3 + 5", True),
    ([5, 3], 8, "5 - -3", True),
    ([5, 3], 2, "+5-3", True),
    ([5, 3], 2, "5-3-", False),
    ([2, 3], 6, "2(3)", False),
    ([2, 3], 6, "2 \u00d7 3", True),
    ([6, 3], 2, "6 \u00f7 3", True),
    ([6, 3], 3, "6 \u2212 3", True),
    ([6, 3], 3, "6 \u2013 3", False),
    ([2, 3], 5, "\uff12+\uff13", False),
    ([2, 3], 5, "2.0+3", False),
    ([2, 3], 5, "02+3", False),
    ([2, 3], 5, "2e0+3", False),
    ([2, 0], 0, "2/0", False),
    ([2, 2, 3], 3, "3/(2-2)", False),
    ([2, 3], 5, "", False),
    ([2, 3], 5, "()", False),
    ([2, 3], 5, "2 + 3 is it", False),
    ([2, 3], 5, "2\n+\n3", True),
    ([2, 3], 5, "print(5) or 2+3", False),
    ([9, 9, 9], 9, "9**9**9", False),
    ([1], 1, "(" * DEEPEST + "1" + ")" * DEEPEST, True),
    ([1], 1, "(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1), False),
    ([1], 1, "-" * (DEEPEST + 2) + "1", False),
    ([1] * 100, 100, "+".join("1" * 100), True),
    ([1] * 200, 200, "+".join("1" * 200), False),
    ([1, 2], 3, "1" + " " * MOST_CHARACTERS + "+2", False),
]


@pytest.mark.parametrize(("numbers", "target", "equation", "right"), EQUATIONS)
def test_countdown_equations(numbers: list[int], target: int, equation: str, right: bool) -> None:
    assert makes(equation, numbers, target) is right
    row = {"nums": numbers, "target": target}
    verdict = countdown(prompt(row), f"<think>hm</think><answer>{equation}</answer>", format_score=0.1)
    assert verdict == Score(1.0 if right else 0.1, {"answered": 1.0})


@pytest.mark.parametrize(
    ("response", "reward", "answered"),
    [
        ("<answer>1+2</answer>", 1.0, 1),
        ("<answer> 1 + 2 = 3 </answer> done", 1.0, 1),
        ("<answer>1-2</answer> no: <answer>1+2</answer>", 1.0, 1),
        ("<answer>1+2</answer> no: <answer>1-2</answer>", 0.1, 1),
        ("<answer></answer>", 0.1, 1),
        ("the answer is 1+2", 0.0, 0),
        ("<answer>1+2", 0.0, 0),
        ("1+2</answer>", 0.0, 0),
        ("</answer>1+2<answer>", 0.0, 0),
        ("<ANSWER>1+2</ANSWER>", 0.0, 0),
        ("", 0.0, 0),
    ],
)
def test_countdown_reads_the_last_answer(response: str, reward: float, answered: int) -> None:
    row = {"numbers": [1, 2], "target": 3}
    assert countdown(prompt(row), response, format_score=0.1) == Score(reward, {"answered": answered})
    assert countdown(prompt(row), response).reward == (1.0 if reward == 1.0 else 0.0)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({}, "nums or numbers.*None"),
        ({"target": 3}, "nums or numbers"),
        ({"nums": [], "target": 3}, "nums or numbers"),
        ({"nums": "1, 2", "target": 3}, "nums or numbers.*'1, 2'"),
        ({"nums": "[1, 2", "target": 3}, "nums or numbers"),
        ({"nums": "", "target": 3}, "nums or numbers"),
        ({"nums": "[]", "target": 3}, "nums or numbers"),
        ({"nums": '[1, "2"]', "target": 3}, "nums or numbers"),
        ({"nums": "[1, 2.5]", "target": 3}, "nums or numbers"),
        ({"nums": "[true]", "target": 1}, "nums or numbers"),
        ({"nums": "(1, 2)", "target": 3}, "nums or numbers"),
        ({"nums": '{"1": 2}', "target": 3}, "nums or numbers"),
        ({"nums": "[9, __import__('os')]", "target": 3}, "nums or numbers"),
        ({"nums": "[" * 100_000, "target": 3}, "nums or numbers"),
        ({"nums": [1, "2"], "target": 3}, "nums or numbers"),
        ({"nums": [1, 2.5], "target": 3}, "nums or numbers"),
        ({"nums": [True], "target": 1}, "nums or numbers"),
        ({"nums": [1, 2]}, "target.*None"),
        ({"nums": [1, 2], "target": "three"}, "target.*'three'"),
        ({"nums": [1, 2], "target": "1+2"}, "target"),
        ({"nums": [1, 2], "target": ""}, "target"),
        ({"nums": [1, 2], "target": "3.5"}, "target.*'3.5'"),
        ({"nums": [1, 2], "target": "NaN"}, "target"),
        ({"nums": [1, 2], "target": "1e999"}, "target"),
        ({"nums": [1, 2], "target": "9" * 5000}, "target"),
        ({"nums": [1, 2], "target": "true"}, "target"),
        ({"nums": [1, 2], "target": '"3"'}, "target"),
        ({"nums": [1, 2], "target": "[3]"}, "target"),
        ({"nums": [1, 2], "target": 3.5}, "target"),
        ({"nums": [1, 2], "target": float("nan")}, "target"),
        ({"nums": [1, 2], "target": float("inf")}, "target"),
        ({"nums": [1, 2], "target": True}, "target"),
    ],
)
def test_countdown_without_its_columns_is_unparseable(row: dict[str, Any], names: str) -> None:
    with pytest.raises(UnparseableGold, match=f"test:7.*{names}"):
        countdown_gold(prompt(row))
    with pytest.raises(UnparseableGold, match=names):
        countdown(prompt(row), "<answer>1+2</answer>")


@pytest.mark.parametrize(
    ("nums", "target"), [("[3, 5]", "8"), ("[3,5]", "8.0"), ([3, 5], 8.0), (" [3, 5]\n", " 8 "), ("[3, 5]", 8)]
)
def test_countdown_reads_what_a_table_holds(nums: Any, target: Any) -> None:
    """A CSV file's cells are text, and a column of whole numbers with gaps holds floats."""
    row = {"nums": nums, "target": target}
    countdown_gold(prompt(row))
    assert countdown(prompt(row), "<answer>3 + 5 = 8</answer>").reward == 1.0
    assert countdown(prompt(row), "<answer>3 - 5</answer>").reward == 0.0


def test_countdown_agrees_with_the_generator() -> None:
    for row in countdown_rows(size=50):
        countdown_gold(prompt(row))
        assert countdown(prompt(row), row["response"]).reward == 1.0
        assert not makes(last_answer(row["response"]) or "", row["nums"], row["target"] + 1)


def test_countdown_is_linear_in_hostile_text() -> None:
    rng = random.Random(1)
    hostile = "".join(rng.choice("()+-*/123456789 ") for _ in range(200_000))
    row = {"nums": [1, 2], "target": 3}
    assert countdown(prompt(row), f"<answer>{hostile}</answer>").reward == 0.0
    assert countdown(prompt(row), "<answer>" * 50_000).reward == 0.0
    assert countdown(prompt(row), "<answer>" * 50_000 + "1+2</answer>").reward == 1.0


ZOEY = {"names": ["Zoey", "Bob"], "solution": [True, False]}
RIGHT = "(1) Zoey is a knight\n(2) Bob is a knave"


def wrapped(answer: str) -> str:
    return f"<think>hm</think>\n<answer>{answer}</answer>"


KNIGHTS = [
    # answer, reward, share of people right
    (RIGHT, 2.0, 1.0),
    ("(2) Bob is a knave\n(1) Zoey is a knight", 2.0, 1.0),
    ("zoey IS A KNIGHT, bob is a  Knave.", 2.0, 1.0),
    ("So Zoey is a knight and Bob is a knave.", 2.0, 1.0),
    ("(1) Zoey is a knave\n(2) Bob is a knight", -1.5, 0.0),
    ("(1) Zoey is a knight\n(2) Bob is a knight", -1.5, 0.5),
    ("(1) Zoey is a knight", -2.0, 0.5),
    ("(2) Bob is a knave", -2.0, 0.5),
    ("(1) Zoey is a knight\n(2) Rob is a knave", -2.0, 0.5),
    ("(1) Zoey is a knight\n(2) Bobby is a knave", -2.0, 0.5),
    ("(1) Zoey is a knight\n(2) JBob is a knave", -2.0, 0.5),
    ("(1) Zoey is a knight\n(2) Bob is a knave\n(3) Ann is a knave", -2.0, 1.0),
    ("Zoey is a knight, Zoey is a knave", -2.0, 0.0),
    ("Zoey is a knight, Zoey is a knave, Bob is a knave", -2.0, 0.5),
    ("Zoey is a knight, Zoey is a knight", -2.0, 0.5),
    ("Zoey is not a knight, Bob is a knave", -2.0, 0.5),
    ("Zoey is a knight, Bob is a knaveish", -2.0, 0.5),
    ("Zoey: knight, Bob: knave", -2.0, 0.0),
    ("Zoey is a knight or Bob is a knave, if Bob is a knave", -2.0, 1.0),
    ("", -2.0, 0.0),
]


@pytest.mark.parametrize(("answer", "reward", "right"), KNIGHTS)
def test_knights_knaves(answer: str, reward: float, right: float) -> None:
    score = knights_knaves(prompt(ZOEY), wrapped(answer))
    assert score == Score(reward, {"people_right": right})
    assert knights_knaves_solved(prompt(ZOEY), wrapped(answer)) == (reward == 2.0)
    assert knights_knaves_solved(prompt(ZOEY), wrapped(answer), partial=True) == right
    within = wrapped(answer).removeprefix("<think>")
    for opening in ("<think>", "<think>\n", "<think>\n\n</think>\n\n<answer>", "<answer>"):
        opened = dataclasses.replace(prompt(ZOEY), opened=opening)
        said = opening + (within if opening.endswith(("<think>", "\n")) else f"{answer}</answer>")
        assert knights_knaves(opened, said) == score, opening
    assert knights_knaves(prompt(ZOEY), within).reward == -2.0


@pytest.mark.parametrize(
    ("response", "form", "total"),
    [
        (wrapped(RIGHT), 1, 3.0),
        (wrapped(RIGHT.replace("knave", "knight")), 1, -0.5),
        (wrapped("none"), 1, -1.0),
        (wrapped(""), 1, -1.0),
        (f"well: {wrapped(RIGHT)} that's it", 1, 3.0),
        (f"<think></think>, so <answer>{RIGHT}</answer>", 1, 3.0),
        (f"<answer>{RIGHT}</answer>", -1, -3.0),
        (f"<think>hm</think>{RIGHT}", -1, -3.0),
        (f"<think>hm<answer>{RIGHT}</answer></think>", -1, -3.0),
        (f"<answer>{RIGHT}</answer><think>hm</think>", -1, -3.0),
        (f"<think>{wrapped(RIGHT)}", -1, -3.0),
        (f"{wrapped(RIGHT)}<answer>{RIGHT}</answer>", -1, -3.0),
        (RIGHT, -1, -3.0),
        ("", -1, -3.0),
    ],
)
def test_logic_rl_is_the_sum_of_two_rules(response: str, form: int, total: float) -> None:
    assert logic_rl_format(prompt(ZOEY), response) == form
    assert form + knights_knaves(prompt(ZOEY), response).reward == total


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (ZOEY, "?"),
        ({"solution_text_format": RIGHT}, "?"),
        ({}, RIGHT),
        ({"names": ["Zoey", "Bob"]}, RIGHT),
        ({"solution": "Zoey is a knight, and Bob is a knave."}, RIGHT),
        ({}, "Zoey is a knight\n\nBob is a knave."),
    ],
)
def test_the_solution_may_stand_in_columns_or_in_text(row: dict[str, Any], answer: str) -> None:
    knights_knaves_gold(prompt(row, answer))
    assert knights_knaves(prompt(row, answer), wrapped(RIGHT)) == Score(2.0, {"people_right": 1.0})
    assert knights_knaves(prompt(row, answer), wrapped(RIGHT.replace("knave", "knight"))).reward == -1.5


@pytest.mark.parametrize(
    ("row", "answer", "names"),
    [
        ({}, "", "columns names and solution"),
        ({}, "72", "columns names and solution.*'72'"),
        ({}, "Zoey is a knight\nand Bob?", "columns names"),
        ({}, "Zoey is a knight\nZoey is a knave", "columns names"),
        ({"names": ["Zoey"], "solution": [True, False]}, RIGHT, "as many"),
        ({"names": ["Bob", "Bob"], "solution": [True, False]}, RIGHT, "different names"),
        ({"names": "Zoey", "solution": [True, False]}, RIGHT, "list of different names"),
        ({"names": [], "solution": []}, RIGHT, "list of different names"),
        ({"names": ["Zoey", "Bob"], "solution": [1, 0]}, RIGHT, "true .knight."),
        ({"names": ["Zoey", "Bob"], "solution": ["True", "False"]}, RIGHT, "true .knight."),
    ],
)
def test_a_solution_that_cannot_be_read_is_unparseable(row: dict[str, Any], answer: str, names: str) -> None:
    with pytest.raises(UnparseableGold, match=f"test:7.*{names}"):
        knights_knaves_gold(prompt(row, answer))
    with pytest.raises(UnparseableGold):
        knights_knaves(prompt(row, answer), wrapped(RIGHT))


FORMATS = [
    # response, verdict; after a prompt that opens <think>, the same without it
    ("<think>a</think><answer>b</answer>", 1),
    ("  <think>a\n</think>\n\n<answer>b</answer>\n", 1),
    ("<think>a</think><answer>a < b > c</answer>", 1),
    ("<think></think><answer>b</answer>", 0),
    ("<think>a</think><answer> </answer>", 0),
    ("<think>a</think> so <answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer>.", 0),
    ("<think>a</think><answer>b", 0),
    ("<think>a<answer>b</answer>", 0),
    ("<think>a</think>", 0),
    ("<think>a</think><answer>b</answer><answer>b</answer>", 0),
    ("<think>a</think></think><answer>b</answer>", 0),
    ("<think>a<think></think><answer>b</answer>", 0),
    ("<think>a<answer>b</answer></think>", 0),
    ("<think>a</answer><answer>b</think>", 0),
    ("<think>a</think><Answer>b</Answer>", 0),
    ("<think>", 0),
]


@pytest.mark.parametrize(
    ("opening", "own", "right"),
    [
        ("<think>\n", "a</think><answer>b</answer>", 1),
        ("<think>\na", "</think><answer>b</answer>", 1),
        ("<think>\n", "</think><answer>b</answer>", 0),
        ("<think>\n\n</think>\n\n", "<answer>b</answer>", 1),
        ("<think>\n\n</think>\n\n", "<think>a</think><answer>b</answer>", 0),
        ("</think>", "<answer>b</answer>", 1),
        ("<think>a</think><answer>", "b</answer>", 1),
        ("<answer>", "b</answer>", 1),
        ("<answer>", "</answer>", 0),
        ("<answer>", "b", 0),
        ("\\boxed{", "4}", 0),
    ],
)
def test_what_a_prompt_has_opened_counts_as_the_responses_own(opening: str, own: str, right: int) -> None:
    opened = dataclasses.replace(prompt({}), opened=opening)
    assert think_answer(opened, opening + own) == right
    # Which does not mind an empty thought or answer, nor what stands around the tags.
    assert logic_rl_format(opened, opening + own) >= 2 * right - 1


@pytest.mark.parametrize(("response", "right"), FORMATS)
def test_format(response: str, right: int) -> None:
    assert think_answer(prompt({}), response) == right
    opened = dataclasses.replace(prompt({}), opened="<think>\n")
    assert think_answer(opened, "<think>\n" + response.strip().removeprefix("<think>")) == right
    assert think_answer(prompt({}), response.strip().removeprefix("<think>")) == 0
    assert think_answer(prompt({}), f"so {response}") == 0
    assert think_answer(opened, f"<think>\n{response}") == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 3 </answer>", "3"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),
        ("<answer>1</answer>2</answer>", "1"),
        ("</answer><answer>", None),
        ("3", None),
        ("", None),
    ],
)
def test_last_answer(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer
