"""Exact match and multiple choice: golden verdicts, and gold answers that cannot be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rewards.exact import exact_match, exact_match_gold
from rewards.multiple_choice import multiple_choice, multiple_choice_gold
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt


def prompt(answer: str, row: dict[str, object] | None = None) -> Prompt:
    return Prompt(id="test:0", tokens=[1], answer=answer, row=row or {})


@pytest.mark.parametrize(
    ("response", "options", "verdict"),
    [
        ("Paris", {}, 1),
        (" paris\n", {}, 1),
        ("New  York", {}, 0),
        ("It is Paris", {}, 0),
        ("It is <answer> Paris </answer>.", {}, 1),
        ("<answer>London</answer> <answer>Paris</answer>", {}, 1),
        ("<answer>Paris</answer> <answer>London</answer>", {}, 0),
        ("Paris", {"case_sensitive": True}, 1),
        ("paris", {"case_sensitive": True}, 0),
        ("I think\nParis\n", {}, 0),
        ("I think\nParis\n", {"last_line": True}, 1),
        ("Paris\nor not", {"last_line": True}, 0),
        ("", {}, 0),
        ("<think>..</think>Paris", {}, 1),
        ("<think>London</think>\n<answer>Paris</answer>", {}, 1),
        ("<think>one</think> two</think>\nI think\nParis", {"last_line": True}, 1),
        ("<think><answer>Paris</answer></think>London", {}, 0),
        ("<think><answer>Paris</answer></think>", {}, 0),
        ("<think>x\nParis</think>", {"last_line": True}, 0),
    ],
)
def test_exact_match(response: str, options: dict[str, bool], verdict: int) -> None:
    assert exact_match(prompt("Paris"), response, **options) == verdict


def test_exact_match_of_characters_written_in_two_ways() -> None:
    assert exact_match(prompt("caf\u00e9"), "cafe\u0301") == 1.0
    assert exact_match(prompt("New York"), "new\n  york") == 1.0


CITIES = ["Lyon", "Paris", "Nice", "Brest"]
CITIES_ROW: dict[str, object] = {"choices": CITIES}
B = [
    r"\boxed{B}",
    r"\boxed{\text{(B)}}",
    r"\boxed{A} no \boxed{b}",
    r"\boxed{B. Paris}",
    r"\boxed{Paris}",
    "<answer>B</answer>",
    "<answer> (b) </answer>",
    "<answer>Paris</answer> but A is near",
    "The answer is (B).",
    "The answer is B",
    "The answer is **B**, as everyone knows",
    "the correct answer is: B",
    "the correct answer is option B.",
    "The answer is B because A and C are wrong",
    "The answer is Paris.",
    "The answer is A. Wait, the answer is B.",
    "**Answer: B**",
    "Answer: B) Paris",
    "I think\nB",
    "I think\n**B**",
    "I think\n(B).",
    "I think\nB. Paris",
    "I think it is (B).",
    "So it is **B**",
    "The answer is $B$.",
    r"The answer is \(B\)",
    r"The answer is \(B\).",
    "Option B is correct.",
    "So B is correct.",
    "**Option (B) is the right choice.**",
    "<answer>Answer: B</answer>",
    "<answer>The correct answer is B.</answer>",
    "I choose B.",
    "I'd go with option B.",
    "I choose A. On second thoughts, I choose **B**",
    "So the answer must be B",
    "The answer should be (B).",
    "<answer>option B</answer>",
    "<answer>Option (B)</answer>",
    r"\boxed{\text{Option B}}",
    "A is wrong, so the answer is B. C is also wrong.",
    "The answer is B. A, C and D are incorrect.",
    "The answer is B and C is wrong.",
    r"<think>so \boxed{A}</think>The answer is B.",
    'The answer is "B".',
    '{"answer": "B"}',
    '{"answer": "B", "why": "A is bad"}',
    "Answer: [B]",
    "[B]",
    "The answer would be B.",
    "Answer - B",
    "It must be B",
    "It's B",
    "I think it's B.",
    "The correct choice is therefore B.",
    "Only B is correct.",
    "The answer is <b>B</b>",
]
NOT_B = [
    "It's A or B",
    "I don't think it's B.",
    "I think it's not B.",
    "It must not be B",
    "It can't be B",
    "Is it B?",
    "Only B is incorrect.",
    "Only A and B are correct",
    "[A, B]",
    "Answer: [B, C]",
    "Answer - A, B",
    "Wrong answer - B",
    "The answer would be B or C",
    '{"answer": ["A", "B"]}',
    "",
    r"\boxed{A}",
    r"\boxed{A, B}",
    r"\boxed{B, A}",
    r"\boxed{B/C}",
    r"\boxed{B or C}",
    r"\boxed{not B}",
    r"\boxed{B} \boxed{C}",
    "<answer>A B C D</answer>",
    "<answer>B D</answer>",
    "<answer>B</answer><answer>C</answer>",
    "The answer is A or B",
    "The answer is B or A",
    "The answer is (B) and (C)",
    "Answer: B, C",
    "Answer: BC",
    "The answer is not B",
    "The answer is B. No, the answer is C.",
    "(A) is wrong, (B) is right",
    "B is what I thought first\nbut no",
    "BBBB",
    "The answer is $A$ or $B$",
    "The answer is $B$ or $C$",
    r"The answer is \(B\) or \(C\)",
    r"\boxed{$B$, $C$}",
    "Option B is not correct.",
    "Option C is correct.",
    "B is incorrect.",
    "So B is correct?",
    "Neither A nor B is correct.",
    "A or B is correct.",
    "<answer>Answer: A or B</answer>",
    "<answer>Answer: B or C</answer>",
    "<answer>Answer: B, but C</answer>",
    "<answer>Not the answer: B</answer>",
    "<answer>A. Answer: B</answer>",
    "<answer>Answer: A. Answer: B</answer>",
    "I choose B or C",
    "I choose neither B nor C",
    "I do not choose B.",
    "I would choose a better one",
    "The answer must not be B",
    "<answer>option B or C</answer>",
    "The option B is wrong",
    "The answer is B. C is also right.",
    "The answer is B. B is wrong.",
    "The answer is B or C is wrong",
    r"<think>The answer is B</think>\boxed{A}",
    "<think>The answer is B</think>",
]
# What a response chooses, "" for nothing: the choice at the end of the reasons. A letter before them may be denied.
CHOSEN = [
    ("Therefore, B.", "B"),
    ("Hence, option (C)", "C"),
    ("It's definitely B!", "B"),
    ("So it must clearly be B", ""),
    ("It must be clearly B", "B"),
    ("Both A and B are wrong, hence D.", "D"),
    ("Neither A nor B works, so C!", "C"),
    ("A, B and C are all wrong; therefore, D.", "D"),
    ("**Both A and B are wrong, hence D.**", "D"),
    ("It is cold. Thus **D**.", "D"),
    (f"It is cold{' and wet' * 100}, hence D.", "D"),
    ("Therefore, B or C.", ""),
    ("Therefore, not B.", ""),
    ("Therefore, B?", ""),
    ("Therefore, E.", ""),
    ("Therefore B is what I said first.", ""),
    ("It's definitely not B!", ""),
    ("It's definitely B or C!", ""),
    ("A is right, hence D.", "D"),
    ("It is A, so D.", "D"),
    ("A or B, hence D.", "D"),
    ("It's A or B, so B.", "B"),
    ("It's A/B, hence B.", "B"),
    ("A and B are wrong, hence C or D.", ""),
    ("It is far, so A city is near.", ""),
    ("**C**\n\nExplanation: because A is...", ""),
    ("C\nExplanation: x", ""),
    ("**C**\n\nExplanation: it is near.", ""),
    ("C\nC is right, since it is near.", ""),
    ("\n C \n\nBecause.", ""),
    ("(C)\nExplanation: x", ""),
    ("**(C)**\nx", ""),
    ("C.\nx", ""),
    ("C)\nx", ""),
    ("Option C\nx", ""),
    ("$C$\nx", ""),
    ("Answer: C\nExplanation: x", "C"),
    ("Answer: C)\nExplanation: x", "C"),
    ("<think>A\nx</think>C\nx", ""),
    ("C\nA is wrong because it is far. B and D are incorrect.", ""),
    ("C\nC is right, since A is far.", ""),
    ("C\nOption A is a town, option B is a city.", ""),
    ("C\n(A) is far.\n(B) is near.\nx", ""),  # whoever names others may mean them
    ("C or D\nExplanation", ""),
    ("C, D\nExplanation", ""),
    ("CD\nExplanation", ""),
    ("C?\nExplanation", ""),
    ("not C\nExplanation", ""),
    ("C is good\nExplanation", ""),
    ("E\nExplanation", ""),
    ("a\nx", ""),
    ("A:\nI am a speaker.", ""),
    ("C\nD", "D"),
    ("C\nD\nExplanation", ""),
    ("C\nor D\nExplanation", ""),
    ("C\n\nor D, maybe.", ""),
    ("C\n/ D\nExplanation", ""),
    ("A.\nB.\nC.\n", "C"),
    ("A.\nB.\nC.\nD is the last.", ""),
    ("A\nB\nC\nD\nExplanation", ""),
    ("A\n(B) (C) (D) x", ""),
    ("A\nB, C, D\nx", ""),
    ("A\nx\nSo the answer is B.", "B"),
    ("A\nx\nSo the answer is B or C.", ""),
    ("A\nThe answer is not A.", ""),
    ("A\nx\nHence, B.", "B"),
    ("A\nHence B.\nx", ""),
    ("A\nIt is far, hence B because it is near.\nx", ""),
    ("A\nHm. It's B. Sorry.", ""),
    ("A\nNo, B.\nx", ""),
    ("A\nActually, B is better.", ""),
    ("A\nB is also right.", ""),
    ("A\nI'd say B, as it is near.", ""),
    ("A\nB would be the best answer, I think.", ""),
    ("A\nI think it's A or B", ""),
    ("A\nIt could be A and B", ""),
    ("A\nA and B both fit", ""),
    ("A\nA, B\nx", ""),
    ("A\nEither A or B would do.", ""),
    ("A\nI mean A/B", ""),
    ("A\nB fits better.", ""),
    ("A\nLet me see: **A**, **B**", ""),
    ("C\n(A) and (B) are wrong.", ""),
    ("A\nA B\nx", ""),
    ("A\nHm, no. B it is, then.", ""),
    ("A\nA and B are wrong.", ""),
    ("A\nParis\nx", ""),
    ("A\n" + "x " * 6000, ""),  # only the end of so long a response is read
    ("Yes.\nA\nx", ""),
    ("So A", ""),
    ("So A.", "A"),
    ("It is far, hence (A)", "A"),
    ("It rained, so A", ""),
    ("I do not know what the question asks, so I", ""),
    ("B\nB is wrong.", ""),
    ("B\nNo, that is wrong.", ""),
]


@pytest.mark.parametrize(("response", "letter"), CHOSEN)
def test_what_a_response_chooses(response: str, letter: str) -> None:
    rewards = {gold: multiple_choice(prompt(gold, CITIES_ROW), response) for gold in "ABCD"}
    assert rewards == {gold: float(gold == letter) for gold in "ABCD"}


A = ["The answer is A.", "The answer is A because of it", r"\boxed{A}", "A", "a)", "A.", "The answer is a", "(A)"]
NOT_A = ["The answer is A city in France", "The answer is a city", "A city in France", "\\boxed{A city}", "a b"]


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        *[("B", r, 1) for r in B],
        *[("B", r, 0) for r in NOT_B],
        *[("A", r, 1) for r in A],
        *[("A", r, 0) for r in NOT_A],
    ],
)
def test_multiple_choice(gold: str, response: str, verdict: int) -> None:
    assert multiple_choice(prompt(gold, CITIES_ROW), response) == verdict


@pytest.mark.parametrize(
    ("gold", "row", "letter"),
    [
        ("B", {}, "B"),
        ("b", {}, "B"),
        ("(B)", {}, "B"),
        ("B.", {}, "B"),
        ("B. Paris", {}, "B"),
        ("J", {}, "J"),
        ("Paris", {"choices": CITIES}, "B"),
        ("paris.", {"choices": CITIES}, "B"),
        ("1", {"choices": CITIES, "answer": 1}, "B"),
        ("1", {"choices": CITIES}, "B"),
        ("1", {"choices": ["1", "2", "3"]}, "A"),  # text: what a choice says
        ("1", {"choices": ["1", "2", "3"], "answer": 1}, "B"),  # a number: an index
        ("3", {"choices": {"text": CITIES, "label": ["1", "2", "3", "4"]}}, "C"),  # ARC
        ("C", {"choices": {"text": CITIES, "label": ["A", "B", "C", "D"]}}, "C"),
        ("E", {"choices": CITIES}, None),
        ("4", {"choices": CITIES}, None),
        ("Rome", {"choices": CITIES}, None),
        ("A", {"choices": "Paris, London"}, None),
        ("A", {"choices": CITIES * 3}, None),
    ],
)
def test_gold_answers_of_multiple_choice(gold: str, row: dict[str, object], letter: str | None) -> None:
    if letter is None:
        with pytest.raises(UnparseableGold, match="test:0"):
            multiple_choice(prompt(gold, row), r"\boxed{A}")
        return
    for other in "ABCJ":
        assert multiple_choice(prompt(gold, row), f"\\boxed{{{other}}}") == (other == letter)


def test_choices_that_are_amounts_of_money() -> None:
    row: dict[str, object] = {"choices": ["$4", "$5", r"\$6"]}
    for said in ("$5", r"\$5", "$5$"):
        assert multiple_choice(prompt("B", row), f"The answer is {said}.") == 1.0
    assert multiple_choice(prompt("B", row), "The answer is $6.") == 0.0


def test_a_letter_beyond_the_choices_is_none() -> None:
    assert multiple_choice(prompt("D", CITIES_ROW), r"\boxed{D}") == 1.0
    assert multiple_choice(prompt("A", CITIES_ROW), r"\boxed{E}") == 0.0


@pytest.mark.parametrize(
    ("check", "gold", "says"),
    [
        (exact_match_gold, " \n", "empty"),
        (multiple_choice_gold, "", "not a letter"),
        (multiple_choice_gold, "K", "not a letter"),
        (multiple_choice_gold, "Paris", "no column choices"),
        (multiple_choice_gold, "3", "no column choices"),
    ],
)
def test_gold_answers_that_cannot_be_read(check: Callable[[Prompt], None], gold: str, says: str) -> None:
    with pytest.raises(UnparseableGold, match=f"prompt test:0: .*{says}"):
        check(prompt(gold))


@pytest.mark.parametrize("rule", [exact_match, multiple_choice])
def test_a_rule_says_the_same_of_its_gold_answer_as_the_check(rule: Callable[[Prompt, str], float]) -> None:
    with pytest.raises(UnparseableGold):
        rule(prompt(""), "")


def test_gold_answers_that_can_be_read() -> None:
    exact_match_gold(prompt("x"))
    multiple_choice_gold(prompt("B"))
    multiple_choice_gold(prompt("Paris", CITIES_ROW))
