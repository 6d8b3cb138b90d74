"""An HTTP endpoint that takes JSON and gives JSON: what the judge and the remote reward talk to.

Patient (what may pass is tried again, after a wait that doubles), bounded (so many requests at a time, so many bytes of
reply) and discreet (no error has the key or the URL's query). What is tried again: docs/rewards.md, "Judge".
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import itertools
import json
import math
import os
import random
import re
import ssl
import time
from typing import Any, NamedTuple

import httpx

from rlcore.errors import ConfigError
from rlcore.secret_values import HIDDEN, without_secrets

FIRST_WAIT_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 120.0  # an endpoint that asks for more is out of order for this run's purposes
REPLY_BYTES = 64 << 20
_MESSAGE = 300  # characters quoted of an endpoint's own words
_JITTER = random.Random()  # the pool seeds the global generator per sample: processes would all wait alike


class EndpointError(Exception):
    """The endpoint answered, but not with what was asked for."""


class NoAnswer(EndpointError):
    """The endpoint cannot be reached, or hangs up."""


class Reply(NamedTuple):
    """A 2xx answer: its JSON, how often it was tried again, seconds from its turn to its end, all tries together."""

    json: Any
    retries: int
    seconds: float


class _MayPass(Exception):
    """This try failed; another may not. `error` is what it is called if none is left."""

    def __init__(self, error: type[Exception], message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.error, self.wait_seconds = error, wait_seconds


class Endpoint:
    """One URL that is POSTed to; `who`, in messages, has its options: "judge". ConfigError for values that cannot work.

    key                      sent as `Authorization: Bearer`; see `secret`
    concurrency              requests on their way at the same time, in this process and event loop
    request_timeout_seconds  for one of `retries` + 1 tries, from its beginning to the last byte of the reply
    """

    def __init__(
        self, who: str, url: str, key: str | None, concurrency: int, retries: int, request_timeout_seconds: float
    ) -> None:
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigError(f"{who}: concurrency is {concurrency!r}, must be a whole number of at least 1")
        if not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"{who}: retries is {retries!r}, must be a whole number of at least 0")
        if not isinstance(request_timeout_seconds, int | float) or not request_timeout_seconds > 0:
            raise ConfigError(f"{who}: request_timeout_seconds is {request_timeout_seconds!r}, must be above 0")
        self._address = _checked_url(who, url)
        query = self._address.query
        self.url = f"{self._address.copy_with(query=None)}{f'?{HIDDEN}' if query else ''}"  # for messages
        self._key = key
        self._never_said = [secret for secret in (key, *self._address.params.values()) if secret and len(secret) >= 4]
        self._concurrency, self._retries = concurrency, retries
        self._request_timeout = request_timeout_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(concurrency)

    async def post(self, body: dict[str, Any]) -> Reply:
        """Send `body` and return the reply. A request that waits to be tried again keeps its place: an endpoint that
        has too much to do is not given more.

        Raises TimeoutError when the last try took too long, NoAnswer when it found nobody, else EndpointError.
        """
        content = encode(body)
        client = self._of_this_loop()
        async with self._turns:
            began = time.monotonic()
            for attempt in itertools.count():
                try:
                    reply = await self._ask(client, content)
                    return Reply(reply, attempt, time.monotonic() - began)
                except _MayPass as e:
                    wait = max(e.wait_seconds, backoff(attempt))
                    if attempt == self._retries or e.wait_seconds > _LONGEST_WAIT_SECONDS:
                        tries = f"{attempt + 1} tries" if attempt else "1 try"
                        raise e.error(f"{self.url}: {e} ({tries})") from None
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _of_this_loop(self) -> httpx.AsyncClient:
        """Connections belong to an event loop: a new loop, as every `asyncio.run` has, starts with none."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._concurrency)
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=None, verify=_certificates())
            self._turns = asyncio.Semaphore(self._concurrency)
            self._loop = loop
        return self._client

    async def _ask(self, client: httpx.AsyncClient, content: bytes) -> Any:
        """One try."""
        try:
            async with asyncio.timeout(self._request_timeout):
                async with client.stream("POST", self._address, content=content) as response:
                    body = await self._read(response)
        except TimeoutError:
            raise _MayPass(TimeoutError, f"no whole answer within {self._request_timeout:g} s") from None
        except httpx.TransportError as e:
            raise _MayPass(NoAnswer, f"{type(e).__name__}: {self._discreet(str(e))}") from None
        except httpx.RequestError as e:  # a reply that cannot be decoded
            raise EndpointError(f"{self.url}: {type(e).__name__}: {self._discreet(str(e))}") from None
        if response.status_code in (408, 429) or response.status_code >= 500:
            wait = retry_after(response.headers.get("retry-after", ""))
            asked = f", asks to wait {wait:.0f} s" if wait else ""
            said = f"{response.status_code} {self._said(body)}{asked}"
            raise _MayPass(EndpointError, said, wait)
        if response.is_redirect:
            to = self._discreet(response.headers.get("location", ""))
            raise EndpointError(f"{self.url}: {response.status_code}, it has moved to {to}; set url to where it is")
        if not response.is_success:
            raise EndpointError(f"{self.url}: {response.status_code} {self._said(body)}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            said = self._discreet(body[: 4 * _MESSAGE].decode(errors="replace"))
            raise EndpointError(f"{self.url}: the reply is not JSON: {said!r}") from None

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > REPLY_BYTES:
                raise EndpointError(f"{self.url}: the reply is over {REPLY_BYTES >> 20} MiB")
        return bytes(body)

    def _said(self, body: bytes) -> str:
        """The message in an error reply, wherever the usual servers put it; else its beginning."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = body[: 4 * _MESSAGE].decode(errors="replace")
        for name in ("error", "message", "detail"):
            if isinstance(value, dict) and value.get(name):
                value = value[name]
        return self._discreet(value if isinstance(value, str) else json.dumps(value))

    def _discreet(self, text: str) -> str:
        """An endpoint's words on one line, cut to length, without the key and the query, which some servers repeat."""
        text = text.replace(str(self._address), self.url)
        for secret in self._never_said:
            text = text.replace(secret, HIDDEN)
        return " ".join(without_secrets(text).split())[:_MESSAGE]


def secret(who: str, option: str, variable: str | None) -> str | None:
    """The value of the environment variable that `option` names; None when it names none.

    ConfigError when it is not set or no header can carry it. Neither the value is shown, nor a name that could be one:
    a user may have written the key itself into the config.
    """
    if variable is None:
        return None
    shown = variable if re.fullmatch(r"[A-Z][A-Z0-9_]*", str(variable)) else "it names"
    value = os.environ.get(str(variable), "").strip()
    if not value:
        raise ConfigError(
            f"{who}: {option}: the environment variable {shown} is not set; {option} is the name of an environment "
            "variable such as MY_API_KEY, never the key itself"
        )
    if not re.fullmatch(r"[!-~]+", value):
        raise ConfigError(f"{who}: {option}: the value of the environment variable {shown} has characters no key has")
    return value


def encode(value: Any) -> bytes:
    """`value` as JSON that every parser takes: NaN and infinities in a dataset row become null, text is escaped."""
    try:
        return json.dumps(value, allow_nan=False, default=str).encode()
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, default=str).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The certificates the machine trusts, or SSL_CERT_FILE's; slow to load, so once a process."""
    return httpx.create_ssl_context()


def ending_in(path: str, url: str) -> str:
    """`url` with a path that ends in `path`; a query stays behind it."""
    before, mark, query = url.partition("?")
    return f"{before.rstrip('/').removesuffix(path)}{path}{mark}{query}"


def _checked_url(who: str, url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as e:
        raise ConfigError(f"{who}: url cannot be parsed: {e}") from None
    if parsed.userinfo:  # not repeated in the message
        raise ConfigError(f"{who}: url has a user name or password in it; name an environment variable instead")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        start = url.partition("?")[0]
        raise ConfigError(f"{who}: url is {start!r}, must be http://HOST:PORT/... or https://...")
    return parsed


def backoff(attempt: int) -> float:
    """Seconds to wait after the attempt of this number (from 0): doubling, and spread so that no two march."""
    return min(_LONGEST_BACKOFF_SECONDS, FIRST_WAIT_SECONDS * 2.0**attempt) * _JITTER.uniform(0.5, 1.0)


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, written as seconds or as a date; 0 for none and for nonsense."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
