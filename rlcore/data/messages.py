"""Messages as datasets have them, checked and brought into one form before any chat template or reward sees them.

A message has a role and content that is text; the content of an assistant's that calls tools may be None. What is null
is left out, as Arrow fills in what other rows have; parts of text are joined; everything else is kept. docs/data.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.errors import DataError, nearest

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
INSTRUCTING = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")
_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning")  # fields that are text, where there are any


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def normalised(messages: Sequence[Any], where: str) -> list[Message]:
    """These messages, each in its form. DataError names the message that has none; `where` is the row and column.

    A system message that is null says nothing and is left out.
    """
    found = [_message(message, f"{where}: message {number}") for number, message in enumerate(messages, 1)]
    return [message for message in found if message is not None]


def _message(given: Any, where: str) -> Message | None:
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise DataError(f"{where} is {_shown(given)}, must be {{role, content}}")
    message = {key: value for key, value in given.items() if value is not None}
    role = message["role"]
    where = f"{where} ({role})"
    if role not in ROLES:
        raise DataError(f"{where}: no such role{nearest(role, ROLES)}; it must be one of {', '.join(ROLES)}")
    for field in _TEXTS:
        if not isinstance(message.get(field, ""), str):
            raise DataError(f"{where}: {field} is {_shown(message[field])}, must be text")
    if "function_call" in message:
        raise DataError(f"{where}: function_call is not known; write it as tool_calls: [{{name, arguments}}]")
    calls = _calls(message.pop("tool_calls", []), role, where)
    if "content" not in message and role in INSTRUCTING:
        return None
    if "content" not in message and not calls:
        raise DataError(f"{where} has no content (null); write what it says, or leave the message out")
    message["content"] = _text(message["content"], where) if "content" in message else None
    return {**message, "tool_calls": calls} if calls else message


def _text(content: Any, where: str) -> str:
    """Text, or parts of text with nothing between them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise DataError(f"{where} has content {_shown(content)}, must be text or a list of parts of text")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise DataError(
            f"{where} has a part of type {kind!r}: only text can be learned from and answered (image-text models are "
            "not supported); leave the row out"
        )
    raise DataError(f'{where} has a part {_shown(part)}, must be {{"type": "text", "text": ...}}')


def _calls(calls: Any, role: str, where: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: null fields left out, the arguments a mapping, not JSON text of one."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise DataError(f"{where}: tool_calls is {_shown(calls)}, must be a list")
    if calls and role != "assistant":
        raise DataError(f"{where}: tool_calls are the assistant's; leave them out")
    return [_call(call, f"{where}: tool call {number}") for number, call in enumerate(calls, 1)]


def _call(given: Any, where: str) -> dict[str, Any]:
    call = _without_nulls(given)
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise DataError(f"{where} is {_shown(given)}, must be {{name, arguments}}, or that as its function")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: its arguments are not valid JSON: {e}") from e
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: its arguments are {_shown(arguments)}, must be a mapping of names to values")
    inner["arguments"] = arguments
    return call


def _without_nulls(value: Any) -> Any:
    """A copy. In Arrow's data a field that another row has is null: {"city": "Rome", "expression": null}."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
