"""Rewards from another machine, over a batch JSON protocol that any language can serve. `rlcore serve-reward` does.

    reward.fns=[remote] reward.args.remote={url: "http://HOST:8010/score", token_env: RLCORE_REWARD_TOKEN}

The protocol, version 1, is in docs/rewards.md, "Remote".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.over_http.http import Endpoint, EndpointError, NoAnswer, secret
from rlcore.errors import UnparseableGold
from rlcore.isolated.outcome import BadValue
from rlcore.records import Prompt, Score

VERSION = 1
STATUSES = ("error", "timeout", "crashed", "bad_value", "unparseable_gold")
SKIPPED = "skipped"

_QUOTED = 80


class Remote:
    """A batched reward function that asks a server which speaks the protocol. ConfigError for options that cannot work.

    token_env    the name of an environment variable with the token; never the token
    concurrency  requests at a time of one process; each has up to 64 samples, all tries within reward.timeout_seconds
    """

    def __init__(
        self,
        url: str,
        token_env: str | None = None,
        concurrency: int = 4,
        retries: int = 5,
        request_timeout_seconds: float = 60.0,
    ) -> None:
        token = secret("remote", "token_env", token_env)
        self._endpoint = Endpoint("remote", url, token, concurrency, retries, request_timeout_seconds)

    async def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        response_tokens: Sequence[int] | None = None,
        finish: Sequence[str] | None = None,
    ) -> list[Score | None | Exception]:
        """One entry a sample: its Score, None if the function does not apply, or what went wrong with it.

        An endpoint that is not there fails every sample at once, in the result. One that refuses the batch raises
        EndpointError: the pool then sends the samples one by one and only those at fault fail.
        """
        if not prompts:
            return []
        samples = [
            {
                "prompt": {"id": p.id, "messages": p.messages, "answer": p.answer, "row": p.row, "opened": p.opened},
                "response": {"text": text},
            }
            for p, text in zip(prompts, responses, strict=True)
        ]
        for name, column in (("tokens", response_tokens), ("finish", finish)):
            for sample, value in zip(samples, column or (), strict=column is not None):
                sample["response"][name] = value
        try:
            reply = await self._endpoint.post({"version": VERSION, "samples": samples})
        except (NoAnswer, TimeoutError) as e:
            return [e] * len(samples)
        return read(self._endpoint.url, reply.json, len(samples))


def read(url: str, reply: Any, samples: int) -> list[Score | None | Exception]:
    """The results in a reply, one a sample; entries that are wrong are BadValue. Nothing is ever broadcast: a reply
    with another number of results raises BadValue, for nobody knows whose they are."""
    results = reply.get("results") if isinstance(reply, dict) else None
    if not isinstance(results, list):
        raise BadValue(f'{url}: the reply must be {{"results": [...]}}, is {repr(reply)[:_QUOTED]}')
    if len(results) != samples:
        raise BadValue(f"{url}: {len(results)} results for {samples} samples")
    return [_result(f"{url}: results[{i}]", result) for i, result in enumerate(results)]


def _result(where: str, result: Any) -> Score | None | Exception:
    if not isinstance(result, dict):
        return BadValue(
            f"{where} is {type(result).__name__} {repr(result)[:_QUOTED]}, not an object with reward or status"
        )
    status = result.get("status", "")
    if status == SKIPPED:
        return None
    if status != "":
        return _failure(where, status, str(result.get("message", "")) or "no message")
    if "reward" not in result:
        return BadValue(f"{where} has neither reward nor status, only {', '.join(map(str, result)) or 'nothing'}")
    parts = result.get("parts", {})
    if not isinstance(parts, dict):
        return BadValue(f"{where}.parts is {type(parts).__name__}, not an object")
    numbers = {"reward": result["reward"]} | {f"parts.{name}": value for name, value in parts.items()}
    for name, value in numbers.items():
        if not _is_finite(value):
            return BadValue(f"{where}.{name} is {type(value).__name__} {repr(value)[:_QUOTED]}, not a finite number")
    return Score(float(result["reward"]), {name: float(value) for name, value in parts.items()})


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # JSON has integers of any size
        return False


def _failure(where: str, status: Any, message: str) -> Exception:
    """What the server says went wrong, as the exception that the pool gives the same status."""
    if status not in STATUSES:
        return BadValue(f"{where}.status is {repr(status)[:_QUOTED]}, not one of {', '.join(STATUSES)}, {SKIPPED}")
    kinds = {"timeout": TimeoutError, "bad_value": BadValue, "unparseable_gold": UnparseableGold}
    return kinds.get(status, EndpointError)(f"{where}: {status}: {message}")
