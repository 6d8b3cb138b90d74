"""Verdicts of the rules that judge a text by its length, its repetitions and its language."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.language import LANGUAGES, language
from rewards.length import length_cosine, length_cosine_gold, length_linear, overlong, overlong_penalty
from rewards.repetition import repetition
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.isolated.outcome import BadValue
from rlcore.records import Prompt, Score

PROMPT = Prompt(id="test:7", tokens=[1], answer="#### 72")


@pytest.mark.parametrize(
    ("tokens", "limit", "short", "long", "reward"),
    [
        (0, 100, 0.0, -1.0, 0.0),
        (25, 100, 0.0, -1.0, -0.25),
        (100, 100, 0.0, -1.0, -1.0),
        (50, 200, 0.0, -1.0, -0.25),
        (50, 100, 1.0, 0.0, 0.5),
        (50, 100, 0.0, 1.0, 0.5),
        (50, 100, 3.0, 3.0, 3.0),
        (1, 1, 2.0, 5.0, 5.0),
    ],
)
def test_length_linear(tokens: int, limit: int, short: float, long: float, reward: float) -> None:
    options: dict[str, Any] = {"response_tokens": tokens, "max_response_tokens": limit}
    assert length_linear(PROMPT, "x", **options, short=short, long=long) == pytest.approx(reward)
    assert length_linear(PROMPT, "x", **options) == pytest.approx(-tokens / limit)


@pytest.mark.parametrize(
    ("response", "tokens", "reward", "correct"),
    [
        # The paper's numbers: right 2 to 1, wrong -10 to 0, at the limit -10.
        ("#### 72", 0, 2.0, 1),
        ("#### 72", 50, 1.5, 1),
        ("#### 72", 25, 1.0 + 0.5 * (1.0 + 2**-0.5), 1),
        ("#### 72", 99, 1.0 + 0.0002467198, 1),  # (1 + cos(0.99 pi)) / 2
        ("#### 72", 100, -10.0, 1),
        ("#### 71", 0, -10.0, 0),
        ("#### 71", 50, -5.0, 0),
        ("#### 71", 75, -5.0 + 5.0 * 2**-0.5, 0),
        ("#### 71", 99, -0.002467198, 0),
        ("#### 71", 100, -10.0, 0),
        ("", 0, -10.0, 0),
    ],
)
def test_length_cosine(response: str, tokens: int, reward: float, correct: int) -> None:
    score = length_cosine(PROMPT, response, of="gsm8k", response_tokens=tokens, max_response_tokens=100)
    assert score.reward == pytest.approx(reward)
    assert score.parts == {"correct": correct}


def test_length_cosine_takes_other_ends_and_other_rules() -> None:
    """A rule whose right is more than 1, and that gives a Score: knights and knaves."""
    options: dict[str, Any] = {
        "of": "rewards.knights_knaves.knights_knaves",
        "response_tokens": 50,
        "max_response_tokens": 100,
    }
    at_limit: dict[str, Any] = {"response_tokens": 100}
    no_such: dict[str, Any] = {"of": "no_such_rule"}
    prompt = Prompt(id="test:7", tokens=[1], answer="Zoey is a knight")
    right, wrong = (f"<think>a</think><answer>Zoey is a {role}</answer>" for role in ("knight", "knave"))
    assert length_cosine(prompt, right, **options, correct_short=4.0) == Score(2.5, {"correct": 1.0})
    assert length_cosine(prompt, wrong, **options, wrong_short=-1.0, wrong_long=-0.5).reward == -0.75
    assert length_cosine(prompt, wrong, **(options | at_limit), at_limit=-3.0).reward == -3.0
    with pytest.raises(ConfigError, match="length_cosine.of: no_such_rule"):
        length_cosine(prompt, right, **(options | no_such))


OF = """
from rlcore.records import Score
def truth(prompt, response): return True
def number(prompt, response): return {"score": 1.0, "why": "right"}
def score(prompt, response): return Score(1.0, {"x": 2.0})
def less(prompt, response): return {"score": 0.9}
def turned(response, prompt): return float(prompt.id == "test:7" and response == "x")
def told(prompt, response, response_tokens, finish, max_response_tokens):
    return (response_tokens, finish, max_response_tokens) == (50, "length", 100)
