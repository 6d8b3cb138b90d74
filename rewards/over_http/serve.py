"""A reward function behind the protocol of remote.py, scored in isolated, killable processes as in training.

`asyncio` talks HTTP on the main thread; one more thread owns the pool, which takes one thread at a time. All requests
share it, so a hanging sample holds up its own request only. The command is in rlcore/cli/serve_reward.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import queue
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

from rewards.over_http.remote import VERSION
from rewards.over_http.serve_requests import Refusal, result, samples_of
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.pool import Pool
from rlcore.records import Prompt, Response
from rlcore.screen import message, shown

TOKEN_VARIABLE = "RLCORE_REWARD_TOKEN"

_CLIENT_SECONDS = 120  # the hint's reward.timeout_seconds, above what one request of `remote` may take

BODY_BYTES = 64 << 20
WAITING_SAMPLES = 20_000  # more than this and a request is told to come again
_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 2  # of Ctrl-C, for the requests that are being answered; after half of it clients are hung up on
_TRACEBACKS = 20  # shown on stderr, one a message: the first failures tell, the thousandth does not


class PoolThread(threading.Thread):
    """Owns the pool. `score` may be awaited by any number of requests at once.

    It has ended when `stop` was called or the pool cannot go on (then `failed` says why): every `score` then, and every
    one that is waiting, raises a Refusal.
    """

    def __init__(self, pool: Pool, on_failure: Callable[[], None]) -> None:
        super().__init__(name="rlcore-pool", daemon=True)
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

    def __init__(self, thread: PoolThread, name: str, token: str | None) -> None:
        self._thread, self._name, self._token = thread, name, token
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
        if self._thread.failed is not None:
            raise Refusal(503, f"no more processes: {self._thread.failed}")
        return {"status": "ok", "version": VERSION, "function": self._name, "waiting": self._thread.waiting}

    async def _score(self, request: Request) -> dict[str, Any]:
        samples = samples_of(await _body(request))
        if self._thread.waiting > WAITING_SAMPLES:
            raise Refusal(503, f"{self._thread.waiting} samples are waiting", {"Retry-After": "2"})
        outcomes = await self._thread.score(samples)
        for outcome in outcomes:
            self._show(outcome)
        return {"results": [result(outcome) for outcome in outcomes]}

    def _show(self, outcome: Outcome) -> None:
        """A failure, once, for who looks at this terminal: the client gets the message only."""
        what = f"{outcome.status}: {outcome.message}"
        if outcome.status and what not in self._shown and len(self._shown) < _TRACEBACKS:
            self._shown.add(what)
            text = f"[rlcore] {self._name}: {what}\n{outcome.traceback}"
            print(shown(text), file=sys.stderr, flush=True)


async def _body(request: Request) -> Any:
    """The JSON of a request. Its content type must say so: a browser then asks before it sends, and is refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Content-Type must be application/json")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                raise Refusal(413, f"the body is over {BODY_BYTES >> 20} MiB; send fewer samples at a time")
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


class Listener(uvicorn.Server):
    """uvicorn, whose patience with unanswered requests ends when it is told to stop: they are answered with 503, and
    those that have not been sent whole a second later are hung up on."""

    def __init__(self, config: uvicorn.Config, thread: PoolThread) -> None:
        super().__init__(config)
        self._thread = thread

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._thread.stop()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS / 2, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def serve(pool: Pool, name: str, token: str | None, listening: socket.socket) -> None:
    """Answer requests with what the first rule of `pool` says, until Ctrl-C. Raises RewardError if the pool does."""
    thread = PoolThread(pool, on_failure=lambda: setattr(server, "should_exit", True))
    app = Server(thread, name, token).app()
    quiet = {"lifespan": "off", "log_level": "warning", "access_log": False}
    server = Listener(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **quiet), thread)
    thread.start()
    host, port = listening.getsockname()[:2]
    use = usage(host, port, token is not None)
    print(
        message(f"[rlcore] {name} on {host} port {port} ({'with' if token else 'no'} token): rlcore train NAME {use}"),
        flush=True,
    )
    try:
        server.run(sockets=[listening])
    finally:
        thread.end()
    if thread.failed is not None:
        raise thread.failed


def usage(host: str, port: int, token: bool) -> str:
    """What to add to `rlcore train NAME` to be scored here. All addresses of this machine are none to call: HOST."""
    at = "HOST" if ipaddress.ip_address(host).is_unspecified else f"[{host}]" if ":" in host else host
    words = ["reward.fns=[remote]", f"reward.args.remote.url=http://{at}:{port}/score"]
    if token:
        words.append(f"reward.args.remote.token_env={TOKEN_VARIABLE}")
    return shlex.join([*words, f"reward.timeout_seconds={_CLIENT_SECONDS}"])
