"""Dataset rows to prompts: fill the template, tokenize once, leave out what is too long, hand out in a seeded order.

Where rows come from is sources.py. The tokenizer is the caller's; nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.errors import ConfigError, DataError
from rlcore.records import Prompt, Rollout
from rlcore.sources import Rows, load_rows, nearest, source_name

__all__ = ["Examples", "Order", "Prompts", "load_rows", "source_name"]

Message = Mapping[str, Any]
Template = list[tuple[str, str | None]]  # literal text, then the column after it

_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
_ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "response")


class Prompts:
    """The prompts of a source, in an order that is a function of (seed, epoch) alone and that resumes.

    `dropped` counts the prompts that were longer than `cfg.max_prompt_tokens`. Raises DataError for a row that cannot
    be used, ConfigError for a template that names no column.
    """

    def __init__(self, source: str, cfg: DataConfig, tokenizer: Any, seed: int) -> None:
        self._rows = load_rows(source)
        self.name = self._rows.name
        messages, answers, self._texts = _read_rows(self._rows, cfg)
        tokens = _tokenize_prompts(self._rows, messages, cfg, tokenizer)
        self._prompts = [
            Prompt(f"{self.name}:{i}", ids, answers[i], row)
            for i, (row, ids) in enumerate(zip(self._rows.rows, tokens, strict=True))
            if len(ids) <= cfg.max_prompt_tokens
        ]
        self.dropped = len(tokens) - len(self._prompts)
        if not self._prompts:
            raise DataError(f"{source}: all {self.dropped} prompts are longer than {cfg.max_prompt_tokens=} tokens")
        self._order = Order(source, len(self._prompts), seed, cfg.shuffle)

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.tokens) for p in self._prompts)

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts; the end of an epoch runs on into the next, and no row is left out of an epoch."""
        return [_in_epoch(self._prompts[i], epoch) for i, epoch in self._order.take(n)]

    def all(self, limit: int = 0) -> list[Prompt]:
        """The first `limit` prompts in the order of the source; 0: all. Does not move `take`."""
        return self._prompts[: limit or None]

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the source has changed since."""
        self._order.restore(state)


class Examples:
    """Prompts with the response to learn: what `rlcore sft` trains on. Same order and resuming as `Prompts`.

    A response is the response column (or, with messages, their last message when the assistant said it) and the
    end-of-sequence token; only it is in the mask. `dropped` counts the rows whose prompt or response is too long.
    """

    def __init__(self, source: str, cfg: DataConfig, tokenizer: Any, seed: int, max_response_tokens: int) -> None:
        loaded = load_rows(source)
        self.name = loaded.name
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so a response cannot be taught to end")
        messages, answers, said = _read_rows(loaded, cfg, answers_needed=False)
        prompts = _tokenize_prompts(loaded, messages, cfg, tokenizer)
        texts = [_response(loaded, i, cfg, said[i]) for i in range(len(loaded.rows))]
        responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._examples = [
            _example(Prompt(f"{self.name}:{i}", p, answers[i], row), [*r, tokenizer.eos_token_id], text)
            for i, (row, p, r, text) in enumerate(zip(loaded.rows, prompts, responses, texts, strict=True))
            if len(p) <= cfg.max_prompt_tokens and len(r) < max_response_tokens
        ]
        self.dropped = len(prompts) - len(self._examples)
        if not self._examples:
            raise DataError(
                f"{source}: all {self.dropped} rows are longer than {cfg.max_prompt_tokens} tokens of prompt "
                f"or {max_response_tokens} of response"
            )
        self._order = Order(source, len(self._examples), seed, cfg.shuffle)

    def __len__(self) -> int:
        return len(self._examples)

    def take(self, n: int) -> list[Rollout]:
        """The next n rows, as rollouts with mask on the response only, reward 0 and version 0."""
        return [
            dataclasses.replace(e, prompt=_in_epoch(e.prompt, epoch))
            for e, epoch in ((self._examples[i], epoch) for i, epoch in self._order.take(n))
        ]

    def state(self) -> dict[str, Any]:
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._order.restore(state)


class Order:
    """Which row comes next: a new order every epoch, a function of (seed, epoch) alone. Epochs count from 1."""

    def __init__(self, source: str, rows: int, seed: int, shuffle: bool) -> None:
        self._source, self._rows, self._seed, self._shuffle = source, rows, seed, shuffle
        self._epoch, self._position = 1, 0
        self._indices = self._of_epoch(1)

    def _of_epoch(self, epoch: int) -> list[int]:
        indices = list(range(self._rows))
        if self._shuffle:
            random.Random(f"data order {self._seed} {epoch}").shuffle(indices)
        return indices

    def take(self, n: int) -> list[tuple[int, int]]:
        """The next n (row, epoch)."""
        taken: list[tuple[int, int]] = []
        while len(taken) < n:
            if self._position == self._rows:
                self._epoch, self._position = self._epoch + 1, 0
                self._indices = self._of_epoch(self._epoch)
            part = self._indices[self._position : self._position + n - len(taken)]
            self._position += len(part)
            taken += [(i, self._epoch) for i in part]
        return taken

    def state(self) -> dict[str, Any]:
        return {"rows": self._rows, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, now in (("rows", self._rows), ("seed", self._seed)):
            if state[name] != now:
                raise DataError(f"{self._source}: {name} is {now}, was {state[name]} when saved: another data order")
        self._epoch, self._position = state["epoch"], state["position"]
        self._indices = self._of_epoch(self._epoch)


def _in_epoch(prompt: Prompt, epoch: int) -> Prompt:
    return prompt if epoch == 1 else dataclasses.replace(prompt, id=f"{prompt.id}@{epoch}")


def _example(prompt: Prompt, response: list[int], text: str) -> Rollout:
    tokens = prompt.tokens + response
    mask = [False] * len(prompt.tokens) + [True] * len(response)
    return Rollout(prompt, tokens, [0.0] * len(tokens), mask, "stop", 0, text, 0.0)


def _read_rows(
    loaded: Rows, cfg: DataConfig, answers_needed: bool = True
) -> tuple[list[list[Message]], list[str], list[str | None]]:
    """Of each row: the conversation before the response, the gold answer, what the assistant said last, if it did."""
    columns = list(dict.fromkeys(column for row in loaded.rows for column in row))
    first = list(loaded.rows[0])
    prompt_column = _choose(loaded, "data.prompt_column", cfg.prompt_column, _PROMPT_COLUMNS, first)
    if prompt_column is None:
        raise DataError(
            f"{loaded.source}: none of the columns {', '.join(_PROMPT_COLUMNS)}; "
            f"set data.prompt_column to one of {', '.join(first)}"
        )
    answer_column = _choose(loaded, "data.answer_column", cfg.answer_column, _ANSWER_COLUMNS, columns)
    template = _parse_template(cfg.prompt_template, columns, answer_column)
    messages, answers, said = [], [], []
    for i in range(len(loaded.rows)):
        conversation = _conversation(_cell(loaded, i, prompt_column), loaded.at(i), prompt_column)
        said.append(conversation.pop()["content"] if conversation[-1]["role"] == "assistant" else None)
        if cfg.system_prompt is not None:
            rest = [m for m in conversation if m["role"] != "system"]
            conversation = [{"role": "system", "content": cfg.system_prompt}, *rest]
        if template is not None:
            conversation[-1] = _fill(conversation[-1], template, loaded, i)
        messages.append(conversation)
        if answer_column is None or not (answers_needed or loaded.rows[i].get(answer_column) is not None):
            answers.append("")
        else:
            answers.append(_as_text(_cell(loaded, i, answer_column)))
    return messages, answers, said


def _choose(loaded: Rows, key: str, column: str, candidates: Sequence[str], columns: Sequence[str]) -> str | None:
    """The one of `columns` to use: the one named, or with "auto" the first candidate among them, if any."""
    if column != "auto":
        if column not in columns:
            raise DataError(
                f"{loaded.source}: no column {column}{nearest(column, columns)}; "
                f"{key} must be one of {', '.join(columns)}"
            )
        return column
    return next((c for c in candidates if c in columns), None)


def _cell(loaded: Rows, i: int, column: str) -> Any:
    row = loaded.rows[i]
    if row.get(column) is None:
        what = "is empty" if column in row else f"is missing{nearest(column, row)}"
        raise DataError(f"{loaded.at(i)}: column {column} {what}")
    return row[column]


def _conversation(value: Any, where: str, column: str) -> list[Message]:
    """A prompt cell as a list of messages that a response can follow, or that ends with one."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: column {column} is empty")
        parsed = _parse_messages(value, where, column)
        if parsed is None:
            return [{"role": "user", "content": value}]
        value = parsed
    messages = value if isinstance(value, list) else [value]
    if not all(_is_message(m) for m in messages):
        raise DataError(f"{where}: column {column} must be text or a list of {{role, content}} messages")
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked:
        raise DataError(f"{where}: column {column} has no user message")
    if not asked[-1] or (isinstance(asked[-1], str) and not asked[-1].strip()):
        raise DataError(f"{where}: column {column}: the last user message is empty")
    return list(messages)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def _parse_messages(text: str, where: str, column: str) -> list[Any] | None:
    """A list of messages written as JSON, as in a CSV cell; None for any other text, such as `[1, 2] sorted?`."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        if re.match(r"\s*\[\s*\{", text):
            raise DataError(f"{where}: column {column} looks like a list of messages but is not valid JSON: {e}") from e
        return None
    return value if any(_is_message(m) for m in value) else None


def _parse_template(template: str, columns: list[str], answer_column: str | None) -> Template | None:
    """`"Q: {prompt}"` as [("Q: ", "prompt")]: literal text, then the column after it. None for a plain "{prompt}".

    Not str.format: nothing but column names is looked up, and a row's own braces stay as they are.
    """
    if template == "{prompt}":
        return None
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ConfigError(f"data.prompt_template: {e}; write a literal brace twice, as in \\boxed{{{{}}}}") from e
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if spec or conversion or name not in ("prompt", *columns):
            raise ConfigError(
                f"data.prompt_template: {{{name}}} is not a column{nearest(name, columns)}; use {{prompt}} or one of "
                f"{', '.join(columns)}, and write a literal brace twice, as in \\boxed{{{{}}}}"
            )
        if name == answer_column and name != "prompt":
            raise ConfigError(f"data.prompt_template: {{{name}}} is the answer column: the prompt would give it away")
    if not any(name == "prompt" for _, name, _, _ in pieces):
        raise ConfigError("data.prompt_template: must contain {prompt}, the prompt column")
    return [(text, name) for text, name, _, _ in pieces]


def _fill(message: Message, template: Template, loaded: Rows, i: int) -> Message:
    if message["role"] != "user" or not isinstance(message["content"], str):
        raise DataError(f"{loaded.at(i)}: data.prompt_template needs the last message to be the user's, and text")
    parts = []
    for text, name in template:
        parts.append(text)
        if name is not None:
            parts.append(message["content"] if name == "prompt" else _as_text(_cell(loaded, i, name)))
    return {**message, "content": "".join(parts)}


def _as_text(value: Any) -> str:
    """A cell as text: text as it is, anything else as JSON (72, true, {"ground_truth": "72"})."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _response(loaded: Rows, i: int, cfg: DataConfig, said: str | None) -> str:
    """What is to be learned from row i: the response column, else the assistant's last message."""
    column = cfg.response_column
    if said is not None and column not in loaded.rows[i]:
        return said
    text = _as_text(_cell(loaded, i, column))
    if not text:
        raise DataError(f"{loaded.at(i)}: column {column} is empty")
    return text


def _tokenize_prompts(
    loaded: Rows, conversations: list[list[Message]], cfg: DataConfig, tokenizer: Any
) -> list[list[int]]:
    """The token ids of each prompt. A chat template writes its own special tokens; plain text gets the tokenizer's."""
    if cfg.chat_template:
        texts = [_render(loaded.at(i), c, tokenizer) for i, c in enumerate(conversations)]
    else:
        texts = [_plain(loaded.at(i), c) for i, c in enumerate(conversations)]
    tokens = tokenizer(texts, add_special_tokens=not cfg.chat_template)["input_ids"]
    for i, ids in enumerate(tokens):
        if not ids:
            raise DataError(f"{loaded.at(i)}: the prompt has no tokens")
    return tokens


def _render(where: str, conversation: list[Message], tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as e:  # a template is a program of the model's authors and raises what it likes
        raise DataError(f"{where}: the tokenizer's chat template refuses it: {type(e).__name__}: {e}") from e


def _plain(where: str, conversation: list[Message]) -> str:
    if len(conversation) > 1 or not isinstance(conversation[0]["content"], str):
        raise DataError(
            f"{where}: several messages (a system prompt is one) need a chat template; set data.chat_template=True"
        )
    return conversation[0]["content"]
