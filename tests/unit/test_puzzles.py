"""Generated knights and knaves: one solution each, found a second way; right working; held-out ones kept out."""

from __future__ import annotations

import itertools
import re

import pytest

from rewards.format import think_answer
from rewards.knights_knaves import knights_knaves as score
from rewards.knights_knaves import knights_knaves_gold, knights_knaves_solved, logic_rl_format
from rlcore.data.generate.knights_knaves import holds, key, knights_knaves, solve
from rlcore.data.sources import load_rows
from rlcore.errors import DataError
from rlcore.records import Prompt

_ATOM = r"([A-Z]\w+) is (not )?a (knight|knave)"
_PLAIN = _ATOM.replace("(", "(?:")
_CLAIM = rf"(?:[Ii]f )?{_PLAIN}(?: (?:and|or|if and only if|then) {_PLAIN})?"


def says(text: str, roles: dict[str, bool]) -> bool:
    """Whether a claim in words holds, read from the words alone."""

    def atom(words: str) -> bool:
        found = re.fullmatch(_ATOM, words)
        assert found, words
        return (roles[found[1]] == (found[3] == "knight")) != bool(found[2])

    if found := re.fullmatch(r"[Ii]f (.+) then (.+)", text):
        return atom(found[2]) if atom(found[1]) else True
    for word, joined in (
        (" if and only if ", lambda a, b: a is b),
        (" or ", lambda a, b: (a, b) != (False, False)),
        (" and ", lambda a, b: (a, b) == (True, True)),
    ):
        left, found, right = text.partition(word)
        if found:
            return joined(atom(left), atom(right))
    return atom(text)


def claims(row: dict) -> dict[str, str]:
    """Who says what, in words, in the order of the people: what the question is besides names who says it."""
    told = row["question"].partition("inhabitants: ")[2].partition(". ")[2] or row["question"]
    found = re.findall(_CLAIM, told)
    assert re.findall("|".join(row["names"]), re.sub(_CLAIM, "", told)) == row["names"]
    assert len(found) == row["people"]
    return dict(zip(row["names"], found, strict=True))


def valued(text: str, roles: dict[str, bool]) -> str:
    """The claim with (true) or (false) after every "Owen is a knave" in it."""
    return re.sub(_PLAIN, lambda found: f"{found[0]} ({str(says(found[0], roles)).lower()})", text)


def solutions(said: dict[str, str]) -> list[dict[str, bool]]:
    cases = (dict(zip(said, case, strict=True)) for case in itertools.product((False, True), repeat=len(said)))
    return [roles for roles in cases if all(says(text, roles) is roles[name] for name, text in said.items())]


@pytest.mark.parametrize("wording", ["published", "short"])
@pytest.mark.parametrize("people", ["2", "3", "4-6"])
def test_the_words_have_exactly_the_solution_of_the_row(people: str, wording: str) -> None:
    for row in knights_knaves(size=25, seed=5, people=people, wording=wording):
        said = claims(row)
        assert list(said) == row["names"] and len(said) == row["people"] == len(row["solution"])
        assert solutions(said) == [dict(zip(row["names"], row["solution"], strict=True))]


def test_all_kinds_of_statements_and_numbers_of_people_appear() -> None:
    rows = knights_knaves(size=300, people="2-4")
    text = " ".join(row["question"] for row in rows)
    assert all(word in text for word in (" and ", " or ", "If ", " if and only if ", " is not a ", " is a knave"))
    assert {row["people"] for row in rows} == {2, 3, 4}
    assert {knight for row in rows for knight in row["solution"]} == {True, False}


def test_solve_finds_none_one_and_several() -> None:
    assert solve([("knave", 0)]) == []
    assert solve([("knight", 0)]) == [(True,), (False,)]
    assert solve([("knave", 1), ("and", ("knave", 0), ("knave", 1))]) == [(True, False)]


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (("knight", 0), (True, True, False, False)),
        (("knave", 1), (False, True, False, True)),
        (("not", ("knight", 0)), (False, False, True, True)),
        (("and", ("knight", 0), ("knight", 1)), (True, False, False, False)),
        (("or", ("knight", 0), ("knight", 1)), (True, True, True, False)),
        (("if", ("knight", 0), ("knight", 1)), (True, False, True, True)),
        (("iff", ("knight", 0), ("knight", 1)), (True, False, False, True)),
    ],
)
def test_truth_table(statement: tuple, values: tuple[bool, ...]) -> None:
    knights = [0b0011, 0b0101]  # of the cases both, the first, the second, nobody; the first case is the lowest bit
    assert tuple(bool(holds(statement, knights) >> case & 1) for case in range(4)) == values


