"""The mathematical rules: golden verdicts, the same in every thread, and gold answers that cannot be read."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable

import math_verify
import pytest
import sympy
from sympy.core.sympify import SympifyError

from rewards import GOLD
from rewards.gsm8k import gsm8k, gsm8k_gold
from rewards.math.boxed import boxed_math, boxed_math_gold, boxed_math_strict, math
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.records import Prompt, Score
from tests.unit.math_verdicts import HARD, VERDICTS


def prompt(answer: str) -> Prompt:
    return Prompt(id="test:0", tokens=[1], answer=answer)


def test_boxed_math() -> None:
    wrong = []
    for gold, answer, verdict in VERDICTS:
        if boxed_math(prompt(gold), f"First \\boxed{{998}}, no: \\boxed{{{answer}}}.").reward != verdict:
            wrong.append((gold, answer, verdict))
    assert wrong == []


@pytest.mark.parametrize(
    "form",
    [
        "{}",  # DeepMath (arXiv 2504.11456)
        "${}$",
        "We add up. Hence the answer is $\\boxed{{{}}}$.",  # MATH: a worked solution
        "48/2 = <<48/2=24>>24 clips.\n#### {}",  # GSM8K
    ],
)
def test_gold_answers_of_each_data_set(form: str) -> None:
    for gold, answer, verdict in [
        ("72", "72", 1),
        ("72", "24", 0),
        ("1,234", "1234", 1),
        ("-7", "-7", 1),
        (r"\dfrac{1}{2}", "0.5", 1),
        (r"\infty", r"\infty", 1),
        ("Yes", "yes", 1),
        ("(1, 2)", "(2, 1)", 0),
    ]:
        assert boxed_math(prompt(form.format(gold)), f"\\boxed{{{answer}}}").reward == verdict, (gold, answer)


WHERE = [
    # The last box, right or wrong.
    ("4", r"\boxed{4} so the answer is 5", 1),
    ("5", r"\boxed{4} so the answer is 5", 0),
    # Tags.
    ("5", "<answer>5</answer>", 1),
    ("5", "<answer> $5$ </answer> or 6", 1),
    ("5", "<answer>x = 5</answer>", 1),
    ("1/2", r"<answer>\frac{1}{2}</answer>", 1),
    ("2", r"<answer>\frac{1}{2}</answer>", 0),
    ("5", "<answer>4</answer> the answer is 5", 0),
    # "answer is".
    ("72", "The answer is 72.", 1),
    ("72", "The answer is $72$.", 1),
    ("72", "The answer is: **72**", 1),
    ("72", "**Answer:** 72 clips", 1),
    ("72", "The answer is 36 + 36 = 72.", 1),
    ("72", "The answer is $36 + 36 = 72$", 1),
    ("72", "The answer is 71. I checked it 72 times", 0),
    ("5", "the answer is 4. Wait, the answer is 5.", 1),
    ("4", "the answer is 4. Wait, the answer is 5.", 0),
    ("12", "The answer is 12 cm because x = 4.", 1),
    ("12", "The answer is 12, because 4", 1),
    ("1.5", "The answer is 1.5.", 1),
    ("10", r"The answer is \$10.", 1),
    ("10", "The answer is $10.", 1),
    ("10", "The answer is $10 per day, or $70 a week", 0),
    ("3/4", r"the answer is \frac{3}{4}", 1),
    ("east", "the answer is east.", 1),
    (r"\text{Evelyn}", "Answer: Evelyn", 1),
    # The last line's "=".
    ("72", "So 48+24 = 72.", 1),
    ("3", "x = 3", 1),
    ("7", "x = 3\nso 7", 1),
    ("72", "36 + 36 = 72 as I said", 1),
    # The last mathematics.
    ("x+1", "Thus $y = x+1$.", 1),
    ("1/2", r"Thus $x = \frac{1}{2}$", 1),
    (r"\pi", r"the area is \(\pi\)", 1),
    (r"2\pi", r"the area is \[2\pi\]", 1),
    ("5", "so $x$ is 5.", 1),
    # Delimiters, asides and full-width digits.
    ("18", "so\n\\[ x = 18 \\]", 1),
    ("15", r"\( x = 15 \)", 1),
    ("15", r"Therefore \(x = 15\).", 1),
    (r"\sqrt{2}", r"so \[x = \sqrt{2}\]", 1),
    (r"\sqrt{2}", "$$\n\\sqrt{2}\n$$", 1),
    (r"\sqrt{2}", "The answer is:\n\\[\n\\sqrt{2}\n\\]", 1),
    (r"\sqrt{2}", "The answer is $$\n\\sqrt{2}\n$$\nas 3 shows", 1),
    ("18", "x = 18 \\] or 19", 0),
    ("15", "$15 = x$", 1),
    ("15", "$3 + 15 = x$", 0),
    ("x", "so $y = x$", 1),
    ("18", "The answer is $18 per day.", 1),
    ("18", "The answer is $18 million.", 0),
    ("18", "The answer is $18 per day or $19 per day.", 0),
    (r"18\text{ cents}", "The answer is $18 per day.", 0),
    ("18", "The answer is 18 (see above).", 1),
    ("18", "The answer is 18 (or 19).", 0),
    ("18", "The answer is 18 (as I said, or twice that).", 0),
    ("18", "The answer is 18 (base 9).", 0),
    (r"18\text{ m}", "The answer is 18 (cm).", 0),
    ("15", "The answer is 15 (fifteen).", 1),
    ("15", "The answer is 15 (sixteen).", 0),
    ("15", "The answer is approximately 15.", 1),
    ("15", "The answer is indeed 15.", 1),
    ("15", "The answer is not 15.", 0),
    ("15", "The answer is just under 15.", 0),
    ("72", "so it is \uff17\uff12", 1),
    ("72", "The answer is \uff17\uff12\u3002", 1),
    ("x2", "The answer is x\xb2", 0),
    # The last number.
    ("72", "so it is 72", 1),
    ("1234", "It costs $5 and $1,234 in all", 1),
    ("50%", "that is 50%", 1),
    ("0.5", "that is 50%", 1),
    ("-7", "so it is -7", 1),
    ("2", "so it is 9-7", 1),
    ("7", "so it is 9-7", 0),
    ("3/4", r"so we get \frac{3}{4}.", 1),
    ("4", r"so we get \frac{3}{4}.", 0),
    ("3/4", "It is 3/4 of it", 1),
    ("5", r"\boxed{5", 1),
    ("5", "none", 0),
    ("5", "", 0),
    ("5", "5" + " and so on" * 2000, 0),
]


def test_math() -> None:
    wrong = []
    for gold, response, verdict in WHERE:
        score = math(prompt(gold), response)
        if score != (verdict, {"boxed": float("\\boxed{4}" in response)}):
            wrong.append((gold, response[:200], verdict, score))
    assert wrong == []


STATED = [
    # Thoughts: only what follows the last one counts; in one that never ends, a box or tags.
    ("72", r"<think>so \boxed{71}</think><answer>72</answer>", 1),
    ("71", r"<think>so \boxed{71}</think><answer>72</answer>", 0),
    ("72", "<think>the answer is 71</think>72", 1),
    ("72", r"<think>\boxed{72}</think>", 0),
    ("72", r"<think>\boxed{72}", 1),
    ("72", "<think>so 72", 0),
    ("72", "<think>a <answer>72</answer>", 1),
    ("72", "so 71</think> so 72", 1),
    ("72", r"<think>\boxed{71}</think>so \boxed{72}", 1),
    # GSM8K's mark.
    ("60", "She gets $12 x 5 =$<<12*5=60>>60.\n#### 60", 1),
    ("60", "#### 60\n", 1),
    ("12", "#### 12 or 13", 0),
    ("12", "#### half of $12$", 0),
    ("1234", "#### $1,234", 1),
    ("12", "#### The answer is 12", 1),
    ("12", "#### not 12", 0),
    # Tags.
    ("3", "<answer>It takes 2/2=1 bolt of white\nSo the total is 2+1=3 bolts of fabric</answer>", 1),
    ("1", "<answer>It takes 2/2=1 bolt of white\nSo the total is 2+1=3 bolts of fabric</answer>", 0),
    ("20", "<answer>He got 80-60 = 20 votes.</answer>", 1),
    ("13", "<answer>12 boys\n13 girls</answer>", 0),
    ("12", "<answer>twice 12</answer>", 0),
    ("72", "<answer>The answer is 72</answer>", 1),
    ("12", "<answer>not $12$</answer>", 0),
    ("12", "<answer>$12$ or $13$</answer>", 0),
    ("13", "<answer>$12$ or $13$</answer>", 0),
    ("13", "<answer>12\n13</answer>", 0),
    ("72", "<answer>The area is $72$.</answer>", 1),
    ("72", "<answer>\nThe area is\n\\[ 72 \\]\n</answer>", 1),
    ("72", "<answer>She sold $48+24=72$ clips</answer>", 1),
    ("72", "<answer>We have $3+4=7$, so the total is $72$.</answer>", 1),
    ("12", "<answer>a factor of $12$</answer>", 0),
    ("12", "<answer>72; 12</answer>", 0),
    # All of what is said after "answer is", with or without dollars.
    ("12", "The answer is not $12$.", 0),
    ("12", "The answer is definitely not $12$, but 13.", 0),
    ("13", "The answer is definitely not $12$, but 13.", 0),
    ("12", "The answer is half of $12$.", 0),
    ("12", "The answer is more than $12$.", 0),
    ("12", "The answer is $12$ or $13$.", 0),
    ("13", "The answer is $12$ or $13$.", 0),
    ("12,13", "The answer is $12$ or $13$.", 1),
    ("12", "The answer is wrong: $12$", 0),
    ("12", "Is the answer $12$? No, it is 13.", 0),
    ("13", "Is the answer $12$? No, it is 13.", 1),
    ("72", "The answer is 72 km/h.", 1),
    ("72", "The answer is $72$ km/h.", 1),
    (r"72\text{ km/h}", "The answer is 72 km/h.", 1),
    (r"72\text{ km/h}", "The answer is 72 m/s.", 0),
    ("12", "The answer is 12 (twelve) cookies.", 1),
    ("12", "The answer is 12 (thirteen) cookies.", 0),
    ("12", "The answer is that she has 12 cookies.", 1),
    ("12", "The answer is that she has $12$ cookies.", 1),
    ("12", "The answer is that she does not have 12 cookies.", 0),
    ("12", "The answer is that she has more than 12 cookies.", 0),
    ("12", "The answer is that she has half of 12 cookies.", 0),
    ("12", "The answer is that she has 12 cookies and he has 13.", 0),
    ("12", "The answer is that if she has 12 cookies, he has 13.", 0),
    ("12", "The answer is $12$ cookies.", 1),
    ("12", "The answer is $12$ or more.", 0),
    ("12", "The answer is $12$, not $13$.", 1),
    ("13", "The answer is $12$, not $13$.", 0),
    ("12", "The answer is 12, not 13.", 1),
    ("12", "The answer is $12$, $13$.", 0),
    ("12", "The answer is $12$ as shown in step 3.", 1),
    ("1/2", r"The answer is $\frac{1}{2}$ of the total.", 1),
    ("12 cm", "The answer is $12$ m.", 0),
    ("12 cm", "The answer is $12$ cm.", 1),
    ("12", r"The answer is therefore \(12\).", 1),
    ("12", "The answer is given by $x = 12$.", 1),
    ("12", "The answer is 12? No, it is 13.", 0),
    ("13", "The answer is 12? No, it is 13.", 1),
    ("12", "The answer is found when x is 12", 0),
    ("5", "The answer is x = 5; y = 6.", 0),
    ("12", "The answer is 12; that is all.", 1),
    ("5", "The answer is $$5$$ or $$6$$.", 0),
    ("5", "The answer is\n$$5$$\n", 1),
    ("120", "The answer is $5! + 0$.", 1),
    ("72", "The final answer is **72**.", 1),
    ("72", "The final answer is **$72$**.", 1),
    ("72", "The final answer is: $72$ dollars", 1),
    ("72", "The answer is $72.00$ dollars.", 1),
    ("12", "**Final Answer**\nThe final answer is $12$. I hope it is correct.", 1),
    ("72", r"The answer is \$72.", 1),
    (r"\sqrt{2}", r"The answer is $\sqrt{2}$ units.", 1),
    ("(1,2)", "The answer is the point $(1,2)$.", 1),
    ("(1,2)", "The answer is (1, 2).", 1),
    ("x+1", "The answer is $y = x+1$", 1),
    ("12", "The answer is $12$ million", 0),
    ("12", "The answer is 12 million", 0),
    ("12", "The answer is $12$ times $3$", 0),
    ("5", "Answer: 5 apples and 6 pears", 0),
    ("3", "Answer: $3$", 1),
    ("2", "the answer is $2$ pi", 0),
    ("12000000", "The answer is $12$ million.", 1),
    ("$12$ hours", "The answer is $12$ hours", 1),
    # The last number, formula or side, unless it is denied or one of several.
    ("13", "x = 12 or x = 13", 0),
    ("12", "x = 12 or x = 13", 0),
    ("12,13", "x = 12 or x = 13", 1),
    ("12,13", "So $x = 12$ or $x = 13$.", 1),
    ("13", "So $x = 12$ or $x = 13$.", 0),
    ("13", "So it is 12 or 13.", 0),
    ("12,13", "So it is 12 or 13.", 1),
    ("13", "12 cookies or 13", 0),
    ("13", "It is either 12 cookies or 13 cookies", 0),
    ("12", "It is not 12.", 0),
    ("12", "It isn't $12$.", 0),
    ("12", "x != 12", 0),
    ("12", "x >= 12", 0),
    ("12", r"so $x \ne 12$", 0),
    ("12", "It is more than 12.", 0),
    ("12", "There are fewer than $12$.", 0),
    ("12", "Whether odd or even, there are 12.", 1),
    ("12", "They do not share, so there are 12.", 1),
    ("12", "There are 3 or 4 boys, so 12 in all", 1),
    ("18", "She makes $18 every day at the farmers' market.", 1),
    # Arrows, quotes and tags; bounds.
    *[("4", text, 1) for text in ("2 + 2 -> 4", "2+2 --> 4", "Answer -> 4", "> 4", "> **4**", "<b>4</b>", "<answer>4")],
    *[("4", text, 1) for text in ("So x => 4", r"$2+2 \implies 4$", "The answer is <b>4</b>", "<strong>4</strong>")],
    *[("4", text, 0) for text in ("x > 4", "x >= 4", "x != 4", "The answer is > 4", "so x > $4$", "$x > 4$", "3 > 4")],
    # Alternatives: right if each is.
    (r"\frac34", "The probability is 3/4, or 0.75.", 1),
    (r"\frac34", r"The probability is $\frac{3}{4}$ or $0.75$.", 1),
    (r"\frac34", r"The probability is $\frac{3}{4}$ (or $0.75$).", 1),
    (r"\frac34", "The answer is 3/4 (or 0.75).", 1),
    (r"\frac34", "The answer is 3/4 (or 0.8).", 0),
    *[("12", text, 0) for text in ("It is 12, or 13.", "It is $12$ (or $13$).", "The answer is 12 (or 13).")],
    *[("13", text, 0) for text in ("It is 12, or 13.", "It is $12$ (or $13$).", "The answer is 12 (or 13).")],
    # Lists: all of it is the answer.
    *[("2", text, 0) for text in ("The solutions are $x=1$ and $x=2$.", "x = 1, 2", "So $x=3$ and $y=2$.", "1 and 2")],
    *[("1,2", text, 1) for text in ("The solutions are $x=1$ and $x=2$.", "x = 1, 2", "The roots are 1 and 2.")],
    ("-5", "So $x = 5, x = -5$.", 0),
    ("5,-5", "So $x = 5, x = -5$.", 1),
    ("(3,2)", "Thus $x = 3$ and $y = 2$.", 1),
    ("5", "With $a=2$ and $b=3$, $a+b=5$.", 1),
    ("x^2+y^2=4", "Therefore the equation is $x^2+y^2=4$.", 1),
    ("4", "Therefore the equation is $x^2+y^2=4$.", 0),
    # The whole expression around the last number.
    *[
        ("3", text, 0)
        for text in ("it is \u22123.", "20 m^3.", "2\u221a3", "17_3", "(1, 3)", "3x", "it is 3 + x", "3 million")
    ],
    *[
        ("2", text, 0)
        for text in ("The area is 12 cm^2.", "The side is \u221a2.", "It is x^2 + 2.", "log 2", "4 - 2 = y")
    ],
    ("9", "The area is 9\u03c0.", 0),
    (r"9\pi", "The area is 9\u03c0.", 1),
    (r"2\sqrt{3}", "The side is 2\u221a3.", 1),
    ("-3", "The minimum value is \u22123.", 1),
    ("20", "The volume is 20 m^3.", 1),
    ("(1,2)", "It is (1, 2).", 1),
    *[
        ("12", text, 1)
        for text in ("12 cm^2.", "12 cm\xb2", "12cm", "(12)", "- 12 apples", "12 a day", "12!", "\u2022 12")
    ],
    # Reasons, names and labels in the sentence.
    ("12", r"Answer: 12 (since $3\cdot4=12$)", 1),
    ("12", "Answer: 12 (since it is 12 or 13)", 0),
    ("12", "The answer is that $x$ equals $12$.", 1),
    ("12", "The answer is that $x$ is not $12$.", 0),
    ("12", "**Answer**: The area of $ABC$ is $12$.", 1),
    ("42", "**Final Answer:** The value of $x$ is $42$.", 1),
    ("4", "The answer is (D) 4.", 1),
    ("4", "The answer is (D) 4 or 5.", 0),
    ("5", "The answer is: There are **5** of them.", 1),
]


def test_math_reads_what_is_said() -> None:
    assert [case for case in STATED if math(prompt(case[0]), case[1]).reward != case[2]] == []


# The ends of worked solutions of GSM8K in which money and annotations look like formulas.
WORKED = [
    "Eliza will receive a total of $400 + $60 = $<<400+60=460>>460 for this week's work.\n#### 460",
    "Since a total of $400 profit was made, the total is $400/$8=<<400/8=50>>50 bags\n#### 50",
    "If the twenty dozen cups cost $34800, each cup costs $34800/240=$<<34800/240=145>>145\n#### 145",
    "She earns in total 150 * 5/10=$<<150*5/10=75>>75.\n#### 75",
    "So he pays $30000+$1800=$<<30000+1800=31800>>31,800 a year\n#### 31800",
    "She had $10 and spent $7 so she had $10-$7 = $<<10-7=3.00>>3.00 left over\n#### 3",
    "His total bill is $50 minus his discount of $5.00 so 50-5 = $<<50-5=45.00>>45.00\n#### 45",
    "Thus, if both work 20 hours, Billy will be paid $230-$210=$20 more.\n#### 20",
    "Thus, she spends $100*(40/100)=$<<100*40/100=40>>40 per week.\n#### 40",
    "At $72, she makes a profit of $99-$72=$27\n#### 27",
    "She gets $12 x 5 =$<<12*5=60>>60.\n#### 60",
    "So it is 12 or 13 a day, $1,234 a year.\n#### 1,234",
]


def test_math_says_1_of_the_gold_solution_itself() -> None:
    for solution in WORKED:
        assert math(prompt(solution), solution).reward == 1.0, solution
        assert math(prompt(solution), solution.replace("####", "#### 9")).reward == 0.0, solution


@pytest.mark.parametrize("rule", [boxed_math, boxed_math_strict])
def test_a_box_in_the_thought_is_work(rule: Callable[[Prompt, str], Score]) -> None:
    for response, verdict, boxed in [
        (r"<think>\boxed{71}</think>\boxed{72}", 1, 1),
        (r"<think>\boxed{72}</think>\boxed{71}", 0, 1),
        (r"<think>\boxed{72}</think><answer>72</answer>", 0, 0),
        (r"<think>\boxed{72}</think>", 0, 0),
        (r"<think>so \boxed{72}", 1, 1),
        (r"\boxed{71}</think>\boxed{72}", 1, 1),
    ]:
        assert rule(prompt("72"), response) == (verdict, {"boxed": boxed}), response


def test_boxed_math_strict_wants_the_box_at_the_end() -> None:
    late = "a" * 1000 + r" \boxed{5}."
    assert boxed_math_strict(prompt("5"), late).reward == 1.0
    assert boxed_math_strict(prompt("5"), late + "a" * 290).reward == 1.0
    assert boxed_math_strict(prompt("5"), late + "a" * 291).reward == 0.0  # the backslash is the 301st from the end
    assert boxed_math_strict(prompt("5"), late + "a" * 291, last_characters=301).reward == 1.0
    assert boxed_math_strict(prompt("5"), late + r" no, \boxed{6}").reward == 0.0
    assert boxed_math_strict(prompt("5"), "the answer is 5") == (0.0, {"boxed": 0.0})
    with pytest.raises(ConfigError, match=r"reward.args.boxed_math_strict.last_characters: 0"):
        boxed_math_strict(prompt("5"), late, last_characters=0)


@pytest.mark.parametrize(
    ("check", "gold", "says"),
    [
        (boxed_math_gold, "", "empty"),
        (boxed_math_gold, r"so \boxed{}", "empty"),
        (boxed_math_gold, "work ####  ", "empty"),
        (boxed_math_gold, "1" * 401, "over 400 characters"),
        (boxed_math_gold, "9^{9^{9^9}}", "too big"),
        (boxed_math_gold, "(" * 20 + "1" + ")" * 20, "nested too deep"),
        (boxed_math_gold, r"\frac{5055}{2^{15}", "neither mathematics"),
        (boxed_math_gold, r"f(x) = ax \text{ for all } x \equiv 1 \pmod 3", "neither mathematics"),
        (boxed_math_gold, "It can be shown that no such number exists, " * 4, "neither mathematics"),
        (gsm8k_gold, "", "no number"),
        (gsm8k_gold, "4 + 4 is\n#### unknown", "no number"),
    ],
)
def test_gold_answers_that_cannot_be_read(check: Callable[[Prompt], None], gold: str, says: str) -> None:
    with pytest.raises(UnparseableGold, match=f"prompt test:0: .*{says}"):
        check(prompt(gold))


@pytest.mark.parametrize("rule", [boxed_math, math, boxed_math_strict, gsm8k])
def test_a_rule_says_the_same_of_its_gold_answer_as_the_check(rule: Callable[[Prompt, str], object]) -> None:
    with pytest.raises(UnparseableGold):
        rule(prompt(""), "no box, no number")


def test_gold_answers_that_can_be_read() -> None:
    for gold in dict.fromkeys(gold for gold, _, _ in VERDICTS):
        boxed_math_gold(prompt(gold))  # names the gold answer it cannot read


def test_gold_answers_of_gsm8k_that_can_be_read() -> None:
    gsm8k_gold(prompt("so\n#### 1,234"))


def verdicts(letter: str) -> list[float]:
    """Of the hard ones, with another letter for x: nothing of them has been read before."""
    rows = [[re.sub(r"(?<![A-Za-z\\])x(?![A-Za-z])", letter, text) for text in row[:2]] for row in HARD]
    return [boxed_math(prompt(gold), f"\\boxed{{{answer}}}").reward for gold, answer in rows]


def test_the_same_verdict_in_any_thread() -> None:
    """math-verify's own timeouts are alarm signals: it fails off the main thread, and a right answer is scored 0."""
    want = [float(verdict) for _, _, verdict in HARD]
    assert verdicts("x") == want and 0.0 in want and 1.0 in want
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda letter=letter: found.append(verdicts(letter))) for letter in "zwv"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 3


