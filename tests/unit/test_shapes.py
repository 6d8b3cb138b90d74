"""The shapes a reward function may have: how each is recognised, called, and what becomes of what it returns."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards.outcomes import checked, listed
from rewards.signatures import LoadedFn, gold_rule, load_rule
from rlcore.errors import ConfigError, UnparseableGold, kind
from rlcore.isolated.outcome import BadValue, Outcome, failure
from rlcore.isolated.rule import Submission
from rlcore.records import Prompt, Response, Score
from tests.processes.pools import fn, prompt

CODE = """
import asyncio
import functools

def plain(prompt, response, *, scale=1.0, words: int = 3):
    return scale * len(response)

def other_names(data, text):
    return 1.0

def by_name(prompt, response, response_tokens, max_response_tokens, finish, bonus=0.0):
    return {"score": response_tokens / max_response_tokens + bonus, "long": finish == "length"}

def needs(prompt, response, threshold):
    return threshold

def anything(prompt, response, **options):
    return float(len(options))

def batch(prompts, responses, response_tokens, finish, max_response_tokens, scale=1.0):
    return [scale * n / max_response_tokens - (f == "length") for n, f in zip(response_tokens, finish)]

async def later(prompt, response):
    return 1.0

async def batch_later(responses, prompts):
    return [float(len(r)) for r in responses]

def later_prompt(response, prompt, *, scale=1):
    return scale * float(len(response) - len(prompt.answer))

def gold_second(response, answer):
    return float(response == answer)

def gold_named(answer, ground_truth):
    return float(answer == ground_truth)

def trl_answer(completions, answer, **kwargs):
    return [float(c == a) for c, a in zip(completions, answer)]

def trl_sees(prompts, completions, **columns):
    return [{"score": 1.0, "columns": len(columns)} if isinstance(c, str) else {"score": 2.0} for c in completions]

def trl_optional(completions, level=None, trainer_state=None):
    return [None if level is None else float(x) for x in level or completions]

def trl_trainer(completions, trainer_state):
    return [0.0 for _ in completions]

