"""Which functions a sample is asked of, and what their outcomes come to. The processes are in test_pool.py."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards.manager
from rewards.manager import Result, RewardManager
from rewards.pools import gold_name
from rlcore.config import RewardConfig
from rlcore.errors import DataError
from rlcore.isolated.outcome import Outcome
from rlcore.records import Prompt, Response

Fn = Callable[[Prompt, Response], Outcome]


class FakePool:
    """Answers at the second poll, last asked first. `fns` is shared: name -> what it says."""

    fns: dict[str, Fn] = {}
    made: list[FakePool] = []

    def __init__(self, fns: Any, workers: int, timeout: float, memory: int, context: dict[str, Any]) -> None:
        self.names, self.args, self.context = [f.name for f in fns], {f.name: f.args for f in fns}, context
        self.on_request = [gold_name(name) for name in self.names]
        self.asked: list[tuple[str, Any]] = []
        self.out: list[Any] = []
        self.polls, self.most, self.pids, self.closed = 0, 0, [], False
        self.made.append(self)
        self._readable, self._write = os.pipe()
        os.write(self._write, b"!")

    @property
    def pending(self) -> int:
        return len(self.out)

    def ready(self, deadline_seconds: float) -> None: ...

    def fileno(self) -> int:
        return self._readable

    def submit(self, key: Any, prompt: Prompt, response: Response, names: list[str]) -> None:
        self.asked += [(name, key) for name in names]
        self.out += [(key, {name: self.fns[name](prompt, response)}) for name in names]

    def submit_all(self, submissions: Iterable[tuple[Any, tuple[Prompt, Response]]], names: list[str]) -> None:
        for key, (prompt, _) in submissions:
            bad = Outcome(None, status="unparseable_gold", message=f"{prompt.answer!r} is no number")
            self.out.append((key, {n: Outcome(None) if prompt.answer.isdigit() else bad for n in names}))
        self.most = max(self.most, len(self.out))

    def poll(self, wait_seconds: float) -> list[Any]:
        self.polls += 1
        if self.polls % 2:
            return []
        done, self.out = self.out[::-1], []
        return done

    def close(self) -> None:
        self.closed = True
        os.close(self._readable)
        os.close(self._write)


@pytest.fixture(autouse=True)
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rewards.manager, "reward_pool", FakePool)
    FakePool.fns, FakePool.made = {}, []
    yield
    assert all(p.closed for p in FakePool.made)


def value(x: float | None, **parts: float) -> Fn:
    return lambda prompt, response: Outcome(x, parts, seconds=0.5)


def fails(status: str = "error", message: str = "ValueError: no") -> Fn:
    return lambda prompt, response: Outcome(None, status=status, message=message, traceback="Traceback", seconds=1.0)


def score(cfg: RewardConfig, source: str = "", quarantine: Path | None = None, **fns: Fn) -> Result:
    FakePool.fns = dict(fns)
    manager = RewardManager(cfg, 256, quarantine)
    try:
        prompt = Prompt("train:3", [1], "72", {"answer": "72"}, source=source)
        manager.submit("key", prompt, Response("it is 72"))
        assert manager.pending == 1
        for _ in range(20):
            if done := manager.poll(0.01):
                break
        ((key, result),) = done
        assert key == "key" and manager.pending == 0
        return result
    finally:
        manager.close()


def of(*fns: str, **knobs: Any) -> RewardConfig:
    return RewardConfig(fns=[f"mine.{f}" for f in fns], **knobs)


def test_the_reward_is_the_weighted_sum_of_all_functions() -> None:
    result = score(of("a", "b", weights=[2.0, -0.5]), a=value(1.0, seen=3.0), b=value(0.5))
    assert result.reward == 1.75 and result.parts == {"a": 1.0, "b": 0.5, "seen": 3.0}
    assert result.status == {} and result.seconds == 1.0


@pytest.mark.parametrize(
    ("weights", "a", "clip", "reward"),
    [
        ([1.0, 1.0], 1e39, [], None),  # float32, in which a batch holds rewards, ends at 3.4e38
        ([1.0, 1.0], 3e38, [], None),  # and differences of such have none
        ([-1e300, 1.0], 1e300, [], None),
        ([1e308, 1e308], 1.5, [], None),  # no float either
        ([1.0, 1.0], 1e39, [0.0, 1.0], 1.0),
        ([0.0, 1.0], 1e39, [], 0.5),
        ([1.0, 1.0], 1e20, [], 1e20),
    ],
)
def test_a_sum_that_no_batch_can_hold_is_a_failure_of_its_largest_function(
    tmp_path: Path, weights: list[float], a: float, clip: list[float], reward: float | None
) -> None:
    result = score(of("b", "a", weights=weights[::-1], clip=clip), "", tmp_path / "q.jsonl", a=value(a), b=value(0.5))
    assert result.reward == reward
    if reward is not None:
        assert result.status == {} and not (tmp_path / "q.jsonl").exists()
        return
    assert result.status == {"a": "bad_value"} and f"a gave {a:g}, its weight is {weights[0]:g}" in result.why["a"]
    written = json.loads((tmp_path / "q.jsonl").read_text())
    assert "a gave" in json.dumps(written) and "train:3" in json.dumps(written)


def test_without_weights_each_counts_once() -> None:
    assert score(of("a", "b"), a=value(1.0), b=value(0.5)).reward == 1.5


def test_the_sum_is_clipped_and_the_parts_are_not() -> None:
    cfg = of("a", "b", clip=[-1.0, 1.0])
    result = score(cfg, a=value(5.0), b=value(0.5))
    assert (result.reward, result.parts["a"]) == (1.0, 5.0)
    assert score(cfg, a=value(-5.0), b=value(0.5)).reward == -1.0


def test_one_failure_leaves_the_sample_without_a_reward_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "run" / "quarantine.jsonl"
    result = score(of("a", "b"), quarantine=file, a=value(1.0), b=fails("timeout", "over 10 s"))
    assert result.reward is None and result.parts == {"a": 1.0}
    assert result.status == {"b": "timeout"} and result.why == {"b": "over 10 s"}
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line["function"] == "b" and line["status"] == "timeout" and line["traceback"] == "Traceback"
    assert line["prompt"] == "train:3" and line["row"] == {"answer": "72"} and line["response"] == "it is 72"


def test_failures_are_counted_by_their_message() -> None:
    FakePool.fns = {"a": fails()}
    manager = RewardManager(of("a"), 256)
    for i in range(3):
        manager.submit(i, Prompt("p", [1], ""), Response(""))
    while manager.pending:
        manager.poll(0.01)
    assert manager.errors.most_common() == [("a: error: ValueError: no", 3)]
    manager.close()


def test_failures_of_one_kind_are_counted_together_under_the_first() -> None:
    said = [f"KeyError: {key!r} at row {row}" for row, key in enumerate("abc", 17)]
    FakePool.fns = {"a": lambda p, r: fails("error", r.text)(p, r)}
    manager = RewardManager(of("a"), 256)
    for i, message in enumerate([said[0], "OSError: full", "OSError: full", *said[1:]]):
        manager.submit(i, Prompt("p", [1], ""), Response(message))
        while manager.pending:
            manager.poll(0.01)
    assert manager.errors.most_common() == [("a: error: KeyError: 'a' at row 17", 3), ("a: error: OSError: full", 2)]
    manager.close()


def test_the_quarantine_is_strict_json(tmp_path: Path) -> None:
    """A bare NaN, as Python writes it, is no JSON: jq, DuckDB and other readers refuse the line."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = {
        "f": float("nan"), "n": 1.5, "deep": [{"x": [float("inf"), (1, -math.inf)]}], "array": np.array([1.0, np.nan]),
        "scalar": np.float32("inf"), "day": datetime.date(2024, 1, 2), "flag": True, "none": None, "big": 10**400,
    }  # fmt: skip
    file = tmp_path / "quarantine.jsonl"
    FakePool.fns = {"a": fails()}
    manager = RewardManager(of("a"), 256, file)
    manager.submit(0, Prompt("p", [1], "", row), Response("lone \ud800"))
    while manager.pending:
        manager.poll(0.01)
    manager.close()
    line = json.loads(file.read_text(), parse_constant=refuse)
    assert line["row"] == {
        "f": "nan", "n": 1.5, "deep": [{"x": ["inf", [1, "-inf"]]}], "array": [1.0, "nan"], "scalar": "inf",
        "day": "2024-01-02", "flag": True, "none": None, "big": 10**400,
    }  # fmt: skip
    assert line["response"] == "lone \ud800"