FORMULA = (prompt("x^2 - 1"), r"\boxed{(x-1)(x+1)}")


def test_strings_are_refused_in_the_thread_that_reads_an_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[object] = []
    elsewhere: list[object] = []

    def compares(*args: object, **kwargs: object) -> bool:
        thread = threading.Thread(target=lambda: elsewhere.append(sympy.sympify("1 + 2")))
        thread.start()
        thread.join()
        with pytest.raises(SympifyError):
            sympy.sympify("1 + 2")
        here.append(sympy.sympify("12"))
        return False

    monkeypatch.setattr(math_verify, "verify", compares)
    assert boxed_math(*FORMULA).reward == 0.0
    assert set(here) == {12} and set(elsewhere) == {3}
    assert sympy.sympify("1 + 2") == 3


def test_work_without_end_is_a_timeout_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float] = []

    def endless(*args: object, **kwargs: object) -> None:
        armed.append(signal.getitimer(signal.ITIMER_VIRTUAL)[0])
        while True:
            try:
                signal.raise_signal(signal.SIGVTALRM)  # as if the time were over
            except Exception:  # as sympy does
                pass

    before = signal.getsignal(signal.SIGVTALRM)
    with monkeypatch.context() as patched:
        patched.setattr(math_verify, "verify", endless)
        with pytest.raises(TimeoutError, match="math-verify took over 5 s"):
            boxed_math(*FORMULA)
    assert 0 < armed[0] < 6
    assert signal.getsignal(signal.SIGVTALRM) == before and signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert boxed_math(*FORMULA).reward == 1.0


def test_memory_that_runs_out_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(math_verify, "verify", exhausted)
    with pytest.raises(MemoryError):
        boxed_math(*FORMULA)


def test_rules_with_a_gold_answer_have_a_check() -> None:
    rules = {"gsm8k", "gsm8k_strict", "boxed_math", "boxed_math_strict", "math", "exact_match", "multiple_choice"}
    assert rules <= set(GOLD)
