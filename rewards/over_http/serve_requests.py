"""What a request to `rlcore serve-reward` must hold, and an entry of its answer: the protocol of remote.py."""

from __future__ import annotations

import json
from typing import Any

from rewards.over_http.remote import SKIPPED, VERSION
from rlcore.isolated.outcome import Outcome
from rlcore.records import Prompt, Response


class Refusal(Exception):
    """A request that is not answered with scores: HTTP status and what is wrong with it."""

    def __init__(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.headers = code, headers


def result(outcome: Outcome) -> dict[str, Any]:
    """One entry of "results"."""
    if outcome.status:
        return {"status": outcome.status, "message": outcome.message}
    if outcome.reward is None:
        return {"status": SKIPPED}
    return {"reward": outcome.reward, "parts": outcome.parts}


def samples_of(body: Any) -> list[tuple[Prompt, Response]]:
    """The samples in a request. Raises Refusal 400 naming the field that is missing or of another type."""
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {_kind(body)}, must be an object with version and samples")
    if body.get("version") != VERSION:
        raise Refusal(400, f"version is {json.dumps(body.get('version'))[:40]}, this server speaks {VERSION}")
    samples = _field(body, "", "samples", list, None)
    return [_sample(f"samples[{i}]", sample) for i, sample in enumerate(samples)]


def _sample(where: str, sample: Any) -> tuple[Prompt, Response]:
    if not isinstance(sample, dict):
        raise Refusal(400, f"{where} is {_kind(sample)}, must be an object")
    prompt = _field(sample, f"{where}.", "prompt", dict, None)
    response = _field(sample, f"{where}.", "response", dict, None)
    at = f"{where}.prompt."
    messages = _field(prompt, at, "messages", list, [])
    if not all(isinstance(m, dict) for m in messages):
        raise Refusal(400, f"{at}messages must be a list of objects")
    return (
        Prompt(
            id=_field(prompt, at, "id", str, ""),
            tokens=[],
            answer=_field(prompt, at, "answer", str, ""),
            row=_field(prompt, at, "row", dict, {}),
            messages=messages,
            opened=_field(prompt, at, "opened", str, ""),
        ),
        Response(
            text=_field(response, f"{where}.response.", "text", str, None),
            tokens=_field(response, f"{where}.response.", "tokens", int, 0),
            finish=_field(response, f"{where}.response.", "finish", str, "stop"),
        ),
    )


def _field(of: dict[str, Any], where: str, name: str, kind: type, default: Any) -> Any:
    """of[name], which must be a `kind`; `default` if it is not there, None meaning that it must be."""
    if name not in of and default is not None:
        return default
    if name not in of:
        raise Refusal(400, f"{where}{name} is missing")
    if not isinstance(of[name], kind) or (kind is int and (isinstance(of[name], bool) or not 0 <= of[name] < 2**31)):
        raise Refusal(400, f"{where}{name} is {_kind(of[name])}, must be {_KINDS[kind]}")
    return of[name]


_KINDS = {str: "text", int: "a whole number of at least 0", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)[:40]
    return _KINDS[type(value)]
