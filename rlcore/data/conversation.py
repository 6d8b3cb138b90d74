"""Dataset rows to conversations, and conversations to tokens: columns, message lists, both kinds of templates.

The form of a message is messages.py, what a tokenizer's chat template makes of them chat_template.py.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.cells import as_text
from rlcore.data.chat_template import mark_in, rendered, require_plain, require_written
from rlcore.data.layouts import (
    PAIRS,
    PROMPTS,
    TALKS,
    Chosen,
    cell,
    choose,
    gold_of,
    instructions,
    prompt_of,
    response_column,
)
from rlcore.data.messages import INSTRUCTING, Message, is_message, normalised
from rlcore.data.sources import Rows
from rlcore.errors import ConfigError, DataError, nearest

Template = list[tuple[str, str | None]]  # literal text, then the column after it


class Read(NamedTuple):
    """Of each row: the conversation before the response, whose last message is the assistant's where the response goes
    on from it; the gold answer; the assistant's last message, where that is the response.

    `left_out`: of rows without a gold answer, in a set that is known to have such, why. `told`: from which columns.
    """

    messages: list[list[Message]]
    answers: list[str]
    said: list[Message | None]
    left_out: Mapping[int, str] = {}
    told: str = ""


class Asked(NamedTuple):
    """A prompt as text and tokens; `bare` are without those that the tokenizer puts around any text."""

    text: str
    tokens: list[int]
    bare: list[int]


def read_rows(loaded: Rows, cfg: DataConfig, answers_needed: bool = True) -> Read:
    """Every row of a source as a conversation. A template that does not name {prompt} needs no prompt column.

    Without `answers_needed` the rows are to be learned from, and bring their own responses.
    """
    chosen = choose(loaded, cfg, learned=not answers_needed)
    prompt_column = chosen.prompt
    response = None if answers_needed else response_column(loaded, cfg)
    template = _parse_template(cfg.prompt_template, chosen.columns, chosen.gold)
    if template is not None:
        _require_no_response(template, chosen, response)
    asked = template is None or any(name == "prompt" for _, name in template)
    if prompt_column is None and asked:
        raise DataError(
            f"{loaded.source}: none of the columns {', '.join(PROMPTS)}; "
            f"set data.prompt_column to one of {', '.join(loaded.rows[0])}"
        )
    messages, answers, said, left_out = [], [], [], {}
    for i in range(len(loaded.rows)):
        _require_unaided(loaded, i)
        if asked and prompt_column is not None:
            conversation = conversation_of(prompt_of(loaded, i, prompt_column), loaded.at(i), prompt_column)
            conversation = [*instructions(loaded, i, chosen, conversation), *conversation]
        else:
            conversation = list[Message]([{"role": "user", "content": ""}])
        said.append(_answered(conversation, loaded, i, prompt_column, response, cfg.prompt_column != "auto"))
        if cfg.system_prompt is not None:
            rest = [m for m in conversation if m["role"] not in INSTRUCTING]
            conversation = [{"role": "system", "content": cfg.system_prompt}, *rest]
        if template is not None:
            asked_last = -2 if conversation[-1]["role"] == "assistant" else -1
            conversation[asked_last] = _fill(conversation[asked_last], template, loaded, i)
        messages.append(conversation)
        answer, why = gold_of(loaded, i, chosen, answers_needed)
        answers.append(answer)
        if why is not None:
            left_out[i] = why
    if len(left_out) == len(loaded.rows):
        raise DataError(f"{chosen.told(loaded, left_out.values())}: those are all")
    return Read(messages, answers, said, left_out, chosen.told(loaded, left_out.values()))


def _answered(
    conversation: list[Message], loaded: Rows, i: int, column: str | None, response: str | None, named: bool
) -> Message | None:
    """What the assistant says last, taken off, where it is the row's response: in rows to learn from, without another
    one in the column `response`. Else its message stays, as the beginning of a response. DataError where it may be
    either, and the column was not `named`."""
    last, where = conversation[-1], loaded.at(i)
    if last["role"] != "assistant":
        return None
    if not last["content"] and not (response is not None and "tool_calls" in last):
        raise DataError(f"{where}: the assistant's last message has no text; write it, or leave the message out")
    if response is not None and loaded.rows[i].get(response, last["content"]) == last["content"]:
        return conversation.pop()
    if not named and column in TALKS:
        raise DataError(
            f"{where}: column {column} ends with a message of the assistant's, which may be a response or the "
            f"beginning of one; with data.prompt_column={column} the model goes on from it, or leave the message out"
        )
    return None


def _require_unaided(loaded: Rows, i: int) -> None:
    """DataError for a row that has more for its chat template than messages, as TRL's rows may."""
    tools, args = (_from_json(loaded.rows[i].get(column)) for column in ("tools", "chat_template_kwargs"))
    listed = [tool for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    if any("name" in (tool.get("function") or tool) for tool in listed):
        raise DataError(
            f"{loaded.at(i)}: column tools has functions to call, which no prompt would tell the model of; describe "
            "them in a system message, or leave the column out"
        )
    if isinstance(args, Mapping) and any(value is not None for value in args.values()):
        raise DataError(
            f"{loaded.at(i)}: column chat_template_kwargs is not read; set data.chat_template_args for all rows, and "
            "leave the column out"
        )


def _from_json(value: Any) -> Any:
    """What JSON text of a list or a record stands for, as in a CSV file; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


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
    if not all(is_message(m) or (isinstance(m, Mapping) and "role" in m and "tool_calls" in m) for m in messages):
        raise DataError(f"{where}: column {column} must be text or a list of {{role, content}} messages")
    messages = normalised(messages, f"{where}: column {column}")
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked:
        raise DataError(f"{where}: column {column} has no user message")
    if not asked[-1].strip():
        raise DataError(f"{where}: column {column}: the last user message is empty")
    return messages


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
        if answer_column is not None and f"{answer_column}.".startswith(f"{name}.") and name != "prompt":
            raise ConfigError(f"data.prompt_template: {{{name}}} is the answer column: the prompt would give it away")
    if not any(name is not None for _, name, _, _ in pieces):
        raise ConfigError("data.prompt_template: must contain {prompt}, the prompt column, or other columns")
    return [(text, name) for text, name, _, _ in pieces]


def _require_no_response(template: Template, chosen: Chosen, response: str | None) -> None:
    """ConfigError for a template that names what is to be learned."""
    learned = {"chosen", "rejected"} if chosen.layout is PAIRS else set[str]()
    learned |= set() if response is None else {response}
    if given := learned.intersection(name for _, name in template if name not in (None, chosen.prompt, "prompt")):
        raise ConfigError(
            f"data.prompt_template: {{{min(given)}}} is a response to learn: the prompt would give it away"
        )


def _fill(message: Message, template: Template, loaded: Rows, i: int) -> Message:
    if message["role"] != "user":
        raise DataError(f"{loaded.at(i)}: data.prompt_template needs the last message to be the user's")
    parts = []
    for text, name in template:
        parts.append(text)
        if name is not None:
            parts.append(message["content"] if name == "prompt" else as_text(cell(loaded, i, name)))
    return {**message, "content": "".join(parts)}


def conversation_tokens(
    tokenizer: Any,
    conversation: Sequence[Message],
    chat_template: bool,
    generation_prompt: bool = False,
    args: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a conversation; with `generation_prompt`, of one that the assistant is to answer next, or to go on
    with where the last message is its own. `args` are for the chat template, which writes its own special tokens; plain
    contents get those that the tokenizer puts around any text, but none twice, and none after what is to be answered.
    Raises ValueError when this conversation cannot be done, DataError when none can.
    """
    text = conversation_text(tokenizer, conversation, chat_template, generation_prompt, args)
    return _tokens_of(tokenizer, text, chat_template, generation_prompt).tokens


def conversation_text(
    tokenizer: Any,
    conversation: Sequence[Message],
    chat_template: bool,
    generation_prompt: bool = False,
    args: Mapping[str, Any] | None = None,
) -> str:
    """What `conversation_tokens` makes tokens of. Raises the same."""
    if chat_template:
        return rendered(tokenizer, conversation, args or {}, generation_prompt)
    return _plain(conversation, generation_prompt)


def prompt_of_text(tokenizer: Any, text: str, chat_template: bool) -> Asked:
    """A prompt's text, with its tokens. ValueError where it has none."""
    return _tokens_of(tokenizer, text, chat_template, generation_prompt=True)


def _tokens_of(tokenizer: Any, text: str, chat_template: bool, generation_prompt: bool) -> Asked:
    """A chat template's text has its special tokens; to a plain one come those that the tokenizer puts around any."""
    bare = tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ValueError(f"the {'prompt' if generation_prompt else 'conversation'} has no tokens")
    before, after = ([], []) if chat_template else _around(tokenizer)
    if tokens[: len(before)] != before:
        tokens = before + tokens
    if not generation_prompt and after and tokens[-len(after) :] != after:
        tokens = tokens + after
    return Asked(text, tokens, bare)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after any text."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _plain(conversation: Sequence[Message], generation_prompt: bool) -> str:
    contents = [message["content"] for message in conversation]
    texts = [content for content in contents if isinstance(content, str)]
    if generation_prompt and (len(contents), len(texts)) != (1, 1):
        raise ValueError(
            "several messages (a system prompt is one, and so is an assistant's to go on from) need a chat template; "
            "set data.chat_template=True"
        )
    if len(texts) < len(contents):
        raise ValueError("a message that is not text needs a chat template, which the tokenizer lacks")
    return "".join(texts)


def asked(where: str, conversation: Sequence[Message], cfg: DataConfig, tokenizer: Any) -> Asked:
    """What the assistant is to answer, or to go on with. DataError names the row, which is at `where`, also where its
    text holds special tokens or the chat template would leave something out."""
    text = row_text(where, conversation, cfg, tokenizer, generation_prompt=True)
    return _tokens_of_row(where, text, cfg, tokenizer, generation_prompt=True)


def row_text(
    where: str, conversation: Sequence[Message], cfg: DataConfig, tokenizer: Any, generation_prompt: bool = False
) -> str:
    """The text of a row's conversation. Raises what `asked` does."""
    try:
        if not cfg.chat_template:
            return conversation_text(tokenizer, conversation, False, generation_prompt)
        require_plain(where, conversation, tokenizer)
        return require_written(tokenizer, conversation, cfg.chat_template_args, generation_prompt)
    except ValueError as e:
        raise DataError(f"{where}: {e}") from e


def tokens_of_row(where: str, text: str, cfg: DataConfig, tokenizer: Any) -> list[int]:
    """The tokens of the `row_text` of a whole conversation."""
    return _tokens_of_row(where, text, cfg, tokenizer, generation_prompt=False).tokens


def _tokens_of_row(where: str, text: str, cfg: DataConfig, tokenizer: Any, generation_prompt: bool) -> Asked:
    try:
        return _tokens_of(tokenizer, text, cfg.chat_template, generation_prompt)
    except ValueError as e:
        raise DataError(f"{where}: {e}") from e


def require_plain_response(where: str, text: str, cfg: DataConfig, tokenizer: Any) -> None:
    """DataError for a response to learn that holds the end of a sequence, or another mark of the tokenizer's."""
    if (mark := mark_in(tokenizer, text, cfg.chat_template)) is not None:
        raise DataError(
            f"{where}: the response holds {mark}, which is no text to the tokenizer but a mark; take it out (the end "
            "of the sequence is put after it), or leave the row out"
        )
