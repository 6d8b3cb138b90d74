"""`rlcore serve-reward`: the real program over real sockets, and what it makes of requests that are wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rewards.over_http import serve
from rewards.over_http.http import EndpointError
from rewards.over_http.remote import Remote
from rewards.over_http.serve import PoolThread, Server
from rewards.over_http.serve_requests import Refusal, samples_of
from rlcore.cli.serve_reward import MAKE_TOKEN, serve_reward, token_for
from rlcore.compose.compose import compose
from rlcore.errors import ConfigError, RewardError, UnparseableGold
from rlcore.isolated.outcome import BadValue, Outcome
from rlcore.records import Prompt, Response, Score

REPO = Path(__file__).parents[2]

# One function that does what the response says.
FUNCTION = """
import os, pathlib, time
from rlcore.errors import UnparseableGold
from rlcore.records import Score

def act(prompt, response, response_tokens, finish, bonus=0.0):
    if response == "hang":
        time.sleep(1000)
    if response.startswith("wait:"):
        while not pathlib.Path(response[5:]).exists():
            time.sleep(0.01)
    if response == "exit":
        os._exit(1)
    if response == "raise":
        raise RuntimeError("no such luck \\ud800 " + prompt.id)
    if response == "nan":
        return float("nan")
    if response == "late":
        raise TimeoutError("took too long")
    if response == "gold":
        raise UnparseableGold(f"not a number {prompt.opened}")
    if response == "none":
        return None
    if response == "token":
        return "RLCORE_REWARD_TOKEN" in os.environ
    if response == "all":
        assert prompt.messages == [{"role": "user", "content": "?"}] and prompt.row == {"i": 7} and prompt.id == "a:7"
        return Score(bonus, {"tokens": response_tokens, "cut": finish == "length"})
    return response == prompt.answer