def trl_tokens(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def trl_tokens_answer(completion_ids, answer):
    return [float(len(ids)) for ids in completion_ids]

def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [0.0 for _ in solution_strs]

async def compute_score(data_source, solution_str, ground_truth, extra_info=None, weight=1.0):
    return {"score": weight * (solution_str == ground_truth), "source": data_source == "gsm8k", "info": len(extra_info)}

def verl_any(solution_str, ground_truth, **kwargs):
    return float(sorted(kwargs) == ["data_source", "extra_info", "weight"])

def swallow(*args, **kwargs):
    return [float(len(kwargs))]

def one(response):
    return 1.0

def first_and_rest(prompt, *args):
    return 1.0

def kwonly(prompt, *, response):
    return 1.0

def kwonly_own(data, *, text):
    return 1.0

def forgets(prompt, response):
    return later(prompt, response)

def batch_forgets(prompts, responses):
    return [later(p, r) for p, r in zip(prompts, responses)]

def batch_forgets_whole(prompts, responses):
    return batch_later(responses, prompts)

def ordinary(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)
    return wrapper

def running(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return asyncio.run(fn(*args, **kwargs))
    return wrapper

decorated = ordinary(later)
runs_itself = running(later)

class Count:
    def __init__(self, start=0, *, max_response_tokens):
        self.n, self.limit = start, max_response_tokens
    def __call__(self, prompt, response):
        self.n += 1
        return Score(self.n, {"limit": self.limit})

class Later:
    async def __call__(self, prompts, completions, **columns):
        return [1.0 for _ in completions]

class Refuses:
    def __init__(self, path="nowhere"):
        open(path)
    def __call__(self, prompt, response):
        return 1.0

class NotCallable:
    pass

partial = functools.partial(plain, scale=2.0)
obj = Later()

from rlcore.records import Score
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "user.py"
    path.write_text(CODE)
    return str(path)


def rule(file: str, name: str, **args: Any) -> LoadedFn:
    return load_rule(fn(name, file, **args), {"max_response_tokens": 100})


def samples(*responses: str | Response, **row: Any) -> list[Submission]:
    texts = [r if isinstance(r, Response) else Response(r) for r in responses]
    return [Submission(prompt(i, **row), r) for i, r in enumerate(texts)]


def score(each: LoadedFn, *given: Submission) -> list[Outcome]:
    """As a process calls it, here on the main thread."""
    results = [(call, each.fn(*call.args, **call.kwargs)) for call in each.calls(given)]
    if each.asynchronous:
        results = [(call, asyncio.run(value)) for call, value in results]
    return each.outcomes(given, results)


@pytest.mark.parametrize(
    ("name", "shape", "asynchronous"),
    [
        ("plain", "plain", False),
        ("other_names", "plain", False),
        ("anything", "plain", False),
        ("partial", "plain", False),
        ("batch", "batch", False),
        ("later", "plain", True),
        ("batch_later", "batch", True),
        ("trl_answer", "trl", False),
        ("trl_sees", "trl", False),
        ("compute_score", "verl", True),
        ("verl_any", "verl", False),
        ("Count", "plain", False),
        ("Later", "trl", True),
        ("obj", "trl", True),
        ("decorated", "plain", False),
        ("runs_itself", "plain", False),
    ],
)
def test_recognised(file: str, name: str, shape: str, asynchronous: bool) -> None:
    loaded = rule(file, name)
    assert (loaded.shape, loaded.asynchronous, loaded.many) == (shape, asynchronous, shape in ("batch", "trl"))


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("plain", {"scael": 2.0}, r"args.plain.scael: plain has no such option; did you mean scale\? .*scale, words"),
        ("plain", {"response": "x"}, "args.plain.response: plain has no such option"),
        ("one", {}, r"one has the parameters \(response\); it is called as fn\(prompt, response\).*args.one.signature"),
        ("needs", {}, "args.needs.threshold: needs needs this option; it has no default"),
        (
            "kwonly",
            {},
            r"\(prompt, response\), but response is keyword-only.* remove the \* before it; it is called as",
        ),
        ("kwonly_own", {}, r"\(data, text\), but text is keyword-only"),
        ("swallow", {}, "swallow has the parameters .args, kwargs.*fn.prompts, responses.*TRL.*veRL"),
        ("first_and_rest", {}, r"first_and_rest has the parameters"),
        ("gold_second", {}, r"begins with \(response, answer\), but .* prompt first .*gold_second.signature=plain"),
        ("gold_named", {}, r"begins with \(answer, ground_truth\), but is called with the prompt first"),
        ("plain", {"signature": "verls"}, "args.plain.signature: 'verls' is none of auto, plain, batch, trl, verl"),
        ("trl_trainer", {}, "trl_trainer needs trainer_state, which only TRL's trainer has"),
        ("trl_tokens", {}, "trl_tokens needs completion_ids, which only TRL's trainer has"),
        ("trl_tokens_answer", {}, "trl_tokens_answer needs completion_ids, which only TRL's trainer has"),
        (
            "verl_batch",
            {},
            r"verl_batch has veRL's batch form .*not supported.*compute_score.*fn\(prompts, responses\)",
        ),
        ("Count", {"begin": 1}, "args.Count.begin: Count has no such option.*its options: start"),
        ("Later", {"begin": 1}, "args.Later.begin: Later has no such option.*it has none"),
        ("Refuses", {}, "Refuses: making a .* raised FileNotFoundError.*nowhere"),
        ("NotCallable", {}, "cannot be called; give it a __call__"),
    ],
)
def test_what_cannot_be_called_is_a_config_error(file: str, name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.*{says}"):
        rule(file, name, **args)


def test_options_and_parameters_by_name(file: str) -> None:
    given = samples(Response("four", 50, "length"), Response("four", 20, "stop"))
    assert score(rule(file, "plain", scale=0.5), given[0])[0].reward == 2.0
    assert score(rule(file, "partial"), given[0])[0].reward == 8.0
    assert score(rule(file, "by_name", bonus=1), given[0])[0][:2] == (1.5, {"long": 1.0})
    assert score(rule(file, "by_name", max_response_tokens=25), given[1])[0].reward == 0.8
    assert score(rule(file, "anything", a=1, b=2), given[0])[0].reward == 2.0
    assert [o.reward for o in score(rule(file, "batch", scale=2), *given)] == [0.0, 0.4]
    with pytest.raises(ConfigError, match="max_response_tokens"):
        load_rule(fn("by_name", file))


def test_our_names_may_stand_in_any_order(file: str) -> None:
    prompt = Prompt("d:0", [], "8", {})
    given = [Submission(prompt, Response("four")), Submission(prompt, Response("seven"))]
    assert score(rule(file, "later_prompt", scale=2), given[0])[0].reward == 6.0
    assert [o.reward for o in score(rule(file, "batch_later"), *given)] == [4.0, 5.0]
    assert score(rule(file, "gold_second", signature="plain"), given[0])[0].reward == 0.0


def test_a_decorator_may_run_an_async_function_by_itself(file: str) -> None:
    assert [o.reward for o in score(rule(file, "runs_itself"), *samples("x"))] == [1.0]


def test_a_coroutine_of_a_plain_function_is_no_reward_and_says_what_to_do(
    file: str, recwarn: pytest.WarningsRecorder
) -> None:
    says = "has to be awaited: declare the function `async def` .* the decorator's own function"
    (one,) = score(rule(file, "forgets"), *samples("x"))
    (behind,) = score(rule(file, "decorated"), *samples("x"))
    assert behind.status == "bad_value" and re.search(says, behind.message)
    both = score(rule(file, "batch_forgets"), *samples("x", "y"))
    for outcome, words in zip([one, *both], ["returned", "returned at index 0", "returned at index 1"], strict=True):
        assert outcome.status == "bad_value" and re.search(f"{words} coroutine .*{says}", outcome.message)
    with pytest.raises(BadValue, match=f"batch_forgets_whole returned coroutine .*{says}"):
        score(rule(file, "batch_forgets_whole"), *samples("x", "y"))
    gc.collect()
    assert [str(w.message) for w in recwarn if "never awaited" in str(w.message)] == []


def test_a_class_is_made_once_and_keeps_its_state(file: str) -> None:
    counting = rule(file, "Count", start=10)
    assert [score(counting, *samples("x"))[0][:2] for _ in range(2)] == [(11, {"limit": 100.0}), (12, {"limit": 100.0})]


def test_trl_gets_every_column_it_asks_for_as_a_list(file: str) -> None:
    given = [Submission(Prompt("d:0", [], "", {"prompt": "p", "answer": "a"}), Response(t)) for t in "ab"]
    assert [o.reward for o in score(rule(file, "trl_answer"), *given)] == [1.0, 0.0]
    call = rule(file, "trl_sees").calls(samples("x", "y"))[0]
    assert call.kwargs == {
        "prompts": ["question 0", "question 1"],
        "completions": ["x", "y"],
        "value": [0.0, 1.0],
        "question": ["question 0", "question 1"],
    }
    assert "prompt" not in rule(file, "trl_sees").calls(given)[0].kwargs
    assert rule(file, "trl_optional").calls(given)[0].kwargs == {"completions": ["a", "b"]}
    assert score(rule(file, "trl_optional"), *given) == [Outcome(None)] * 2
    assert [o.reward for o in score(rule(file, "trl_optional"), *samples("x", "y", level=3))] == [3.0, 3.0]
    assert rule(file, "trl_answer", answer="z").calls(given)[0].kwargs["answer"] == "z"
    with pytest.raises(ValueError, match="trl_answer takes the column 'answer', which test:0 does not have.*question"):
        rule(file, "trl_answer").calls(samples("x"))


def test_trl_gets_messages_where_the_prompt_was_a_list_of_messages(file: str) -> None:
    messages = [{"role": "user", "content": "hello"}]
    talk = [Submission(Prompt("d:1", [], "", {"prompt": messages}, messages), Response("hi"))]
    (call,) = rule(file, "trl_sees").calls(talk)
    assert call.kwargs == {"prompts": [messages], "completions": [[{"role": "assistant", "content": "hi"}]]}


def test_a_trl_verdict_does_not_depend_on_its_neighbours(file: str) -> None:
    """Rows of other columns, and conversations among texts, are scored in calls of their own."""
    messages = [{"role": "user", "content": "hello"}]
    given = [
        *samples("a", "b"),
        *samples("c", level=1),
        Submission(Prompt("d:1", [], "", {"prompt": messages}, messages), Response("d")),
        *samples("e"),
    ]
    each = rule(file, "trl_sees")
    assert [call.index for call in each.calls(given)] == [[0, 1, 4], [2], [3]]
    assert score(each, *given) == [score(each, sample)[0] for sample in given]
    assert [o.parts.get("columns") for o in score(each, *given)] == [2.0, 2.0, 3.0, None, 2.0]


def test_verl_gets_its_own_columns_or_ours(file: str) -> None:
    row = {"data_source": "gsm8k", "reward_model": {"ground_truth": "7", "style": "rule"}, "extra_info": {"index": 1}}
    theirs = Submission(Prompt("d:0", [], "7", row), Response("7"))
    ours = Submission(Prompt("train.jsonl:3", [], "8", {"reward_model": None}), Response("8"))
    assert score(rule(file, "compute_score", weight=0.5), theirs)[0][:2] == (0.5, {"source": 1.0, "info": 1.0})
    assert score(rule(file, "compute_score"), ours)[0][:2] == (1.0, {"source": 0.0, "info": 0.0})
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
    of_csv = Submission(Prompt("d:0", [], "7", text), Response("7"))
    assert score(rule(file, "compute_score", weight=0.5), of_csv)[0][:2] == (0.5, {"source": 1.0, "info": 1.0})
    with pytest.raises(ValueError, match=r"d:0: column reward_model is text, but not JSON: 'x'"):
        score(rule(file, "compute_score"), Submission(Prompt("d:0", [], "8", {"reward_model": "x"}), Response("8")))
    assert rule(file, "compute_score").calls([ours])[0].kwargs["data_source"] == "train.jsonl"
    assert score(rule(file, "verl_any", weight=2), ours)[0].reward == 1.0


def test_verls_ground_truth_is_the_gold_answer_of_all_rules(file: str) -> None:
    """As it stands in the record where it was taken from there; data.answer_column may name another column."""

    def given(answer: str, truth: object) -> object:
        row = {"reward_model": {"ground_truth": truth}}
        (call,) = rule(file, "compute_score").calls([Submission(Prompt("d:0", [], answer, row), Response("7"))])
        return call.kwargs["ground_truth"]

    assert given("8", "7") == "8"
    assert given("7", 7) == 7 and given('{"target": 7}', {"target": 7}) == {"target": 7} and given("7", None) == "7"


def test_the_config_may_name_the_shape(file: str) -> None:
    for shape, columns in (("trl", 4), ("verl", 4), ("batch", 0)):
        each = rule(file, "swallow", signature=shape)
        outcome = score(each, *samples("x"))[0] if shape != "verl" else None
        assert each.shape == shape and (outcome is None or outcome.reward == columns)
    assert rule(file, "swallow", signature="plain", extra=1).options == {"extra": 1}


@pytest.mark.parametrize(
    ("value", "reward", "parts"),
    [
        (True, 1.0, {}),
        (2, 2.0, {}),
        (np.float32(0.5), 0.5, {}),
        (np.bool_(True), 1.0, {}),
        (np.array(3), 3.0, {}),
        (torch.tensor(0.5, requires_grad=True), 0.5, {}),
        (Score(1, {"a": np.int64(2)}), 1.0, {"a": 2.0}),  # type: ignore[dict-item]
        ({"score": 1, "a": True, "b": "x", "c": None, "d": [1], "e": "nan", 5: 6}, 1.0, {"a": 1, "5": 6}),
    ],
)
def test_values_that_are_rewards(value: Any, reward: float, parts: dict[str, float]) -> None:
    assert checked("f", value) == Score(reward, parts)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x", "f returned at index 3 str 'x', not a float"),
        (None, "NoneType"),
        ((1.0, {}), "tuple"),
        ([1.0], "list"),
        (1j, "complex"),
        (float("nan"), r"f returned at index 3 nan \(float\), not a finite number"),
        (10**400, r"inf \(int\)"),
        (torch.ones(1), "Tensor"),
        (np.array(np.nan), r"nan \(ndarray\)"),
        ({"reward": 1.0}, 'a dict without "score"'),
        ({"score": None}, "NoneType"),
        ({"score": float("-inf")}, "-inf"),
        (
            {"score": 1.0, "a": 1, "b": float("nan")},
            r"f, part b returned at index 3 nan \(float\), not a finite number",
        ),
        ({"score": 1.0, "a": np.float32("inf")}, "f, part a returned at index 3 inf"),
        ({"score": 1.0, "a": 10**400}, r"f, part a returned at index 3 inf \(int\)"),
        (Score(0.0, {"a": "x"}), "f, part a returned at index 3 str"),  # type: ignore[dict-item]
        (Score(0.0, {"a": float("nan")}), "f, part a returned at index 3 nan"),
    ],
)
def test_values_that_are_not(value: Any, says: str) -> None:
    with pytest.raises(BadValue, match=says):
        checked("f", value, " at index 3")


