"""The remote reward against servers on loopback that keep the protocol and that break it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rewards.over_http import remote
from rewards.over_http.http import EndpointError, NoAnswer
from rewards.over_http.remote import Remote
from rewards.signatures import Fn
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.records import Prompt, Response, Score
from tests.processes.loopback import Answer, Loopback, closed_port_url, serving
from tests.processes.pools import Start, collect

pytestmark = pytest.mark.usefixtures("waits")


def prompts(n: int) -> list[Prompt]:
    message = {"role": "user", "content": "2 + 2?"}
    return [Prompt(id=f"test:{i}", tokens=[1], answer="4", row={"i": i}, messages=[message]) for i in range(n)]


def ask(server: Loopback | str, n: int, **options: Any) -> list[Any]:
    url = server if isinstance(server, str) else f"{server.url}/score"
    return asyncio.run(Remote(url, **options)(prompts(n), [f"It is {i}." for i in range(n)]))


def results(*entries: Any) -> Answer:
    return Answer({"results": list(entries)})


def test_what_is_sent_and_what_comes_back() -> None:
    with serving(results({"reward": 1, "parts": {"a": 0.5}}, {"reward": False}, {"status": "skipped"})) as server:
        assert ask(server, 3) == [Score(1.0, {"a": 0.5}), Score(0.0, {}), None]
    assert server.paths == ["/score"]
    assert "authorization" not in server.headers[0]
    (body,) = server.bodies
    assert body["version"] == 1
    assert body["samples"][2] == {
        "prompt": {
            "id": "test:2",
            "messages": [{"role": "user", "content": "2 + 2?"}],
            "answer": "4",
            "row": {"i": 2},
            "opened": "",
        },
        "response": {"text": "It is 2."},
    }


def test_tokens_and_finish_where_they_are_known() -> None:
    with serving(results({"reward": 1}, {"reward": 2})) as server:
        asyncio.run(Remote(server.url)(prompts(2), ["a", "b"], response_tokens=[5, 6], finish=["stop", "length"]))
    assert [s["response"] for s in server.bodies[0]["samples"]] == [
        {"text": "a", "tokens": 5, "finish": "stop"},
        {"text": "b", "tokens": 6, "finish": "length"},
    ]


def test_a_column_of_another_length_is_our_bug() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        asyncio.run(Remote("http://127.0.0.1:1")(prompts(2), ["a", "b"], finish=["stop"]))


def test_nothing_to_score_asks_nobody() -> None:
    assert ask("http://127.0.0.1:1/score", 0) == []


def test_rows_and_texts_of_any_kind_arrive() -> None:
    prompt = Prompt(id="t", tokens=[], answer="", row={"x": float("nan"), "y": [float("inf"), (1.0, {})], "z": {1, 2}})
    with serving(results({"reward": 1})) as server:
        asyncio.run(Remote(server.url)([prompt], ['{"reward": 9} \ud800 \x00 "']))
    (sample,) = server.bodies[0]["samples"]
    assert sample["prompt"]["row"] == {"x": None, "y": [None, [1.0, {}]], "z": "{1, 2}"}
    assert sample["response"]["text"] == '{"reward": 9} \ud800 \x00 "'


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (1.0, r"results\[1\] is float 1.0, not an object"),
        (None, r"results\[1\] is NoneType"),
        ([1.0], r"results\[1\] is list"),
        ({}, r"results\[1\] has neither reward nor status, only nothing"),
        ({"score": 1.0}, "neither reward nor status, only score"),
        ({"reward": None}, r"results\[1\].reward is NoneType None, not a finite number"),
        ({"reward": "1.0"}, "reward is str"),
        ({"reward": [1.0]}, "reward is list"),
        ({"reward": float("nan")}, "reward is float nan"),
        ({"reward": float("-inf")}, "reward is float -inf"),
        ({"reward": 10**400}, "reward is int 1000"),
        ({"reward": 1, "parts": [1]}, r"results\[1\].parts is list"),
        ({"reward": 1, "parts": {"a": float("nan")}}, r"results\[1\].parts.a is float nan"),
        ({"reward": 1, "parts": {"a": "x"}}, r"parts.a is str"),
        ({"status": "fine"}, r"results\[1\].status is 'fine', not one of error, timeout"),
        ({"status": None}, "status is None"),
        ({"status": ["error"]}, "status is"),
        ({"status": "bad_value", "message": "returned a list"}, "bad_value: returned a list"),
    ],
)
def test_an_entry_that_is_wrong_fails_its_sample_only(entry: Any, words: str) -> None:
    with serving(results({"reward": 1}, entry, {"reward": 3})) as server:
        first, second, third = ask(server, 3)
    assert (first, third) == (Score(1.0, {}), Score(3.0, {}))
    with pytest.raises(remote.BadValue, match=words) as e:
        raise second
    assert server.url in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("error", EndpointError),
        ("crashed", EndpointError),
        ("timeout", TimeoutError),
        ("unparseable_gold", UnparseableGold),
    ],
)
def test_a_failure_over_there_keeps_its_kind(status: str, kind: type[Exception]) -> None:
    with serving(results({"status": status, "message": "no luck", "reward": 1.0})) as server:
        (got,) = ask(server, 1)
    assert type(got) is kind and str(got).endswith(f"results[0]: {status}: no luck")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"results": [{"reward": 1.0}]}, "1 results for 3 samples"),
        ({"results": [{"reward": 1.0}] * 4}, "4 results for 3 samples"),
        ({"results": []}, "0 results for 3 samples"),
        ({"results": 1.0}, "the reply must be"),
        ({"results": {"reward": 1.0}}, "the reply must be"),
        ({"rewards": [1.0, 1.0, 1.0]}, "the reply must be.*rewards"),
        ([1.0, 1.0, 1.0], "the reply must be"),
        (1.0, "the reply must be"),
        (None, "the reply must be"),
    ],
)
def test_nothing_is_broadcast(body: Any, words: str) -> None:
    with serving(Answer(body)) as server, pytest.raises(remote.BadValue, match=words):
        ask(server, 3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(b"<html>"), "not JSON"),
        (Answer(b'{"results": [' * 50_000), "not JSON"),
        (Answer({"error": "samples[2].response.text is missing"}, 400), r"400 samples\[2\].response.text is missing"),
        (Answer({"error": "Bearer"}, 401), "401 Bearer"),
        (Answer(code=307, headers={"Location": "/there"}), "307.*moved to /there"),
        (Answer({"detail": "cannot"}, 500), r"500 cannot \(2 tries\)"),
    ],
)
def test_a_refused_batch_raises(answer: Answer, words: str) -> None:
    """The pool then sends its samples one by one."""
    with serving(answer) as server, pytest.raises(EndpointError, match=words):
        ask(server, 3, retries=1)


def test_nobody_there_fails_every_sample_in_one_go() -> None:
    got = ask(closed_port_url(), 3, retries=1)
    assert len(got) == 3 and all(type(e) is NoAnswer and "(2 tries)" in str(e) for e in got)
    with serving(Answer(delay_seconds=60)) as server:
        got = ask(server, 2, retries=0, request_timeout_seconds=0.1)
    assert len(got) == 2 and all(type(e) is TimeoutError for e in got)


def test_in_the_pool(start: Start) -> None:
    """Batches, with lengths and endings; a refused batch is asked again one by one: the one at fault alone fails."""

    def answer(body: Any) -> Answer:
        texts = [sample["response"]["text"] for sample in body["samples"]]
        if "refuse" in texts:
            return Answer({"error": "what is that?"}, 400)
        if "short" in texts:
            return results(*[{"reward": 1}] * (len(texts) - 1))
        lengths = [sample["response"]["tokens"] for sample in body["samples"]]
        entries = [{"reward": n} for n in lengths]
        if "fail" in texts:
            entries[texts.index("fail")] = {"status": "error", "message": "no"}
        return results(*entries)

    texts = ["a", "refuse", "b", "short", "fail", "c"]
    with serving(answer) as server:
        pool = start([Fn("remote", "rewards.over_http.remote.Remote", {"url": server.url})], memory_mib=4096)
        for i, text in enumerate(texts):
            pool.submit(i, prompts(1)[0], Response(text, tokens=i, finish="length"))
        got = {i: outcomes["remote"] for i, outcomes in collect(pool).items()}
    assert [got[i].status for i in range(6)] == ["", "error", "", "bad_value", "error", ""]
    assert [got[i].reward for i in range(6)] == [0.0, None, 2.0, None, None, 5.0]
    assert "400 what is that?" in got[1].message and "0 results for 1 samples" in got[3].message
    assert any(len(body["samples"]) > 1 for body in server.bodies)
    assert server.bodies[0]["samples"][0]["response"]["finish"] == "length"


def test_busy_then_fine() -> None:
    busy = Answer(code=503, headers={"Retry-After": "0"})
    with serving(busy, Answer(drop=True), results({"reward": 1})) as server:
        assert ask(server, 1) == [Score(1.0, {})]
        assert server.bodies[0] == server.bodies[1] == server.bodies[2]


def test_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TOKEN", "t0ken")
    with serving(results({"reward": 1})) as server:
        ask(server, 1, token_env="TEST_TOKEN")
    assert server.headers[0]["authorization"] == "Bearer t0ken"
    with pytest.raises(ConfigError, match="remote: token_env: the environment variable NO_TOKEN is not set"):
        ask(server, 1, token_env="NO_TOKEN")


def test_concurrency_limit() -> None:
    with serving(Answer({"results": [{"reward": 1}]}, delay_seconds=0.05)) as server:
        ours = Remote(server.url, concurrency=2)

        async def many() -> list[Any]:
            return await asyncio.gather(*(ours(prompts(1), ["x"]) for _ in range(8)))

        assert asyncio.run(many()) == [[Score(1.0, {})]] * 8
        assert server.most_at_once == 2


@pytest.mark.parametrize("url", ["localhost:8010/score", "", None, "file:///etc/passwd"])
def test_an_url_that_cannot_be(url: Any) -> None:
    with pytest.raises(ConfigError, match="remote: url"):
        Remote(url)