def test_a_closed_gate_keeps_the_sample_from_what_is_behind_it() -> None:
    cfg = of("a", "form", "b", gate=["form"], weights=[1.0, 0.25, 1.0])
    result = score(cfg, a=value(9.0), form=value(0.0), b=value(9.0))
    assert result.reward == 0.0 and result.parts == {"form": 0.0, "gated": 1.0}
    assert {name for p in FakePool.made for name, _ in p.asked} == {"form"}, "work that is not needed"


def test_an_open_gate_counts_too_and_the_rest_is_asked() -> None:
    cfg = of("a", "form", gate=["form"], weights=[1.0, 0.25])
    result = score(cfg, a=value(1.0), form=value(1.0))
    assert result.reward == 1.25 and result.parts == {"a": 1.0, "form": 1.0, "gated": 0.0}


def test_a_functions_own_part_is_never_taken_for_the_gates() -> None:
    """`gated` 1 means accuracy 0."""
    assert score(of("a"), a=value(1.0, gated=1.0)).parts == {"a": 1.0, "a/gated": 1.0}
    result = score(of("a", "form", gate=["form"]), a=value(1.0, gated=1.0), form=value(1.0))
    assert result.parts == {"a": 1.0, "form": 1.0, "a/gated": 1.0, "gated": 0.0}