@pytest.mark.parametrize("value", [[1, None], (1, None), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])])
def test_lists_of_rewards(value: Any) -> None:
    assert listed("f", value, 2) in ([1, None], [1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "count", "says"),
    [
        (1.0, 1, "f returned float 1.0, not a list of 1 rewards"),
        (1.0, 2, "float"),
        ("10", 2, "str '10'"),
        ([1.0], 2, "f returned a list of 1 for 2 samples"),
        ([1.0, 2.0, 3.0], 2, "a list of 3 for 2"),
        ([], 1, "a list of 0 for 1"),
        (np.array(1.0), 1, "ndarray"),
        (np.ones((2, 1)), 2, r"ndarray of shape \(2, 1\)"),
        (torch.ones(1, 2), 1, r"Tensor of shape \(1, 2\)"),
        (np.ones(1), 2, "a list of 1 for 2"),
        ({"score": 1.0}, 1, "dict"),
        (Score(1.0, {}), 2, "Score"),
        ((x for x in [1.0]), 1, "generator"),
        (None, 1, "NoneType"),
    ],
)
def test_lists_that_are_not(value: Any, count: int, says: str) -> None:
    with pytest.raises(BadValue, match=says):
        listed("f", value, count)


def test_each_item_of_a_list_stands_for_itself() -> None:
    each = LoadedFn("f", print, "batch")
    given = samples(*"abcdef")
    (call,) = each.calls(given)
    items = [1, None, float("nan"), ValueError("no"), BadValue("half of it"), [1.0]]
    outcomes = each.outcomes(given, [(call, items)])
    assert [o.status for o in outcomes] == ["", "", "bad_value", "error", "bad_value", "bad_value"]
    assert [o.reward for o in outcomes] == [1.0] + [None] * 5
    assert [o.message[:40] for o in outcomes[2:5]] == [
        "f returned at index 2 nan (float), not a",
        "ValueError: no",
        "half of it",
    ]


