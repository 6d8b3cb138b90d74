"""A real HTTP server on loopback that does what a test tells it to, right or wrong."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One reply. `drop`: hang up instead. `delay_seconds`: before the first byte."""

    body: Any = field(default_factory=dict)
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drop: bool = False

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Loopback:
    """What came in, and where to send it. `most_at_once`: requests that were being answered at the same time."""

    url: str
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    now: int = 0
    most_at_once: int = 0


@contextlib.contextmanager
def serving(*answers: Answer | Callable[[Any], Answer]) -> Iterator[Loopback]:
    """Answer the n-th POST with the n-th of `answers`, the last one for ever; a function is given the request."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                answer = answers[min(len(seen.bodies), len(answers) - 1)]
                seen.bodies.append(body)
                seen.headers.append({k.lower(): v for k, v in self.headers.items()})
                seen.paths.append(self.path)
                seen.now += 1
                seen.most_at_once = max(seen.most_at_once, seen.now)
            try:
                self._send(answer if isinstance(answer, Answer) else answer(body))
            finally:
                with lock:
                    seen.now -= 1

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.delay_seconds)
            if answer.drop:
                self.close_connection = True
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
                content = answer.content()
                self.send_response(answer.code)
                for name, value in ({"Content-Length": str(len(content))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen = Loopback(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port_url() -> str:
    """An address where nobody listens."""
    with serving(Answer()) as server:
        return server.url