"""

PROGRAM = "from rlcore.cli import main; main()"


class Program:
    """A running serve-reward."""

    def __init__(self, directory: Path, *args: str, token: str = "") -> None:
        file = directory / "mine.py"
        file.write_text(FUNCTION)
        command = [sys.executable, "-c", PROGRAM, "serve-reward", f"{file}:act", "--port", "0", *args]
        environment = os.environ | {"PYTHONPATH": str(REPO), "RLCORE_REWARD_TOKEN": token, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=environment,
            # Started from a background shell it would inherit that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        if "http://" not in self.line:
            self.process.kill()
            raise AssertionError(f"{self.line!r}, {self.process.communicate()[1]}")
        self.url = self.line.partition(".url=")[2].split()[0]
        self.health = self.url.replace("/score", "/health")
        self.family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """(exit code, what it wrote on stderr), after a signal."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def left(self) -> list[psutil.Process]:
        """Those of its processes that are still there after it."""
        return psutil.wait_procs([p for p in self.family if p.pid != self.process.pid], timeout=20)[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    arguments = ("--workers", "2", "--timeout", "300", "--args", '{"bonus": 0.5}')
    running = Program(tmp_path_factory.mktemp("serve"), *arguments)
    yield running
    running.stop(signal.SIGKILL)


def sample(text: str, answer: str = "4") -> dict[str, Any]:
    return {"prompt": {"id": "t:0", "answer": answer}, "response": {"text": text}}


def post(url: str, *samples: Any, **more: Any) -> httpx.Response:
    return httpx.post(url, json={"version": 1, "samples": samples}, timeout=60, **more)


def test_scores_and_statuses(program: Program) -> None:
    everything = {
        "prompt": {"id": "a:7", "answer": "", "row": {"i": 7}, "messages": [{"role": "user", "content": "?"}]},
        "response": {"text": "all", "tokens": 12, "finish": "length"},
    }
    texts = ("4", "5", "raise", "nan", "gold", "none", "exit", "late", "4")
    reply = post(program.url, everything, *map(sample, texts))
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    full, right, wrong, *failed, last = reply.json()["results"]
    assert full == {"reward": 0.5, "parts": {"tokens": 12.0, "cut": 1.0}}
    assert (right, wrong, last) == ({"reward": 1.0, "parts": {}}, {"reward": 0.0, "parts": {}}, right)
    statuses = ["error", "bad_value", "unparseable_gold", "bad_value", "crashed", "timeout"]
    assert [f["status"] for f in failed] == statuses
    assert "no such luck" in failed[0]["message"] and all(f.keys() == {"status", "message"} for f in failed)


def test_our_client_speaks_it(program: Program) -> None:
    messages = [{"role": "user", "content": "?"}]
    prompts = [Prompt(id="a:7", tokens=[1], answer="4", row={"i": 7}, messages=messages)] * 5
    prompts[3] = dataclasses.replace(prompts[3], opened="<think>")
    texts = ["4", "raise", "nan", "gold", "all"]
    got = asyncio.run(Remote(program.url)(prompts, texts, response_tokens=[1] * 5, finish=["stop"] * 5))
    assert (got[0], got[4]) == (Score(1.0, {}), Score(0.5, {"tokens": 1.0, "cut": 0.0}))
    assert [type(e) for e in got[1:4]] == [EndpointError, BadValue, UnparseableGold] and "<think>" in str(got[3])


def test_health_and_wrong_doors(program: Program) -> None:
    base = program.url.removesuffix("/score")
    assert httpx.get(program.health).json() == {"status": "ok", "version": 1, "function": "act", "waiting": 0}
    assert httpx.get(program.url).status_code == 405
    assert httpx.post(f"{base}/", json={}).status_code == 404


def test_a_slow_request_holds_up_nobody(tmp_path: Path) -> None:
    patient = Program(tmp_path, "--workers", "2", "--timeout", "300")  # a busy machine must not make it a timeout
    go = tmp_path / "go"
    slow: list[Any] = []
    thread = threading.Thread(target=lambda: slow.append(post(patient.url, sample(f"wait:{go}", f"wait:{go}")).json()))
    try:
        thread.start()
        for _ in range(3):
            assert post(patient.url, sample("4")).json()["results"][0]["reward"] == 1.0
        assert not slow
    finally:
        go.touch()
        thread.join()
        patient.stop(signal.SIGKILL)
    assert slow[0]["results"] == [{"reward": 1.0, "parts": {}}]


def test_many_requests_at_once(program: Program) -> None:
    async def many() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            bodies = [{"version": 1, "samples": [sample(str(i), str(i % 3)) for i in range(n)]} for n in range(20)]
            return await asyncio.gather(*(client.post(program.url, json=b) for b in bodies))

    for n, reply in enumerate(asyncio.run(many())):
        assert [r["reward"] for r in reply.json()["results"]] == [float(i < 3) for i in range(n)]


def test_a_client_that_hangs_up_harms_nobody(program: Program, tmp_path: Path) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(program.url, json={"version": 1, "samples": [sample(f"wait:{tmp_path}/go")]}, timeout=0.1)
    assert post(program.url, sample("4")).json()["results"][0]["reward"] == 1.0
    (tmp_path / "go").touch()


def test_a_client_that_leaves_within_its_body_is_no_traceback() -> None:
    messages: list[Any] = [{"type": "http.request", "body": b'{"ver', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [(b"content-type", b"application/json")]}
    thread = PoolThread(FakePool(), on_failure=lambda: None)  # type: ignore[arg-type]
    asyncio.run(Server(thread, "f", None).app()(scope, receive, send))
    assert not messages and sent[0]["status"] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"1" * 5000, b"\xff", b'{"version": 1, "samples": [NaN'])
