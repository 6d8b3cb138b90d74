"""`rlcore serve-reward FILE.py:fn`: a reward function behind the protocol of remote.py, scored in the same
isolated, killable workers as in training.

On loopback unless RLCORE_REWARD_TOKEN is set, to a token of at least 16 characters: whoever reaches the port can make
the function run on a text of theirs. With a token every request needs `Authorization: Bearer TOKEN`. The traffic is not
encrypted: across an untrusted network put it behind TLS.

`asyncio` talks HTTP on the main thread; one more thread owns the pool, which takes one thread at a time. All requests
share it, so a hanging sample holds up its own request only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import queue
import re
import select
import shlex
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from rewards.outcomes import Outcome
from rewards.over_http.remote import VERSION
from rewards.over_http.serve_requests import Refusal, result, samples_of
from rewards.signatures import Fn
from rlcore.errors import ConfigError
from rlcore.isolated.pool import Pool
from rlcore.records import Prompt, Response

TOKEN_VARIABLE = "RLCORE_REWARD_TOKEN"

_TOKEN_CHARACTERS = 16  # at least, where other machines can try tokens
_MAKE_TOKEN = f"export {TOKEN_VARIABLE}=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')"
_CLIENT_SECONDS = 120  # the hint's reward.timeout_seconds, above what one request of `remote` may take

_LOAD_SECONDS = 300.0  # for the function to load in every worker
_BODY_BYTES = 64 << 20
_WAITING_SAMPLES = 20_000  # more than this and a request is told to come again
_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 2  # of Ctrl-C, for the requests that are being answered; after half of it clients are hung up on
_TRACEBACKS = 20  # shown on stderr, one a message: the first failures tell, the thousandth does not


class Scorer(threading.Thread):
    """The thread that owns the pool. `score` may be awaited by any number of requests at once.

    It has ended when `stop` was called or the pool cannot go on (then `failed` says why): every `score` then, and every
    one that is waiting, raises a Refusal.
    """

    def __init__(self, pool: Pool, on_failure: Callable[[], None]) -> None:
        super().__init__(name="rlcore-scorer", daemon=True)
        self.failed: Exception | None = None
        self.waiting = 0
        self._pool, self._on_failure = pool, on_failure
        self._asked: queue.SimpleQueue[tuple[Prompt, Response, Callable[[Outcome | None], None]]] = queue.SimpleQueue()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._stopping = self._ended = False

    async def score(self, samples: list[tuple[Prompt, Response]]) -> list[Outcome]:
        """What the function says of each sample."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Outcome | None]] = [loop.create_future() for _ in samples]
        self.waiting += len(samples)
        try:
            for (prompt, response), future in zip(samples, futures, strict=True):
                self._asked.put((prompt, response, _setter(loop, future)))
            self._notify()
            outcomes = [await future for future in futures]
        finally:
            self.waiting -= len(samples)
        scored = [outcome for outcome in outcomes if outcome is not None]
        if len(scored) < len(samples):
            raise Refusal(503, "the server is stopping" if self.failed is None else str(self.failed))
        return scored

    def stop(self) -> None:
        """Drop what is being scored and take no more."""
        self._stopping = True
        self._notify()

    def end(self) -> None:
        """`stop`, and end the thread: the pool is free for another."""
        self._stopping = self._ended = True
        self._notify()
        self.join()
        self._wake.close()
        self._waker.close()

    def run(self) -> None:
        """Move samples into the pool and outcomes out of it until `stop`. From then on every sample gets None."""
        waiting: dict[int, Callable[[Outcome | None], None]] = {}
        number = 0
        try:
            while not self._stopping:
                select.select([self._wake, self._pool.fileno()], [], [], _LOOK_SECONDS)
                self._slept()
                for prompt, response, answer in self._new():
                    number += 1
                    waiting[number] = answer
                    self._pool.submit(number, prompt, response)
                for key, outcomes in self._pool.poll(0.0):
                    waiting.pop(key)(outcomes[self._pool.names[0]])
        except Exception as e:
            self.failed = e
            self._on_failure()
        while not self._ended:
            for answer in [*waiting.values(), *(answer for _, _, answer in self._new())]:
                answer(None)
            waiting.clear()
            select.select([self._wake], [], [], _LOOK_SECONDS)
            self._slept()

    def _new(self) -> list[tuple[Prompt, Response, Callable[[Outcome | None], None]]]:
        return [self._asked.get_nowait() for _ in range(self._asked.qsize())]

    def _slept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of calls to wake up: it will
            self._waker.send(b"x")