def test_a_gate_of_two_needs_both() -> None:
    cfg = of("a", "f", "g", gate=["f", "g"])
    assert score(cfg, a=value(5.0), f=value(1.0), g=value(-1.0)).reward == 0.0
    assert score(cfg, a=value(5.0), f=value(1.0), g=value(1.0)).reward == 7.0


def test_a_gate_that_fails_is_a_failure_and_no_0() -> None:
    result = score(of("a", "form", gate=["form"]), a=value(5.0), form=fails("crashed"))
    assert result.reward is None and result.status == {"form": "crashed"} and "a" not in result.parts


@pytest.mark.parametrize(
    ("source", "asked", "reward"),
    [("gsm8k", {"number", "form"}, 1.25), ("MATH", {"boxed", "form"}, 2.25), ("other", {"form"}, 0.25)],
)
def test_a_source_has_its_own_functions(source: str, asked: set[str], reward: float) -> None:
    cfg = of("number", "boxed", "form", sources={"gsm8k": ["number"], "MATH": ["boxed"]})
    result = score(cfg, source, number=value(1.0), boxed=value(2.0), form=value(0.25))
    assert result.reward == reward and set(result.parts) == asked
    assert {name for p in FakePool.made for name, _ in p.asked} == asked


def test_a_function_may_serve_two_sources() -> None:
    cfg = of("a", "b", sources={"x": ["a"], "y": ["a", "b"]})
    assert score(cfg, "x", a=value(1.0), b=value(5.0)).reward == 1.0
    assert score(cfg, "y", a=value(1.0), b=value(5.0)).reward == 6.0


def test_a_function_that_does_not_apply_adds_nothing() -> None:
    result = score(of("a", "b"), a=value(None), b=value(0.5))
    assert result.reward == 0.5 and result.parts == {"b": 0.5} and result.status == {}


