"""Verdicts of the built-in rewards, and that no model text is ever run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rewards.exact import exact_match
from rewards.format import think_answer
from rewards.gsm8k import gsm8k, gsm8k_strict
from rewards.math.boxed import boxed_math, boxed_math_strict, math
from rewards.math.text import last_box
from rewards.multiple_choice import multiple_choice
from rewards.outcomes import checked
from rewards.signatures import Fn, load_rule
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.isolated.outcome import BadValue
from rlcore.records import Prompt, Score

GSM8K_GOLD = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72.\n#### 72"


def prompt(answer: str) -> Prompt:
    return Prompt(id="test:0", tokens=[1], answer=answer)


@pytest.mark.parametrize(
    ("gold", "response", "flexible", "strict"),
    [
        (GSM8K_GOLD, "so it is\n#### 72", 1, 1),
        (GSM8K_GOLD, "#### 72.0", 1, 1),
        (GSM8K_GOLD, "####72", 1, 1),
        (GSM8K_GOLD, "#### $72.", 1, 1),
        (GSM8K_GOLD, "#### 72\nI checked it 3 times", 1, 1),
        (GSM8K_GOLD, "#### 71 #### 72", 1, 1),
        (GSM8K_GOLD, "#### 72 #### 71", 0, 0),
        (GSM8K_GOLD, "#### 71\nwait, 72", 0, 0),
        (GSM8K_GOLD, "she sold 72 clips", 1, 0),
        (GSM8K_GOLD, "#### the answer is 72", 1, 0),
        (GSM8K_GOLD, "it is 72 #### none", 1, 0),
        (GSM8K_GOLD, "#### 72x", 1, 0),
        (GSM8K_GOLD, "\uff17\uff12", 1, 0),
        (GSM8K_GOLD, "\u0667\u0662", 1, 0),
        (GSM8K_GOLD, "\uff0d\uff17\uff12", 0, 0),
        (GSM8K_GOLD, "#### 72" + " " * 10_000, 1, 1),
        (GSM8K_GOLD, "72" + " " * 10_000, 1, 0),
        (GSM8K_GOLD, "-" + " " * 10_000 + "x", 0, 0),
        ("2", "it is 10 m\u00b2", 0, 0),
        ("10", "it is 10 m\u00b2", 1, 0),
        ("2.5", "it is 2\u00bd", 1, 0),
        ("2", "it is 2\u00bd", 0, 0),
        (GSM8K_GOLD, "#### 7 2", 0, 0),
        (GSM8K_GOLD, "#### -72", 0, 0),
        (GSM8K_GOLD, "100-72", 1, 0),
        (GSM8K_GOLD, "720 or 172", 0, 0),
        (GSM8K_GOLD, "", 0, 0),
        (GSM8K_GOLD, "####", 0, 0),
        ("#### 1,234,567", "#### 1234567", 1, 1),
        ("1234", "it cost $1,234.00!", 1, 0),
        ("-5", "#### -5", 1, 1),
        ("-5", "so it is -5.", 1, 0),
        ("-5", "7 - 5", 0, 0),
        ("5", "7 - 5", 1, 0),
        ("-5", "x = - 5", 1, 0),
        ("-5", "#### \u22125", 1, 0),
        ("0.5", "#### .5", 1, 1),
        ("50%", "#### 50%", 1, 1),
        ("$18", "#### 18", 1, 1),
        # Fractions, mixed numbers, exponents, thousands: one number each.
        ("5", "#### 5/2", 0, 0),
        ("5", "#### 5 / 2", 0, 0),
        ("2.5", "#### 5/2", 1, 1),
        ("2", "#### 2 1/2", 0, 0),
        ("2.5", "#### 2 1/2", 1, 1),
        ("5", r"#### \frac{5}{2}", 0, 0),
        ("2.5", r"#### \frac{5}{2}", 1, 1),
        ("2.5", r"#### 2\frac{1}{2}", 1, 1),
        ("2", "it is 2 \u00bd", 0, 0),
        ("72", "#### 72e3", 0, 0),
        ("72000", "#### 72e3", 1, 1),
        ("5", "#### 5e99999999", 0, 0),
        ("5", "#### 5e-9999", 0, 0),
        ("5", "#### 5/0", 0, 0),
        ("1000", "#### 1 000", 1, 1),
        ("1000000", "#### 1\u00a0000\u00a0000", 1, 0),
        ("-3", "#### $-3", 1, 1),
        ("-3", "#### -$3", 1, 1),
        ("3", "#### $-3", 0, 0),
        # One number, not two, and none that is denied.
        ("72", "#### 72 or 73", 0, 0),
        ("73", "#### 72 or 73", 0, 0),
        ("73", "72 or 73", 0, 0),
        ("72", "it is not 72", 0, 0),
        ("72", "#### 72-73", 0, 0),
        ("5", "#### 5^2", 0, 0),
        ("2", "it is 5^2", 0, 0),
        ("60", "#### 60 + 12 = 72", 0, 0),
        ("72", "#### 60 + 12 = 72", 1, 0),
        ("72", "#### 72 clips", 1, 1),
        ("72", "#### 72 clips in 2 months", 1, 0),
        ("72", "#### 72\n73", 1, 1),
        ("72", "#### **72**", 1, 0),
        ("72", "##### 72", 1, 0),
        # "or" that says the same again.
        ("36", "That's 3 * 12, or 36.", 1, 0),
        ("36", "He sold 3 dozen, or 36 eggs.", 1, 0),
        ("4", "That is 2 pairs (or 4 shoes).", 1, 0),
        ("6", "That is 2 pairs (or 6 shoes).", 0, 0),
        ("13", "12 cookies, or 13 cookies", 0, 0),
        ("13", "12 (or 13)", 0, 0),
        # Thousands, millions, and commas that group nothing.
        ("10", "#### 10k", 0, 0),
        ("10000", "#### 10k", 1, 0),
        ("10", "#### 10kg", 1, 0),
        ("1000000", "#### 1 million", 1, 0),
        ("5", "#### 5 million", 1, 1),
        ("6", "#### 5 million or 6 million", 0, 0),
        ("1200", "12,00", 0, 0),
        ("1200", "#### 12,00", 0, 0),
        ("100000", "#### 1,00,000", 1, 1),
        # What follows the thought.
        ("72", "<think>#### 71</think>it is 72", 1, 0),
        ("71", "<think>#### 71</think>it is 72", 0, 0),
        ("72", "<think>#### 71</think>#### 72", 1, 1),
    ],
)
def test_gsm8k(gold: str, response: str, flexible: int, strict: int) -> None:
    assert gsm8k(prompt(gold), response) == flexible
    assert gsm8k_strict(prompt(gold), response) == strict


def test_gsm8k_without_a_gold_number_is_an_error() -> None:
    with pytest.raises(UnparseableGold, match="test:0.*no number"):
        gsm8k(prompt("none"), "#### 1")


BOXED = [
    # What math-verify alone gets wrong.
    ("3", "2=3", 0),
    ("3", "x=2=3", 0),
    ("x=3", "2=3", 0),
    ("10 m", "10 cm", 0),
    (r"10\text{ m}", r"10\text{ cm}", 0),
    ("10 cm^2", "10 cm", 0),
    ("1000", r"1\,000", 1),
    ("1000000", r"1\,000\,000", 1),
    (r"1\,000", "1000", 1),
    ("1000", "1{,}000", 1),
    ("12", "\uff11\uff12", 1),
    ("-3", "\u22123", 1),
    ("0.5", r"50\%", 1),
    (r"50\%", "50", 1),
    (r"50\%", "0.5", 1),
    ("5", r"50\%", 0),
    # What it must still accept.
    ("3", "1+2=3", 1),
    ("3", "x=3", 1),
    ("x=3", "3", 1),
    ("10", "10 cm", 1),
    (r"12\text{ cm}", "12", 1),
    ("12 cm^2", r"12\text{ cm}^2", 1),
    ("10 m", r"10\text{ m}", 1),
    ("5m", "5m", 1),
    ("5m", "5", 0),
    ("1234", "1,234", 1),
    ("1", "1.0", 1),
    (r"\frac12", "0.5", 1),
    (r"\dfrac{3}{4}", r"\frac{3}{4}", 1),
    (r"\frac{1}{3}", "0.33", 0),
    ("x^2+2x+1", "(x+1)^2", 1),
    ("x^2+2x+1", "(x-1)^2", 0),
    (r"\sqrt{8}", r"2\sqrt2", 1),
    (r"\{1,2\}", r"\{2,1\}", 1),
    ("[1,2)", "[1,2)", 1),
    ("[1,2)", "(1,2)", 0),
    ("1,2", "2", 0),
    ("2", "1,2", 0),
    ("2", "1 or 2", 0),
    (r"\text{Tuesday}", "Tuesday", 1),
    (r"\text{east}", "west", 0),
    ("A", r"\text{(A)}", 1),
    (r"90^\circ", "90", 1),
    ("5", r"\$5.00", 1),
    (r"$\pi$", r"\pi", 1),
    (r"so \boxed{7}", "7", 1),
    ("1000000", "10^6", 1),
    # What must be refused at once.
    ("3", "9^{9^{9^9}}", 0),
    ("3", "9**9**9", 0),
    ("3", "10^{10000000}", 0),
    ("3", "((9^{99})^{99})^{99}", 0),
    ("3", "99999!", 0),
    ("3", r"\operatorname{eye}(9999)", 0),
    ("3", "((9!)!)!", 0),
    ("3", "(" * 150 + "3" + ")" * 150, 0),
    ("3", "x_{" * 90 + "3" + "}" * 90, 0),
    ("3", "3" * 300, 0),
    ("3", "3+" * 1000 + "3", 0),
    ("3", "\\frac" * 50, 0),
    ("3", "^" * 200, 0),
    ("3", "", 0),
]


@pytest.mark.parametrize(("gold", "answer", "verdict"), BOXED)
def test_boxed_math(gold: str, answer: str, verdict: int) -> None:
    assert boxed_math(prompt(gold), f"First \\boxed{{999}}, no: \\boxed{{{answer}}}.") == Score(verdict, {"boxed": 1.0})


def test_boxed_math_reads_gold_answers_of_gsm8k() -> None:
    gold = "She sold 48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72"
    assert boxed_math(prompt(gold), r"\boxed{72}").reward == 1.0
    assert boxed_math(prompt(gold), r"\boxed{24}").reward == 0.0


def test_boxed_math_without_a_box() -> None:
    for response in ("", "3", r"\boxed 3", r"\boxed{3", "\\boxed{" + "{" * 10_000_000):
        assert boxed_math(prompt("3"), response) == Score(0.0, {"boxed": 0.0})
    with pytest.raises(UnparseableGold, match="test:0"):
        boxed_math(prompt(""), r"\boxed{3}")


def test_last_box_matches_braces() -> None:
    assert last_box(r"\boxed{1} then \boxed{\frac{1}{2}} end}") == r"\frac{1}{2}"
    assert last_box(r"\fbox{1}") == "1"
    assert last_box("none") is None


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1),
        ("<think>a</think><answer></answer>", 0),
        ("<think> </think><answer>b</answer>", 0),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("hm <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> bye", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think>", 0),
        ("<think>\u200b</think><answer>\u200b</answer>", 0),
        ("<think>a</think><answer>\u200b\ufeff</answer>", 0),
        ("<think>\u3164</think><answer>b</answer>", 0),
        ("<think>a</think><answer>\u2800\ufe0f</answer>", 0),
        ("<think>a</think><answer>\u221e</answer>", 1),
        ("<think>\u0939\u093f</think><answer>\u7b54</answer>", 1),
        ("<think>" * 100_000, 0),
        ("", 0),
    ],
)
def test_format(response: str, reward: int) -> None:
    assert think_answer(prompt(""), response) == reward


@pytest.mark.parametrize(
    "rule", [gsm8k, gsm8k_strict, boxed_math, boxed_math_strict, math, exact_match, think_answer, multiple_choice]
)
def test_ten_megabytes_are_judged_in_linear_time(rule: Callable[[Prompt, str], Score | float]) -> None:
    gold = "D" if rule is multiple_choice else "3"
    for fill in ("a", "1", "#", "####1 ", "\\boxed{", "<think>", "-", " ", "answer is "):
        response = fill * (10_000_000 // len(fill))
        assert checked("rule", rule(prompt(gold), response)).reward == 0.0, fill


def test_checked_takes_numbers_and_scores_only() -> None:
    import numpy as np
    import torch

    assert checked("f", True) == Score(1.0, {})
    assert checked("f", 2) == Score(2.0, {})
    assert checked("f", np.float32(0.5)) == Score(0.5, {})
    assert checked("f", np.bool_(True)) == Score(1.0, {})
    assert checked("f", torch.tensor(0.5)) == Score(0.5, {})
    assert checked("f", Score(1, {"a": np.int64(2)})) == Score(1.0, {"a": 2.0})
    for bad in ("1", None, (1.0, {}), [1.0], float("nan"), float("inf"), 1j, torch.ones(2), Score(0.0, {"a": "x"})):
        with pytest.raises(BadValue, match="f"):
            checked("f", bad)
    with pytest.raises(BadValue, match=r"f returned str 'x'"):
        checked("f", "x")


def test_load_names_what_is_wrong(tmp_path) -> None:
    (tmp_path / "broken.py").write_text("import surely_no_such_module\n")
    (tmp_path / "one.py").write_text("def score(response):\n    return 1.0\n")
    for spec, says in [
        ("no_such", "not a built-in name"),
        ("no.such.module", "cannot import"),
        ("rewards.gsm8k.nothing", "no function nothing"),
        (f"{tmp_path}/none.py:score", "no file"),
        (f"{tmp_path}/broken.py:score", "surely_no_such_module"),
        (f"{tmp_path}/one.py:score", "called as fn\\(prompt, response\\)"),
    ]:
        with pytest.raises(ConfigError, match=f"reward.fns.*{says}"):
            load_rule(Fn("f", spec))