def nan(prompt, response): return float("nan")
def part(prompt, response): return Score(1.0, {"x": float("inf")})
def none(prompt, response): return None
def listed(prompt, response): return [1.0]
async def late(prompt, response): return 1.0
def batch(prompts, responses): return [1.0] * len(prompts)
def trl(prompts, completions, **columns): return [1.0] * len(prompts)
def verl(data_source, solution_str, ground_truth, extra_info=None): return 1.0
def needs(prompt, response, tolerance): return 1.0
def one(prompt): return 1.0
class Made:
    def __call__(self, prompt, response): return 1.0
def picky(prompt, response): return len(prompt.row["choices"] if prompt.row else None)
"""


@pytest.fixture
def of(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    (tmp_path / "of.py").write_text(OF)
    return lambda name: {"of": f"{tmp_path}/of.py:{name}", "response_tokens": 50, "max_response_tokens": 100}


@pytest.mark.parametrize(
    ("name", "correct"),
    [("truth", 1), ("number", 1), ("score", 1), ("less", 0), ("turned", 1), ("told", 1), ("Made", 1)],
)
def test_length_cosine_reads_every_value_of_a_reward_function(name: str, correct: int, of: Any) -> None:
    score = length_cosine(PROMPT, "x", **of(name), finish="length")
    assert score.reward == pytest.approx(1.5 if correct else -5.0)
    assert score.parts == {"correct": correct}


@pytest.mark.parametrize("name", ["nan", "part", "none", "listed"])
def test_what_is_no_reward_is_not_taken_for_wrong(name: str, of: Any) -> None:
    with pytest.raises(BadValue, match=rf"of\.py:{name}(, part x)? returned"):
        length_cosine(PROMPT, "x", **of(name))


@pytest.mark.parametrize("name", ["late", "batch", "trl", "verl", "needs", "one"])
def test_length_cosine_says_what_its_rule_must_be(name: str, of: Any) -> None:
    says = rf"^reward\.args\.length_cosine\.of: \S*of\.py:{name} must be called as fn\(prompt, response\)"
    with pytest.raises(ConfigError, match=says):
        length_cosine(PROMPT, "x", **of(name))


@pytest.mark.parametrize("name", ["judge", "code", "length_cosine"])
def test_length_cosine_refuses_built_in_rules_that_need_more(name: str) -> None:
    with pytest.raises(ConfigError, match=f"length_cosine.of: {name} must be called as fn"):
        length_cosine(PROMPT, "x", of=name, response_tokens=50, max_response_tokens=100)


def test_the_gold_answers_of_the_rule_behind_length_cosine(tmp_path: Path) -> None:
    for rule, gold in (("gsm8k", "none"), ("exact_match", " "), ("multiple_choice", "Paris")):
        with pytest.raises(UnparseableGold):
            length_cosine_gold(Prompt("test:0", [1], gold), of=rule)
        length_cosine_gold(Prompt("test:0", [1], gold), of="format")
        length_cosine_gold(Prompt("test:0", [1], gold), of=f"{tmp_path}/not_read.py:score")


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [
        # DAPO, eq. 13, with its own numbers: limit 20480, cache 4096.
        (0, 0.0),
        (16383, 0.0),
        (16384, 0.0),
        (17408, -0.25),
        (18432, -0.5),
        (20479, -4095 / 4096),
        (20480, -1.0),
        (30000, -1.0),
    ],
)
def test_overlong(tokens: int, reward: float) -> None:
    options: dict[str, Any] = {"response_tokens": tokens, "max_response_tokens": 20480}
    assert overlong(PROMPT, "x", **options) == pytest.approx(reward)
    assert overlong(PROMPT, "x", **options, penalty=0.5) == pytest.approx(reward / 2)
    assert overlong_penalty(tokens, 20480, 0.2, 1.0) == pytest.approx(reward)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_overlong_needs_a_share(fraction: float) -> None:
    with pytest.raises(ConfigError, match="overlong.fraction"):
        overlong(PROMPT, "x", response_tokens=1, max_response_tokens=2, fraction=fraction)


@pytest.mark.parametrize(
    ("response", "ngram", "reward"),
    [
        ("", 2, 0.0),
        ("a b c d", 2, 0.0),
        ("a b a b", 2, -1 / 3),
        ("a a a a a", 1, -0.8),
        ("a a a a a", 5, 0.0),
        ("a a a a a", 6, 0.0),
        ("A b a B", 2, -1 / 3),
        ("a b\n a\t b", 2, -1 / 3),
        ("ab ab a b", 2, 0.0),
        ("x y z " * 10, 3, -25 / 28),
        ("\u6211\u4eec\u6211\u4eec", 2, -1 / 3),
        ("\u6211\u6211 a\u6211", 1, -0.5),
        ("\u0e01\u0e01\u0e01", 1, -2 / 3),
        ("caf\u00e9 caf\u00e9", 1, -0.5),
    ],
)
def test_repetition(response: str, ngram: int, reward: float) -> None:
    assert repetition(PROMPT, response, ngram=ngram) == pytest.approx(reward)
    assert repetition(PROMPT, response, ngram=ngram, penalty=0.5) == pytest.approx(reward / 2)


def test_repetition_needs_a_run() -> None:
    assert repetition(PROMPT, "a b c d " * 10) == pytest.approx(4 / 21 - 1)
    with pytest.raises(ConfigError, match="repetition.ngram is 0"):
        repetition(PROMPT, "a", ngram=0)


@pytest.mark.parametrize(
    ("response", "code", "share"),
    [
        ("The answer is forty-two, don't you think?", "en", 1.0),
        ("The answer \u043e\u0442\u0432\u0435\u0442 is", "en", 0.75),
        ("The answer \u043e\u0442\u0432\u0435\u0442 is", "ru", 0.25),
        ("Die Antwort ist na\u00efv", "en", 1.0),
        ("\u7b54\u6848\u662f 42", "zh", 1.0),
        ("\u7b54\u6848 is 42", "zh", 2 / 3),
        ("\u56e0\u4e3a x = 2 + y, \\frac{1}{2} \\alpha", "zh", 1.0),
        ("\u56e0\u4e3a x = two", "zh", 2 / 3),
        ("<think>\u7b54</think><answer>\u6848</answer>", "zh", 1.0),
        ("\u3072\u3089\u304c\u306a\u30ab\u30ca\u6f22", "ja", 1.0),
        ("\u3072\u3089\u304c\u306a\u6f22", "zh", 0.2),
        ("\uc548\ub155 hello", "ko", 0.5),
        ("hello\u6f22", "en", 0.5),
        ("he\u043b\u043bo there", "en", 0.5),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u0939\u0948", "hi", 1.0),
        ("e\u0301tude cafe\u0301", "fr", 1.0),
        ("\u0645\u0631\u062d\u0628\u0627 hello", "ar", 0.5),
        ("f\u00fcr \u03b1 und \u03b2", "de", 1.0),
        ("1 + 2 = 3", "en", 1.0),
        ("", "en", 1.0),
    ],
)
def test_language(response: str, code: str, share: float) -> None:
    assert language(PROMPT, response, language=code) == pytest.approx(share)


def test_language_must_be_known() -> None:
    assert language(PROMPT, "\u7b54 answer") == 0.5
    with pytest.raises(ConfigError, match="language.language is english.*en, de"):
        language(PROMPT, "x", language="english")
    assert all(language(PROMPT, "", language=code) == 1.0 for code in LANGUAGES)
