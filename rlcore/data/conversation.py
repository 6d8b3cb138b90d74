"""Dataset rows to conversations, and conversations to tokens: columns, message lists, both kinds of templates."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.sources import Row, Rows
from rlcore.errors import ConfigError, DataError, nearest

Message = Mapping[str, Any]
Template = list[tuple[str, str | None]]  # literal text, then the column after it

_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
_ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reward_model.ground_truth", "response")


class Read(NamedTuple):
    """Of each row: the conversation before the response, the gold answer, what the assistant said last, if it did."""

    messages: list[list[Message]]
    answers: list[str]
    said: list[Message | None]


def read_rows(loaded: Rows, cfg: DataConfig, answers_needed: bool = True) -> Read:
    """Every row of a source as a conversation. A template that does not name {prompt} needs no prompt column."""
    columns = list(dict.fromkeys(column for row in loaded.rows for column in _columns(row)))
    first = list(loaded.rows[0])
    prompt_column = _choose(loaded, "data.prompt_column", cfg.prompt_column, _PROMPT_COLUMNS, first)
    answer_column = _choose(loaded, "data.answer_column", cfg.answer_column, _ANSWER_COLUMNS, columns)
    template = _parse_template(cfg.prompt_template, columns, answer_column)
    asked = template is None or any(name == "prompt" for _, name in template)
    if prompt_column is None and asked:
        raise DataError(
            f"{loaded.source}: none of the columns {', '.join(_PROMPT_COLUMNS)}; "
            f"set data.prompt_column to one of {', '.join(first)}"
        )
    messages, answers, said = [], [], []
    for i in range(len(loaded.rows)):
        if asked and prompt_column is not None:
            conversation = conversation_of(cell(loaded, i, prompt_column), loaded.at(i), prompt_column)
        else:
            conversation = list[Message]([{"role": "user", "content": ""}])
        said.append(_answered(conversation, loaded.at(i)))
        if cfg.system_prompt is not None:
            rest = [m for m in conversation if m["role"] != "system"]
            conversation = [{"role": "system", "content": cfg.system_prompt}, *rest]
        if template is not None:
            conversation[-1] = _fill(conversation[-1], template, loaded, i)
        messages.append(conversation)
        if answer_column is None or not (answers_needed or _value(loaded.rows[i], answer_column) is not None):
            answers.append("")
        else:
            answers.append(as_text(cell(loaded, i, answer_column)))
    return Read(messages, answers, said)


def _answered(conversation: list[Message], where: str) -> Message | None:
    """Takes the last message off, if the assistant said it."""
    if conversation[-1]["role"] != "assistant":
        return None
    message = conversation.pop()
    if message["content"] is None and not message.get("tool_calls"):
        raise DataError(f"{where}: the assistant's last message has no content; write it, or leave the message out")
    return message


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


def cell(loaded: Rows, i: int, column: str) -> Any:
    row = loaded.rows[i]
    value = _value(row, column)
    if value is None:
        what = "is empty" if column in row else f"is missing{nearest(column, row)}"
        raise DataError(f"{loaded.at(i)}: column {column} {what}")
    return value


def _columns(row: Row) -> list[str]:
    """The columns, and the fields of those that hold records: `reward_model.ground_truth`, as veRL's data has it."""
    inner = [f"{column}.{name}" for column, value in row.items() if isinstance(value, Mapping) for name in value]
    return [*row, *inner]


def _value(row: Row, column: str) -> Any:
    outer, dot, name = column.partition(".")
    if column in row or not dot:
        return row.get(column)
    record = row.get(outer)
    return record.get(name) if isinstance(record, Mapping) else None


def conversation_of(value: Any, where: str, column: str) -> list[Message]:
    """A prompt cell as a list of messages that a response can follow, or that ends with one."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: column {column} is empty")
        parsed = _parse_messages(value, where, column)
        if parsed is None:
            return [{"role": "user", "content": value}]
        value = parsed
    messages = value if isinstance(value, list) else [value]
    if not all(is_message(m) for m in messages):
        raise DataError(f"{where}: column {column} must be text or a list of {{role, content}} messages")
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked:
        raise DataError(f"{where}: column {column} has no user message")
    if not asked[-1] or (isinstance(asked[-1], str) and not asked[-1].strip()):
        raise DataError(f"{where}: column {column}: the last user message is empty")
    return list(messages)


def is_message(value: Any) -> bool:
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
    return value if any(is_message(m) for m in value) else None


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
    if not any(name is not None for _, name, _, _ in pieces):
        raise ConfigError("data.prompt_template: must contain {prompt}, the prompt column, or other columns")
    return [(text, name) for text, name, _, _ in pieces]


def _fill(message: Message, template: Template, loaded: Rows, i: int) -> Message:
    if message["role"] != "user" or not isinstance(message["content"], str):
        raise DataError(f"{loaded.at(i)}: data.prompt_template needs the last message to be the user's, and text")
    parts = []
    for text, name in template:
        parts.append(text)
        if name is not None:
            parts.append(message["content"] if name == "prompt" else as_text(cell(loaded, i, name)))
    return {**message, "content": "".join(parts)}


def as_text(value: Any) -> str:
    """A cell as text: text as it is, anything else as JSON (72, true, {"ground_truth": "72"})."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def conversation_tokens(
    tokenizer: Any, conversation: Sequence[Message], chat_template: bool, generation_prompt: bool = False
) -> list[int]:
    """The tokens of a conversation; with `generation_prompt`, of one that the assistant is to answer next.

    A chat template writes its own special tokens; the plain contents get those that the tokenizer puts around any text.
    Raises ValueError when this conversation cannot be done, DataError when none can.
    """
    text = conversation_text(tokenizer, conversation, chat_template, generation_prompt)
    tokens = tokenizer(text, add_special_tokens=not chat_template)["input_ids"]
    if not tokens:
        raise ValueError(f"the {'prompt' if generation_prompt else 'conversation'} has no tokens")
    return tokens


def conversation_text(
    tokenizer: Any, conversation: Sequence[Message], chat_template: bool, generation_prompt: bool = False
) -> str:
    """What `conversation_tokens` makes tokens of. Raises the same."""
    if chat_template:
        return _rendered(tokenizer, conversation, generation_prompt)
    return _plain(conversation, generation_prompt)


def _rendered(tokenizer: Any, conversation: Sequence[Message], generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    messages = [dict(message) for message in conversation]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as e:  # a template is a program of the model's authors and raises what it likes
        raise ValueError(f"the tokenizer's chat template refuses it: {type(e).__name__}: {e}") from e


def _plain(conversation: Sequence[Message], generation_prompt: bool) -> str:
    contents = [message["content"] for message in conversation]
    texts = [content for content in contents if isinstance(content, str)]
    if generation_prompt and (len(contents), len(texts)) != (1, 1):
        raise ValueError("several messages (a system prompt is one) need a chat template; set data.chat_template=True")
    if len(texts) < len(contents):
        raise ValueError("a message that is not text needs a chat template, which the tokenizer lacks")
    return "".join(texts)


def prompt_tokens(where: str, conversation: Sequence[Message], cfg: DataConfig, tokenizer: Any) -> list[int]:
    """The tokens of what the assistant is to answer. DataError names the row, which is at `where`."""
    try:
        return conversation_tokens(tokenizer, conversation, cfg.chat_template, generation_prompt=True)
    except ValueError as e:
        raise DataError(f"{where}: {e}") from e