def test_what_is_not_json(program: Program, body: bytes) -> None:
    reply = httpx.post(program.url, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and "the body is not JSON" in reply.json()["error"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_web_page_cannot_post(program: Program, kind: str) -> None:
    """A browser sends these without asking the server first."""
    body = json.dumps({"version": 1, "samples": [sample("4")]})
    assert httpx.post(program.url, content=body, headers={"Content-Type": kind} if kind else {}).status_code == 415


WRONG = [
    ([], "the body is a list, must be an object"),
    (None, "the body is null"),
    ("x", "the body is text"),
    ({"samples": []}, "version is null, this server speaks 1"),
    ({"version": "1", "samples": []}, 'version is "1"'),
    ({"version": 2, "samples": []}, "version is 2"),
    ({"version": 1}, "samples is missing"),
    ({"version": 1, "samples": {}}, "samples is an object, must be a list"),
]
WRONG_SAMPLES = [
    (None, "samples[1] is null, must be an object"),
    ([], "samples[1] is a list, must be an object"),
    ({"response": {"text": "4"}}, "samples[1].prompt is missing"),
    ({"prompt": {}}, "samples[1].response is missing"),
    ({"prompt": {}, "response": "4"}, "samples[1].response is text, must be an object"),
    ({"prompt": {}, "response": {}}, "samples[1].response.text is missing"),
    ({"prompt": {}, "response": {"text": None}}, "samples[1].response.text is null, must be text"),
    ({"prompt": {}, "response": {"text": 4}}, "samples[1].response.text is 4, must be text"),
    ({"prompt": {}, "response": {"text": "", "tokens": 1.5}}, "samples[1].response.tokens is 1.5, must be a whole"),
    ({"prompt": {}, "response": {"text": "", "tokens": True}}, "samples[1].response.tokens is true"),
    ({"prompt": {}, "response": {"text": "", "tokens": -1}}, "samples[1].response.tokens is -1"),
    ({"prompt": {}, "response": {"text": "", "finish": 1}}, "samples[1].response.finish is 1, must be text"),
    ({"prompt": {"id": 7}, "response": {"text": ""}}, "samples[1].prompt.id is 7, must be text"),
    ({"prompt": {"answer": 72}, "response": {"text": ""}}, "samples[1].prompt.answer is 72, must be text"),
    ({"prompt": {"row": []}, "response": {"text": ""}}, "samples[1].prompt.row is a list, must be an object"),
    ({"prompt": {"messages": {}}, "response": {"text": ""}}, "samples[1].prompt.messages is an object, must be a list"),
    ({"prompt": {"messages": ["?"]}, "response": {"text": ""}}, "samples[1].prompt.messages must be a list of objects"),
]


def test_a_wrong_field_is_named() -> None:
    wrong = []
    of_samples = [({"version": 1, "samples": [sample("4"), s]}, words) for s, words in WRONG_SAMPLES]
    for body, words in WRONG + of_samples:
        with pytest.raises(Refusal) as e:
            samples_of(body)
        if e.value.code != 400 or words not in str(e.value) or len(str(e.value)) >= 200:
            wrong.append((body, words, e.value.code, str(e.value)))
    assert wrong == []


def test_a_wrong_field_is_named_to_the_client(program: Program) -> None:
    reply = post(program.url, sample("4"), {"prompt": {}, "response": {}})
    assert (reply.status_code, reply.json()) == (400, {"error": "samples[1].response.text is missing"})


def test_what_may_be_left_out() -> None:
    ((prompt, response),) = samples_of({"version": 1, "samples": [{"prompt": {}, "response": {"text": "x"}}], "a": 1})
    assert (prompt, response) == (Prompt(id="", tokens=[], answer=""), Response("x", 0, "stop"))
    assert samples_of({"version": 1, "samples": []}) == []


def test_token(tmp_path: Path) -> None:
    running = Program(tmp_path, token="t0ken-u")  # short, on loopback
    try:
        assert "with token" in running.line and "t0ken" not in running.line
        assert "reward.args.remote.token_env=RLCORE_REWARD_TOKEN" in running.line
        for wrong in ({}, {"Authorization": "t0ken-u"}, {"Authorization": "Bearer t0ken"}, {"X": "Bearer t0ken-u"}):
            assert post(running.url, sample("4"), headers=wrong).status_code == 401
            assert httpx.get(running.health, headers=wrong).status_code == 401
        with_bytes = httpx.Headers([(b"Authorization", b"Bearer t0ken-\xff")])
        assert post(running.url, sample("4"), headers=with_bytes).status_code == 401
        assert httpx.get(running.health, headers={"Authorization": "bearer t0ken-u"}).status_code == 200
        right = {"Authorization": "Bearer t0ken-u"}
        assert httpx.get(running.health, headers=right).status_code == 200
        reply = post(running.url, sample("4"), sample("token"), headers=right).json()
        assert [r["reward"] for r in reply["results"]] == [1.0, 0.0]  # the function does not see the token
    finally:
        assert running.stop(signal.SIGTERM)[0] == 143
    assert not running.left()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """Even while a sample hangs and its client waits: that one is told."""
    running = Program(tmp_path, "--workers", "2", "--timeout", "1000")
    assert len(running.family) >= 3
    post(running.url, *[sample("raise")] * 5)
    waiting: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: waiting.append(post(running.url, sample("hang"))))
    thread.start()
    while httpx.get(running.health).json()["waiting"] == 0:
        pass
    code, errors = running.stop()
    thread.join()
    assert code == 130 and "stopped by" in errors and "ASGI" not in errors
    assert errors.count("RuntimeError: no such luck") == 2 and "in act" in errors  # shown once, with its traceback
    assert (waiting[0].status_code, waiting[0].json()) == (503, {"error": "the server is stopping"})
    assert not running.left()


def test_ctrl_c_hangs_up_on_who_never_ends_a_request(tmp_path: Path) -> None:
    running = Program(tmp_path, "--timeout", "0.2")
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port)) as client:
        headers = ("POST /score HTTP/1.1", "Host: a", "Content-Type: application/json", "Content-Length: 9")
        client.sendall("\r\n".join([*headers, "", "{"]).encode())
        late = post(running.url, sample("hang")).json()["results"][0]  # the other one has been read by then
        code, errors = running.stop()
    assert late == {"status": "timeout", "message": "took longer than 0.2 s (reward.timeout_seconds)"}
    assert code == 130 and errors.strip().splitlines()[-1] == "rlcore: stopped by Ctrl-C", errors
    assert "ASGI" not in errors and "Traceback" not in errors


