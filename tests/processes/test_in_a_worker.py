"""Rules and functions of every kind in a worker of the pool: they say what they say when they are called here."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.signatures import Fn, load_rule
from rlcore.errors import ConfigError
from rlcore.records import Prompt, Response
from tests.processes.misbehaving import VALUES
from tests.processes.pools import Start, collect, fn, prompt
from tests.unit.math_verdicts import HARD
from tests.unit.test_shapes import samples, score


def test_identical_verdicts_from_every_shape_and_the_main_thread(start: Start) -> None:
    """The same table through each adapter in workers, and called here: reward, parts and status agree."""
    table = {**VALUES, "raise": (None, "error"), "sys_exit": (None, "error"), "gold": (None, "unparseable_gold")}
    del table["none"]  # in a list it means that the function does not apply
    functions = ["act", "batch", "later", "batch_later", "trl", "compute_score"]
    pool = start([fn(function) for function in functions], 2)
    for i, response in enumerate(table):
        pool.submit(response, prompt(i), Response(response))
    results = collect(pool)
    for response, (_, status) in table.items():
        reference = results[response]["act"][:3]
        assert reference[2] == status, response
        assert {function: o[:3] for function, o in results[response].items()} == dict.fromkeys(functions, reference)
        if response in VALUES:
            called = {function: score(load_rule(fn(function)), *samples(response))[0][:3] for function in functions}
            assert called == dict.fromkeys(functions, reference), response


def test_options_reach_the_workers_and_their_errors_come_back(tmp_path: Path, start: Start) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def mine(prompt, response, response_tokens, max_response_tokens, finish, bonus=0.0):\n"
        "    return {'score': response_tokens / max_response_tokens + bonus, 'long': finish == 'length'}\n"
    )
    pool = start([fn("mine", str(file), bonus=0.25)], context={"max_response_tokens": 100})
    pool.submit(0, prompt(), Response("x", tokens=50, finish="length"))
    assert collect(pool)[0]["mine"][:2] == (0.75, {"long": 1.0})
    wrong = start([fn("mine", str(file), bonsu=1)])
    with pytest.raises(ConfigError, match="reward.args.mine.bonsu: mine has no such option; did you mean bonus"):
        wrong.ready(60)


def test_the_same_verdict_of_mathematics(start: Start) -> None:
    pool = start([Fn("boxed_math", "boxed_math")], timeout_seconds=60.0, memory_mib=4096)
    for i, (gold, answer, _) in enumerate(HARD):
        pool.submit(i, Prompt("test:0", [1], gold), Response(f"\\boxed{{{answer}}}"))
    results = collect(pool)
    assert [results[i]["boxed_math"].reward for i in range(len(HARD))] == [float(verdict) for _, _, verdict in HARD]


def test_length_cosine_loads_the_rule_that_it_is_of(tmp_path: Path, start: Start) -> None:
    """A wrong `of` ends the start; one that fails on a row that is none does not."""
    (tmp_path / "of.py").write_text(
        "def batch(prompts, responses): return [1.0] * len(prompts)\n"
        "def picky(prompt, response): return len(prompt.row['choices'] if prompt.row else None)\n"
    )

    def of(name: str) -> list[Fn]:
        return [Fn("length_cosine", "length_cosine", {"of": f"{tmp_path}/of.py:{name}"})]

    context = {"max_response_tokens": 100}
    with pytest.raises(ConfigError, match="reward.args.length_cosine.of: .*of.py:batch must be"):
        start(of("batch"), memory_mib=2048, context=context).ready(60.0)
    pool = start(of("picky"), memory_mib=2048, context=context)
    pool.submit(0, Prompt("test:0", [1], "", {"choices": ["x"]}), Response("x", 50))
    assert collect(pool)[0]["length_cosine"].reward == pytest.approx(1.5)


def test_rewards_of_other_frameworks_are_called_as_there(start: Start) -> None:
    file = "examples/peer_rewards.py"
    pool = start([Fn(name, f"{file}:{name}") for name in ("brevity", "compute_score")], memory_mib=2048)
    for i, brief in enumerate((True, False)):
        pool.submit(i, Prompt(f"t:{i}", [], "72", {"answer": "72", "brief": brief}), Response("It makes 72."))
    found = collect(pool)
    assert found[0]["compute_score"].reward == 1.0 and found[0]["compute_score"].parts == {"words": 3.0}
    assert found[0]["brevity"].reward == pytest.approx(1 - 12 / 200)
    assert found[1]["brevity"].reward is None and found[1]["brevity"].status == "", "it does not apply"
