"""Knights and knaves, scored as in Logic-RL (arXiv 2502.14768, github.com/Unakar/Logic-RL).

Its reward is the sum of `logic_rl_format` (+1, -1) and `knights_knaves` (+2, -1.5, -2): `reward.fns` with both.
"""

from __future__ import annotations

import re

from rewards.format import in_order, last_answer, whole
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt, Score

_ROLE = re.compile(r"knight|knave", re.IGNORECASE)
_SOLUTION_LINE = re.compile(
    r"(?:\(\d+\)\s*)?(?P<name>\S.*?)\s{1,9}is\s{1,9}a\s{1,9}(?P<role>knight|knave)\.?", re.IGNORECASE
)


def knights_knaves(prompt: Prompt, response: str) -> Score:
    """2.0 if the last `<answer>` says rightly of everyone who is what, -1.5 if it says so but not rightly, else -2.0.

    Part `people_right`: share of the people whose role is right, as in arXiv 2410.23123. Tags that the
    prompt ends with count as the response's own. Raises UnparseableGold when the row tells no solution.
    """
    solution = _gold(prompt)
    text = whole(prompt, response)
    answer = (last_answer(text) or "") if in_order(text) else ""
    said = {name: _roles(name, answer) for name in solution}
    right = sum(said[name] == {is_knight} for name, is_knight in solution.items())
    complete = all(said.values()) and len(_ROLE.findall(answer)) == len(solution)
    reward = -2.0 if not complete else 2.0 if right == len(solution) else -1.5
    return Score(reward, {"people_right": right / len(solution)})


def knights_knaves_solved(prompt: Prompt, response: str, *, partial: bool = False) -> float:
    """1.0 where `knights_knaves` gives 2.0, else 0.0: a rule whose mean is an accuracy.

    `partial`: the share of the people whose role is right instead, whoever is left out (arXiv 2410.23123).
    """
    reward, parts = knights_knaves(prompt, response)
    return parts["people_right"] if partial else float(reward == 2.0)


def logic_rl_format(prompt: Prompt, response: str) -> float:
    """1.0 if the four tags appear once each and in order, else -1.0; text outside them is not judged, as published."""
    return 1.0 if in_order(whole(prompt, response)) else -1.0


def knights_knaves_gold(prompt: Prompt) -> None:
    """Raises UnparseableGold unless the row or the answer tells who is what."""
    _gold(prompt)


def _gold(prompt: Prompt) -> dict[str, bool]:
    """Name -> is a knight: of the columns names and solution, else of the lines of solution_text_format or the answer.

    The published rows have all of these.
    """
    row = prompt.row
    if "names" in row and isinstance(row.get("solution"), list):
        return _from_columns(prompt, row["names"], row["solution"])
    text = row.get("solution_text_format", prompt.answer)
    lines = [_SOLUTION_LINE.fullmatch(line.strip()) for line in str(text).splitlines() if line.strip()]
    solution = {found["name"]: found["role"].lower() == "knight" for found in lines if found}
    if not lines or len(solution) < len(lines):
        raise UnparseableGold(
            f"prompt {prompt.id}: knights_knaves needs columns names and solution (true: knight), or an answer with "
            f"lines like '(1) Zoey is a knight', not {str(text)[:80]!r}"
        )
    return solution


def _from_columns(prompt: Prompt, names: object, solution: list[object]) -> dict[str, bool]:
    people = names if isinstance(names, list) else []
    if not people or len(people) != len(solution) or len(set(map(str, people))) < len(people):
        raise UnparseableGold(
            f"prompt {prompt.id}: column names must be a list of different names, as many as in column solution, "
            f"not {repr(names)[:80]} and {repr(solution)[:80]}"
        )
    if not all(isinstance(is_knight, bool) for is_knight in solution):
        raise UnparseableGold(
            f"prompt {prompt.id}: column solution must be a list of true (knight) and false (knave), "
            f"not {repr(solution)[:80]}"
        )
    return {str(name): bool(is_knight) for name, is_knight in zip(people, solution, strict=True)}


def _roles(name: str, answer: str) -> set[bool]:
    """What the answer says of one person: {True} a knight, {False} a knave, both, or nothing."""
    said = re.findall(rf"(?<!\w){re.escape(name)}\s+is\s+a\s+(knight|knave)\b", answer, re.IGNORECASE)
    return {role.lower() == "knight" for role in said}