def test_where_no_function_applies_there_is_no_reward() -> None:
    result = score(of("a"), source="odd", a=value(None))
    assert result.reward is None and result.status == {"reward": "bad_value"}
    assert "no function gave a score to a row of odd" in result.why["reward"]


def test_a_source_that_nothing_scores_is_found_before_the_run() -> None:
    manager = RewardManager(of("a", sources={"x": ["a"]}), 256)
    with pytest.raises(DataError, match=r"no reward function scores rows of y: reward\.sources"):
        manager.unscorable([Prompt("t:0", [1], "1", source="x"), Prompt("t:1", [1], "1", source="y")], 5.0)
    manager.close()


def test_a_source_that_no_row_is_of_is_named() -> None:
    """A misspelt one would switch its function off for the rows it was meant for."""
    manager = RewardManager(of("a", "b", sources={"gsm": ["a"], "MATH": ["a"]}), 256)
    rows = [Prompt("t:0", [1], "1", source="gsm8k"), Prompt("t:1", [1], "1", source="MATH")]
    with pytest.raises(
        DataError, match=r"reward\.sources\.gsm: no row .*; did you mean gsm8k\?; there are MATH, gsm8k"
    ):
        manager.require_sources(rows)
    manager.require_sources([*rows, Prompt("t:2", [1], "1", source="gsm")])
    manager.close()


def test_gold_answers_are_read_by_the_rules_that_will_score_their_rows() -> None:
    cfg = RewardConfig(fns=["countdown", "knights_knaves", "mine.a"], sources={"kk": ["knights_knaves"]})
    manager = RewardManager(cfg, 256)
    rows = [Prompt(f"t:{i}", [1], answer, source="cd") for i, answer in enumerate(["1", "x", "2", "y"])]
    bad = manager.unscorable(rows, 5.0)
    assert [(p.id, why) for p, why in bad] == [
        ("t:1", "countdown: 'x' is no number"),
        ("t:3", "countdown: 'y' is no number"),
    ]
    assert FakePool.made[1].polls == 0, "a user's function reads no gold answers ahead"
    manager.close()


def test_a_data_set_does_not_wait_in_the_pool_as_a_whole() -> None:
    manager = RewardManager(RewardConfig(fns=["countdown"]), 256)
    rows = [Prompt(f"t:{i}", [1], "x" if i % 3 == 0 else "1") for i in range(30_000)]
    assert [p.id for p, _ in manager.unscorable(rows, 60.0)] == [f"t:{i}" for i in range(0, 30_000, 3)]
    assert 64 <= FakePool.made[0].most <= 5_000
    manager.close()


def test_rules_share_processes_and_every_other_function_has_its_own() -> None:
    cfg = RewardConfig(fns=["countdown", "mine.a", "format", "b.py:score"], args={"score": {"x": 1}})
    manager = RewardManager(cfg, 99)
    assert [p.names for p in FakePool.made] == [["countdown", "format"], ["a"], ["score"]]
    assert FakePool.made[2].args == {"score": {"x": 1}} and FakePool.made[0].context == {"max_response_tokens": 99}
    manager.close()


def test_parts_of_one_name_are_kept_apart() -> None:
    result = score(of("a", "b"), a=value(1.0, seen=1.0, b=7.0), b=value(2.0, seen=5.0))
    assert result.parts == {"a": 1.0, "b": 2.0, "seen": 1.0, "a/b": 7.0, "b/seen": 5.0}


def test_many_samples_come_back_with_their_keys() -> None:
    FakePool.fns = {"a": lambda p, r: Outcome(float(p.answer)), "b": lambda p, r: Outcome(float(r.text))}
    manager = RewardManager(of("a", "b", gate=["a"]), 256)
    for i in range(50):
        manager.submit(("k", i), Prompt(f"p:{i}", [1], str(i)), Response(str(100 * i)))
    got: dict[Any, float | None] = {}
    while manager.pending:
        got |= {key: result.reward for key, result in manager.poll(0.01)}
    assert got == {("k", i): float(101 * i) for i in range(50)}
    manager.close()
