"""Preference rows to pairs of token sequences: what `rlcore train-rm` learns from.

A row has the columns chosen and rejected: text, or lists of messages. Text, and messages that begin with the
assistant's, answer the prompt column; other messages are the whole conversation, whose prompt is what both begin with.
Text without a prompt column is the whole text, which needs data.chat_template=false.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.conversation import Message, cell, is_message, read_rows
from rlcore.data.prompts import Order
from rlcore.data.sources import Row, Rows, load_rows
from rlcore.errors import DataError

_COLUMNS = ("chosen", "rejected")
_PROMPT = "prompt"  # the column that the common beginning of two conversations is put into


class Pair(NamedTuple):
    """The tokens of two whole conversations, of which the first is preferred."""

    chosen: list[int]
    rejected: list[int]


class Pairs:
    """The pairs of one or several sources, in an order that is a function of (seed, epoch) alone and that resumes.

    `tokenize` makes the tokens of a whole conversation, or raises ValueError. `dropped` counts the pairs left out: one
    of the two is longer than `most_tokens`, or both are the same. Raises DataError for a row that cannot be used.
    """

    def __init__(
        self, sources: Sequence[str], cfg: DataConfig, tokenize: Callable[[Sequence[Message]], list[int]], seed: int,
        most_tokens: int,
    ) -> None:  # fmt: skip
        loaded = [load_rows(source) for source in sources]
        found = [pair for rows in loaded for pair in _read(rows, cfg, tokenize)]
        self._pairs = [p for p in found if max(map(len, p)) <= most_tokens and p.chosen != p.rejected]
        self.dropped = len(found) - len(self._pairs)
        if not self._pairs:
            raise DataError(
                f"{', '.join(sources)}: all {self.dropped} pairs are of equal texts, or longer than {most_tokens} "
                "tokens (data.max_prompt_tokens + rollout.max_response_tokens)"
            )
        self._order = Order(", ".join(sources), len(self._pairs), seed, cfg.shuffle)

    def __len__(self) -> int:
        return len(self._pairs)

    def take(self, n: int) -> list[Pair]:
        """The next n pairs; the end of an epoch runs on into the next."""
        return [self._pairs[i] for i, _ in self._order.take(n)]

    def all(self, limit: int = 0) -> list[Pair]:
        """The first `limit` pairs in the order of the sources; 0: all. Does not move `take`."""
        return self._pairs[: limit or None]

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the sources have changed since."""
        self._order.restore(state)


def _read(loaded: Rows, cfg: DataConfig, tokenize: Callable[[Sequence[Message]], list[int]]) -> list[Pair]:
    pairs = []
    for i, conversations in enumerate(_conversations(loaded, cfg)):
        for column, conversation in zip(_COLUMNS, conversations, strict=True):
            _check_content(f"{loaded.at(i)}: {column}", conversation)
        try:
            pairs.append(Pair(*map(tokenize, conversations)))
        except ValueError as e:
            raise DataError(f"{loaded.at(i)}: {e}") from e
    return pairs


def _check_content(where: str, conversation: Sequence[Message]) -> None:
    """DataError for a message that says nothing, as one that only calls tools: a template may well write "None"."""
    for number, message in enumerate(conversation, 1):
        content = message["content"]
        parts = isinstance(content, list) and bool(content) and all(isinstance(p, str | Mapping) for p in content)
        if not isinstance(content, str) and not parts:
            raise DataError(
                f"{where}: message {number} of its conversation ({message['role']}) has content "
                f"{json.dumps(content, default=str)[:40]}, must be text or a list of parts; write into the content "
                "what the model is to read, also of a tool call, or leave the row out"
            )


def _conversations(loaded: Rows, cfg: DataConfig) -> list[tuple[list[Message], list[Message]]]:
    """Of each row: the two whole conversations."""
    said = [(_said(loaded, i, "chosen"), _said(loaded, i, "rejected")) for i in range(len(loaded.rows))]
    whole = [any(messages[0]["role"] != "assistant" for messages in both) for both in said]
    if any(whole) != all(whole):
        raise DataError(
            f"{loaded.at(whole.index(not whole[0]))}: chosen and rejected are {_kind(not whole[0])}, in the first row "
            f"{_kind(whole[0])}; write all rows alike"
        )
    if not whole[0] and _is_bare_text(loaded, cfg):
        return said
    if whole[0]:
        cut = [_common(*both) for both in said]
        for i, n in enumerate(cut):
            _check_beginning(loaded.at(i), said[i][0][:n])
        rows: list[Row] = [{**row, _PROMPT: both[0][:n]} for row, both, n in zip(loaded.rows, said, cut, strict=True)]
        loaded, cfg = loaded._replace(rows=rows), copy.copy(cfg)
        cfg.prompt_column = _PROMPT
        said = [(chosen[n:], rejected[n:]) for (chosen, rejected), n in zip(said, cut, strict=True)]
    prompts = read_rows(loaded, cfg, answers_needed=False)
    for i, (answered, both) in enumerate(zip(prompts.said, said, strict=True)):
        if answered is not None or not all(messages[-1]["role"] == "assistant" for messages in both):
            raise DataError(
                f"{loaded.at(i)}: a prompt must end before the assistant speaks, chosen and rejected with what it says"
            )
    return [([*prompt, *a], [*prompt, *b]) for prompt, (a, b) in zip(prompts.messages, said, strict=True)]


def _check_beginning(where: str, prompt: Sequence[Message]) -> None:
    """Of two whole conversations: DataError when there is no prompt in what both begin with."""
    if not prompt:
        raise DataError(
            f"{where}: chosen and rejected have no prompt in common; both must begin with the same messages, before an "
            "answer of their own"
        )
    roles = [str(message["role"]) for message in prompt]
    if "user" not in roles:
        raise DataError(
            f"{where}: the prompt that chosen and rejected have in common has no user message, but of "
            f"{', '.join(roles)}"
        )


def _kind(whole: bool) -> str:
    return "whole conversations" if whole else "answers"


def _is_bare_text(loaded: Rows, cfg: DataConfig) -> bool:
    """Whether there is no prompt to answer: then the texts are taken as they are."""
    if cfg.prompt_column != "auto" or {"prompt", "question", "problem", "messages"} & loaded.rows[0].keys():
        return False
    if cfg.chat_template:
        raise DataError(
            f"{loaded.source}: chosen and rejected are text without a prompt column, which a chat template cannot be "
            "filled with; set data.prompt_column, or data.chat_template=false to take the texts as they are"
        )
    return True


def _said(loaded: Rows, i: int, column: str) -> list[Message]:
    """A cell as messages: text is the assistant's. A CSV file has its messages as JSON."""
    value = cell(loaded, i, column)
    if isinstance(value, str) and value.lstrip().startswith("[") and (parsed := _parsed(value)) is not None:
        value = parsed
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, list) or not value or not all(is_message(m) for m in value):
        raise DataError(f"{loaded.at(i)}: column {column} must be text or a list of {{role, content}} messages")
    return list(value)


def _parsed(text: str) -> list[Any] | None:
    """A list of messages; None for any other text, such as `[1, 2]`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and value and all(is_message(m) for m in value) else None


def _common(a: list[Message], b: list[Message]) -> int:
    """How many messages both begin with; the last of each is never among them."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), most)
