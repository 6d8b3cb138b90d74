"""What the assistant says, as tokens to be learned: exactly what a model that goes on from the prompt has to sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.data import opened
from rlcore.data.conversation import (
    Asked,
    as_text,
    cell,
    conversation_text,
    is_message,
    prompt_of_text,
    require_plain_response,
)
from rlcore.data.endings import Endings
from rlcore.data.messages import Message, normalised
from rlcore.data.sources import Rows
from rlcore.errors import DataError

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # where messages keep them, beside the content
_CLOSES = {"<think>": "</think>", "<answer>": "</answer>"}


def messages_of(loaded: Rows, i: int, column: str) -> list[Message]:
    """A cell as messages: text is the assistant's. A CSV file has its messages as JSON."""
    value = cell(loaded, i, column)
    if isinstance(value, str) and value.lstrip().startswith("[") and (parsed := _parsed(value)) is not None:
        value = parsed
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = value if isinstance(value, list) else [value]
    if not messages or not all(is_message(m) for m in messages):
        raise DataError(f"{loaded.at(i)}: column {column} must be text or a list of {{role, content}} messages")
    return normalised(messages, f"{loaded.at(i)}: column {column}")


def _parsed(text: str) -> list[Any] | None:
    """A list of messages; None for any other text, such as `[1, 2]`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and value and all(is_message(m) for m in value) else None


def response_tokens(
    where: str, tokenizer: Any, conversation: Sequence[Message], cfg: DataConfig, ends: Endings, prompt: Asked
) -> list[int]:
    """The tokens of the last message, the assistant's, after the `prompt` of those before it; an ending token is last.

    They are what the chat template renders for it, where that goes on from the prompt and leaves nothing out, else the
    message's text. DataError names the row, at `where`, in which neither is what the assistant says.
    """
    *context, message = conversation
    message = {**message, "content": "" if message["content"] is None else message["content"]}
    if not isinstance(message["content"], str):
        raise DataError(f"{where}: the assistant's last message must be text, for a policy to learn from it")
    written = json.dumps({k: v for k, v in message.items() if k != "role"}, ensure_ascii=False, default=str)
    if held := [text for text in ends.texts if text and text in written]:
        raise DataError(
            f"{where}: the response holds {held[0]}, which ends a response; take it out (the end of the sequence is "
            "put after it), or leave the row out"
        )
    for text in (message["content"], message.get("reasoning_content") or ""):
        require_plain_response(where, text, cfg, tokenizer)
    try:
        joined, args = _joined(context, message), cfg.chat_template_args
        whole = conversation_text(tokenizer, joined, True, args=args) if cfg.chat_template else ""
    except ValueError as e:
        raise DataError(f"{where}: {e}") from e
    before = prompt.text
    begun = opened.of_text(before)
    said = _turn(whole.removeprefix(before), ends)
    repeated = _repeats(begun, said, joined[-1]["content"])
    shown = begun + _without_ends(said, ends)
    if cfg.chat_template and whole.startswith(before) and not repeated and not left_out(message, shown):
        tokens = _going_on(tokenizer, prompt, said)
        if tokens[-1:] and tokens[-1] in ends.ids:
            return tokens
        said = _up_to(said, message["content"])
    else:
        said = _own_words(where, message, begun)
    return [*_going_on(tokenizer, prompt, said), ends.taught]


def _joined(context: Sequence[Message], message: Message) -> list[Message]:
    """The conversation, where the message goes on with words of the assistant's if they are last."""
    if not context or context[-1]["role"] != "assistant":
        return [*context, message]
    return [*context[:-1], {**message, "content": f"{context[-1]['content'] or ''}{message['content']}"}]


def _repeats(begun: str, said: str, content: str) -> bool:
    """Whether a template that opens something itself has closed it, and then written the content that opens it."""
    begins = begun.strip()
    return bool(begins) and content.lstrip().startswith(begins) and begins in said


def _turn(text: str, ends: Endings) -> str:
    """The text up to the first ending token, with it; all of a text that has none."""
    found = [at + len(end) for end in ends.texts if end and (at := text.find(end)) >= 0]
    return text[: min(found, default=len(text))]