def test_kinds_of_errors_leave_out_numbers_and_quoted_values() -> None:
    for one, other in [
        ("KeyError: 'a' at row 17", "KeyError: 'b c' at row 18"),
        ("f returned 1.5e-07 (float)", "f returned -2 (float)"),
        ('no "it\'s" <object at 0x7fab>', "no '' <object at 0x1>"),
        ("f returned str 'cut off, not a float", "f returned str 'cut, not a float"),
        (r"expected 'a\'b' there", "expected '' there"),
    ]:
        assert kind(one) == kind(other)
    assert kind("it can't be 'a' here") != kind("it can't be 'a' there")
    assert kind("the model's text isn't read") == "the model's text isn't read"


def test_a_gold_answer_that_cannot_be_read_is_the_outcome_of_its_own_row() -> None:
    def check(prompt: Prompt) -> None:
        if not prompt.answer.isdigit():
            raise UnparseableGold(f"{prompt.answer!r} is no number")

    each = gold_rule("f", check)
    given = [Submission(Prompt("d:0", [], answer), Response("")) for answer in ("1", "x", "2")]
    assert each.many
    assert score(each, *given) == [Outcome(None), failure(UnparseableGold("'x' is no number")), Outcome(None)]
    with pytest.raises(ZeroDivisionError):  # anything else: they are checked again, one by one
        score(gold_rule("f", lambda prompt: print(1 / 0)), *given)