def test_every_line_of_the_working_is_right_and_the_last_fits() -> None:
    for row in knights_knaves(size=60, seed=2, people="2-3", wording="short"):
        said = claims(row)
        thought = row["response"].removeprefix("<think>").partition("</think>")[0].split("\n")
        tried = []
        for line in thought:
            parts = line.split("; ")
            people, rest = [part.split() for part in parts[: row["people"]]], "; ".join(parts[row["people"] :])
            roles = {name: role == "knight" for name, role in people}
            checks = re.findall(r"(\w+) (knight|knave); (.*?): (true|false), (ok|no)\.", rest)
            for name, role, text, truth, fits in checks:
                assert roles[name] is (role == "knight") and text == valued(said[name], roles)
                assert (truth == "true") is says(said[name], roles)
                assert (fits == "ok") is ((truth == "true") is roles[name])
            assert [name for name, *_ in checks] == row["names"][: len(checks)]
            assert all(fits == "ok" for *_, fits in checks[:-1])
            tried.append((roles, len(checks), checks[-1][-1]))
        assert [fits for *_, fits in tried] == ["no"] * (len(tried) - 1) + ["ok"]
        assert list(tried[-1][0].values()) == row["solution"] and tried[-1][1] == row["people"]
        assert len({str(roles) for roles, *_ in tried}) == len(tried)


@pytest.mark.parametrize("worked", [0.0, 1.0])
def test_the_responses_get_the_whole_reward(worked: float) -> None:
    for i, row in enumerate(knights_knaves(size=20, people="2-4", worked=worked)):
        prompt = Prompt(f"row:{i}", [1], row["answer"], row)
        knights_knaves_gold(prompt)
        assert score(prompt, row["response"]).reward == 2.0
        assert knights_knaves_solved(prompt, row["response"]) == 1.0
        assert logic_rl_format(prompt, row["response"]) == think_answer(prompt, row["response"]) == 1.0
        flipped = row["response"].replace("knight", "KN").replace("knave", "knight").replace("KN", "knave")
        assert score(prompt, flipped).reward == -1.5


def test_worked_is_a_share_of_the_rows_and_changes_no_puzzle() -> None:
    bare, some, full = (knights_knaves(size=300, worked=w, people="2") for w in (0.0, 0.3, 1.0))
    assert [r["question"] for r in bare] == [r["question"] for r in some] == [r["question"] for r in full]
    assert not any(", " in r["response"] for r in bare)
    assert 60 < sum(", " in r["response"] for r in some) < 120
    assert all(", " in r["response"] for r in full)


def test_a_puzzle_with_its_people_in_another_order_is_the_same() -> None:
    statements = [("knave", 1), ("and", ("knight", 0), ("knave", 2)), ("if", ("knight", 2), ("knave", 0))]
    moved = [("if", ("knight", 0), ("knave", 1)), ("knave", 2), ("and", ("knave", 0), ("knight", 1))]
    assert key(statements) == key(moved)
    other = [("if", ("knave", 1), ("knight", 0)), ("knave", 2), ("and", ("knave", 0), ("knight", 1))]
    assert key(statements) != key(other)
    assert key([("not", ("knight", 1)), ("knave", 0)]) == key([("knave", 1), ("knave", 0)])


def up_to_names_and_order(row: dict) -> str:
    """The puzzle a second way: the least of all ways to call the people A, B, C."""
    said, ways = claims(row), []
    for order in itertools.permutations(said):
        lines = [f"{name}: {text}" for name, text in said.items()]
        for name, letter in zip(order, "ABC", strict=False):
            lines = [line.replace(name, letter) for line in lines]
        ways.append("; ".join(sorted(lines)))
    return min(ways)


def test_held_out_puzzles_are_never_trained_on() -> None:
    train = {up_to_names_and_order(r) for r in knights_knaves(size=1500, people="2-3", wording="short")}
    eval_rows = knights_knaves(size=100, people="3", split="eval", wording="short")
    assert not train & {up_to_names_and_order(r) for r in eval_rows}
    assert len({r["question"] for r in eval_rows}) == 100


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    assert knights_knaves(size=30, seed=1) == knights_knaves(size=30, seed=1)
    assert knights_knaves(size=30, seed=1) != knights_knaves(size=30, seed=2)
    assert knights_knaves(size=10, seed=1) == knights_knaves(size=30, seed=1)[:10]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("people=1", "people=1, must be a number from 2 to 8"),
        ("people=3-2", "people=3-2"),
        ("people=2-9", "people=2-9"),
        ("people=some", "people=some"),
        ("wording=long", "wording=long, must be one of published, short"),
        ("worked=1.5", "between 0 and 1"),
        ("split=test", "must be one of train, eval"),
        ("size=0", "must be at least 1"),
        ("persons=3", "no argument persons"),
    ],
)
def test_wrong_arguments_are_named(query: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_rows(f"generate:knights_knaves?{query}")