@pytest.mark.parametrize("args", [["--workers", "0"], ["--timeout", "0"], ["--timeout", "nan"], ["--memory-mib", "1"]])
def test_limits_are_refused_by_their_flags(args: list[str]) -> None:
    with pytest.raises(ConfigError, match="--workers must be at least 1, --timeout above 0, --memory-mib at least 256"):
        serve_reward(["x.py:f", *args])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.invalid", ""])
def test_other_hosts_need_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "  "):
        monkeypatch.setenv("RLCORE_REWARD_TOKEN", token)
        with pytest.raises(ConfigError, match="set RLCORE_REWARD_TOKEN"):
            serve_reward(["x.py:f", "--host", host])
    for token in ("x", "S3cret-15-chars"):
        monkeypatch.setenv("RLCORE_REWARD_TOKEN", token)
        with pytest.raises(
            ConfigError, match=f"at least 16 .* its {len(token)} characters .*secrets.token_urlsafe"
        ) as e:
            serve_reward(["x.py:f", "--host", host])
        assert "S3cret" not in str(e.value)
    monkeypatch.setenv("RLCORE_REWARD_TOKEN", "S3cret-16-chars.")
    assert token_for(host) == "S3cret-16-chars."
    monkeypatch.setenv("RLCORE_REWARD_TOKEN", "long and secret")
    with pytest.raises(ConfigError, match="characters that a header") as e:
        serve_reward(["x.py:f", "--host", host])
    assert "secret" not in str(e.value)