def _without_ends(text: str, ends: Endings) -> str:
    """Else a tool called `f` would be found in `<|endoftext|>`."""
    for end in filter(None, ends.texts):
        text = text.replace(end, "")
    return text


def _going_on(tokenizer: Any, prompt: Asked, said: str) -> list[int]:
    """The tokens of `said` where it goes on from the prompt: not as the beginning of a text, as long as the tokens of
    the prompt stay what they are."""
    before, whole = prompt.bare, tokenizer(prompt.text + said, add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer(said, add_special_tokens=False)["input_ids"]


def left_out(message: Message, said: str) -> list[str]:
    """What of the message is not in `said`. White space does not count: templates trim it."""
    squeezed = _squeezed(said)
    wanted = {"content": [message["content"]]}
    wanted |= {name: [message[name]] for name in THOUGHTS if isinstance(message.get(name), str)}
    wanted["tool_calls"] = [_called(call) for call in message.get("tool_calls") or ()]
    return [name for name, texts in wanted.items() if any(_squeezed(text) not in squeezed for text in texts)]


def _called(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return str(function.get("name") if isinstance(function, Mapping) else call)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _up_to(said: str, content: str) -> str:
    """`said` without what a template writes between two turns, which is no ending token and not to be learned."""
    text = content.strip()
    at = said.rfind(text) if text else -1
    return said[: at + len(text)] if at >= 0 else said.rstrip()


def _own_words(where: str, message: Message, begun: str) -> str:
    """The message's text, after what the prompt has `begun` of it."""
    more = [name for name in left_out(message, message["content"]) if name != "content"]
    if more:
        raise DataError(
            f"{where}: the chat template leaves out the {more[0]} of the assistant's message; write into its content "
            "what the model is to say, or take a chat template that renders it"
        )
    text = message["content"]
    if not begun:
        return text
    rest = opened.after(begun, text)
    if rest is not None:
        return rest
    if begun.rstrip().endswith("</think>") and text.lstrip().startswith("<think>"):
        raise DataError(
            f"{where}: the prompt ends with {begun.strip()!r}, a thought that is closed, and the assistant's message "
            "begins another; leave the thought out, or set data.chat_template_args so that the prompt does not close it"
        )
    missing = [close for tag, close in _CLOSES.items() if begun.rstrip().endswith(tag) and close not in text]
    if missing:
        raise DataError(
            f"{where}: the prompt ends with {begun.strip()}, and the assistant's message neither begins with it nor "
            f"has {missing[0]}: all of it would be learned as what stands inside; write the whole message"
        )
    return text


def learned_before(
    where: str,
    tokenizer: Any,
    conversation: Sequence[Message],
    turns: Sequence[int],
    tokens: Sequence[int],
    cfg: DataConfig,
    ends: Endings,
) -> list[bool] | None:
    """Which of a prompt's `tokens` the assistant says in its messages number `turns` of the conversation.

    None: the chat template renders an earlier turn otherwise than when it was said, as one does that drops thoughts.
    """
    mask = [False] * len(tokens)
    for number in turns:
        try:
            text = conversation_text(tokenizer, conversation[:number], cfg.chat_template, True, cfg.chat_template_args)
            before = prompt_of_text(tokenizer, text, cfg.chat_template)
        except ValueError:  # nothing before it, or nothing that the template takes alone
            return None
        said = response_tokens(where, tokenizer, conversation[: number + 1], cfg, ends, before)
        start, end = len(before.tokens), len(before.tokens) + len(said)
        if list(tokens[:end]) != before.tokens + said:
            return None
        mask[start:end] = [True] * len(said)
    return mask


def spoken(loaded: Rows, i: int, column: str) -> list[Message]:
    """A response cell as messages that begin and end with the assistant's; numbers and truth values as text."""
    value = cell(loaded, i, column)
    if isinstance(value, (bool, int, float)):
        return [{"role": "assistant", "content": as_text(value)}]
    messages = messages_of(loaded, i, column)
    if not (messages[0]["role"] == messages[-1]["role"] == "assistant"):
        raise DataError(f"{loaded.at(i)}: column {column} must begin and end with what the assistant says")
    if not (messages[-1]["content"] or "").strip() and not messages[-1].get("tool_calls"):
        raise DataError(f"{loaded.at(i)}: column {column} is empty")
    return messages