class Server:
    """The HTTP side: POST /score and GET /health."""

    def __init__(self, scorer: Scorer, name: str, token: str | None) -> None:
        self._scorer, self._name, self._token = scorer, name, token
        self._shown: set[str] = set()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/score", self._guarded(self._score), methods=["POST"]),
                Route("/health", self._guarded(self._health), methods=["GET"]),
            ]
        )

    def _guarded(self, work: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[HttpResponse]]:
        async def handle(request: Request) -> HttpResponse:
            try:
                self._check_token(request)
                return _json(200, await work(request))
            except Refusal as e:
                return _json(e.code, {"error": str(e)}, e.headers)

        return handle

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise Refusal(401, "Authorization: Bearer TOKEN is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def _health(self, request: Request) -> dict[str, Any]:
        if self._scorer.failed is not None:
            raise Refusal(503, f"no more workers: {self._scorer.failed}")
        return {"status": "ok", "version": VERSION, "function": self._name, "waiting": self._scorer.waiting}

    async def _score(self, request: Request) -> dict[str, Any]:
        samples = samples_of(await _body(request))
        if self._scorer.waiting > _WAITING_SAMPLES:
            raise Refusal(503, f"{self._scorer.waiting} samples are waiting", {"Retry-After": "2"})
        outcomes = await self._scorer.score(samples)
        for outcome in outcomes:
            self._show(outcome)
        return {"results": [result(outcome) for outcome in outcomes]}

    def _show(self, outcome: Outcome) -> None:
        """A failure, once, for who looks at this terminal: the client gets the message only."""
        what = f"{outcome.status}: {outcome.message}"
        if outcome.status and what not in self._shown and len(self._shown) < _TRACEBACKS:
            self._shown.add(what)
            text = f"[rlcore] {self._name}: {what}\n{outcome.traceback}"
            print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


async def _body(request: Request) -> Any:
    """The JSON of a request. Its content type must say so: a browser then asks before it sends, and is refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Content-Type must be application/json")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _BODY_BYTES:
                raise Refusal(413, f"the body is over {_BODY_BYTES >> 20} MiB; send fewer samples at a time")
    except ClientDisconnect:  # nobody reads the answer, but unanswered it would be a traceback on the terminal
        raise Refusal(400, "the client left before the end of the body") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Refusal(400, f"the body is not JSON: {e}") from None


def _json(code: int, value: Any, headers: dict[str, str] | None = None) -> HttpResponse:
    """Escaped, so that a message may have any character in it, half a surrogate pair too."""
    return HttpResponse(json.dumps(value, allow_nan=False), code, headers, "application/json")


def _setter(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Outcome | None]
) -> Callable[[Outcome | None], None]:
    def set_result(outcome: Outcome | None) -> None:
        if not future.done():  # the request may have been cancelled
            future.set_result(outcome)

    def answer(outcome: Outcome | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            loop.call_soon_threadsafe(set_result, outcome)

    return answer


def serve_command(args: list[str]) -> int:
    """`rlcore serve-reward`: load the function, listen, score until Ctrl-C. Raises ConfigError, RewardError."""
    a = _arguments(args)
    token = _token(a.host)
    fn = Fn(a.function.replace(":", ".").rpartition(".")[2], a.function, _options(a.args))
    with contextlib.closing(_listen(a.host, a.port)) as listening:
        pool = Pool([fn], a.workers, a.timeout, a.memory_mib)
        try:
            pool.ready(_LOAD_SECONDS)
            _serve(pool, fn.name, token, listening)
        finally:
            pool.close()
    return 0


class Listener(uvicorn.Server):
    """uvicorn, whose patience with unanswered requests ends when it is told to stop: they are answered with 503, and
    those that have not been sent whole a second later are hung up on."""

    def __init__(self, config: uvicorn.Config, scorer: Scorer) -> None:
        super().__init__(config)
        self._scorer = scorer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._scorer.stop()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS / 2, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _serve(pool: Pool, name: str, token: str | None, listening: socket.socket) -> None:
    scorer = Scorer(pool, on_failure=lambda: setattr(server, "should_exit", True))
    app = Server(scorer, name, token).app()
    quiet = {"lifespan": "off", "log_level": "warning", "access_log": False}
    server = Listener(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **quiet), scorer)
    scorer.start()
    host, port = listening.getsockname()[:2]
    use = usage(host, port, token is not None)
    print(
        f"[rlcore] {name} on {host} port {port} ({'with' if token else 'no'} token): rlcore train NAME {use}",
        flush=True,
    )
    try:
        server.run(sockets=[listening])
    finally:
        scorer.end()
    if scorer.failed is not None:
        raise scorer.failed


def usage(host: str, port: int, token: bool) -> str:
    """What to add to `rlcore train NAME` to be scored here. All addresses of this machine are none to call: HOST."""
    shown = "HOST" if ipaddress.ip_address(host).is_unspecified else f"[{host}]" if ":" in host else host
    words = ["reward.fns=[remote]", f"reward.args.remote.url=http://{shown}:{port}/score"]
    if token:
        words.append(f"reward.args.remote.token_env={TOKEN_VARIABLE}")
    return shlex.join([*words, f"reward.timeout_seconds={_CLIENT_SECONDS}"])


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rlcore serve-reward", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("function", help="FILE.py:function, a dotted path or a built-in name")
    parser.add_argument("--args", default="{}", metavar="JSON", help="the function's options, as in reward.args")
    parser.add_argument("--host", default="127.0.0.1", help=f"other than loopback needs {TOKEN_VARIABLE}")
    parser.add_argument("--port", type=int, default=8010, help="0: any free one")
    parser.add_argument("--workers", type=int, default=1, help="processes that score side by side")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for one sample")
    parser.add_argument("--memory-mib", type=int, default=4096, help="memory of one worker, at least 256")
    given = parser.parse_args(args)
    if given.workers < 1 or not given.timeout > 0 or given.memory_mib < 256:
        raise ConfigError("--workers must be at least 1, --timeout above 0, --memory-mib at least 256")
    return given


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as e:
        raise ConfigError(f"--args is not JSON: {e}") from None
    if not isinstance(options, dict):
        raise ConfigError('--args must be an object, as in {"tolerance": 0.1}')
    return options


def _token(host: str) -> str | None:
    """The token that requests must have. ConfigError when the host needs one and there is none."""
    token = os.environ.pop(TOKEN_VARIABLE, "").strip()  # out of what the workers inherit
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(f"{TOKEN_VARIABLE} has characters that a header cannot carry")
    if len(token) < _TOKEN_CHARACTERS and not _is_loopback(host):
        given = f", its {len(token)} characters can be guessed" if token else ""
        raise ConfigError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a random text of at least "
            f"{_TOKEN_CHARACTERS} characters first{given}: {_MAKE_TOKEN}; or stay on 127.0.0.1"
        )
    return token or None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Before the workers start: a port that is taken is known at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"cannot listen on {host} port {port}: {e}") from None