def test_how_to_make_a_token_works(monkeypatch: pytest.MonkeyPatch) -> None:
    command = MAKE_TOKEN.replace("$(python ", f"$({sys.executable} ")
    made = subprocess.run(["sh", "-c", f"{command}; echo $RLCORE_REWARD_TOKEN"], capture_output=True, text=True)
    assert len(made.stdout) > 30
    monkeypatch.setenv("RLCORE_REWARD_TOKEN", made.stdout)
    assert token_for("0.0.0.0") == made.stdout.strip()


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/score"),
        ("0.0.0.0", "http://HOST:80/score"),
        ("::", "http://HOST:80/score"),
        ("::1", "http://[::1]:80/score"),
    ],
)
def test_the_printed_hint_can_be_pasted(host: str, url: str, token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is a run that scores here: nothing in it is refused."""
    monkeypatch.setenv("RLCORE_REWARD_TOKEN", "S3cret-16-chars.")
    composed, _ = compose("demo", shlex.split(serve.usage(host, 80, token)))
    args = {"url": url} | ({"token_env": "RLCORE_REWARD_TOKEN"} if token else {})
    assert composed.config.reward.fns == ["remote"] and composed.config.reward.args == {"remote": args}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert token_for(host) is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing_such.py:f"], "no file nothing_such.py"),
        (["no_such_rule"], "no_such_rule"),
        (["gsm8k", "--args", "{"], "--args is not JSON"),
        (["gsm8k", "--args", "[1]"], "--args must be an object"),
        (["gsm8k", "--args", '{"tolerance": 1}'], "tolerance"),
        (["gsm8k", "--port", "99999"], "cannot listen"),
        (["gsm8k", "--workers", "0"], "workers"),
    ],
)
def test_what_cannot_be_served(args: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve_reward([*args, "--port", "0"] if "--port" not in args else args)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="cannot listen on 127.0.0.1 port"):
            serve_reward(["gsm8k", "--port", str(taken.getsockname()[1])])


class FakePool:
    """Scores nothing; `break_` makes it fail, as a pool does whose workers cannot be kept alive."""

    names = ["f"]

    def __init__(self) -> None:
        self.submitted = 0
        self.broken = False
        self._read, self._write = socket.socketpair()

    def fileno(self) -> int:
        return self._read.fileno()

    def submit(self, key: Any, prompt: Prompt, response: Response) -> None:
        self.submitted += 1

    def break_(self) -> None:
        self.broken = True
        self._write.send(b"x")

    def poll(self, wait_seconds: float) -> list[tuple[Any, dict[str, Outcome]]]:
        if self.broken:
            raise RewardError("workers died")
        return []


def test_a_pool_that_cannot_go_on_ends_every_request() -> None:
    pool, ended = FakePool(), threading.Event()
    thread = PoolThread(pool, on_failure=ended.set)  # type: ignore[arg-type]
    thread.start()
    transport = httpx.ASGITransport(app=Server(thread, "f", None).app())

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"version": 1, "samples": [sample("4")] * 3}
            waiting = [asyncio.create_task(client.post("/score", json=body)) for _ in range(2)]
            while pool.submitted < 6:
                await asyncio.sleep(0.01)
            pool.break_()
            assert await asyncio.to_thread(ended.wait, 30)
            return [
                *await asyncio.gather(*waiting),
                await client.post("/score", json=body),
                await client.get("/health"),
            ]

    replies = asyncio.run(run())
    thread.end()
    assert [r.status_code for r in replies] == [503] * 4 and all("workers died" in r.text for r in replies)
    assert thread.waiting == 0


def test_too_much() -> None:
    thread = PoolThread(FakePool(), on_failure=lambda: None)  # type: ignore[arg-type]
    thread.waiting = 20_001
    transport = httpx.ASGITransport(app=Server(thread, "f", None).app())

    async def run(text: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/score", json={"version": 1, "samples": [sample(text)]})

    assert asyncio.run(run("x" * (64 << 20))).status_code == 413
    busy = asyncio.run(run("4"))
    assert busy.status_code == 503 and "20001 samples are waiting" in busy.text and busy.headers["retry-after"]
