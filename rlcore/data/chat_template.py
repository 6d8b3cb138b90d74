"""Conversations through a tokenizer's chat template: rendering, continuing a message, and what a row must not hold.

A template is a program of the model's authors: it raises what it likes, leaves out what it does not know, and writes
marks that a text may hold by accident. What goes wrong is a ValueError, of the conversation; DataError or ConfigError
where no conversation would do.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.data.messages import Message
from rlcore.errors import ConfigError, DataError, nearest

# Of apply_chat_template and of the environment that templates run in: not for a user to set.
_OURS = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
_OURS |= {"conversation", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
_OURS |= {"return_assistant_tokens_mask", "tokenizer_kwargs", "raise_exception", "strftime_now"}

_TAG = re.compile(r"</?[A-Za-z]\w*>")  # as <think> and </think>: what a prompt may ask for and a response may hold
_TAG_LAST = re.compile(rf"({_TAG.pattern})\s*\Z")
_MARK = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,}\]")
_SAID = ("said-by-the-system", "said-first", "said-in-answer", "said-last")


def rendered(
    tokenizer: Any, conversation: Sequence[Message], args: Mapping[str, Any], generation_prompt: bool = False
) -> str:
    """The text of a conversation. With `generation_prompt` it is one that the assistant is to answer next, or whose
    last message is the assistant's and to be continued. `args` are data.chat_template_args."""
    _require_used(args, _template(tokenizer))
    if generation_prompt and conversation[-1]["role"] == "assistant":
        return _continued(tokenizer, conversation, args)
    return _render(tokenizer, conversation, args, generation_prompt)


def require_written(
    tokenizer: Any, conversation: Sequence[Message], args: Mapping[str, Any], generation_prompt: bool = False
) -> str:
    """The same text. Raises ValueError where the template leaves out a message, or the tools it calls, altogether."""
    text = rendered(tokenizer, conversation, args, generation_prompt)
    for i, message in enumerate(conversation):
        content = (message["content"] or "").strip()
        changes: dict[str, Message] = {}
        if content and content not in text:  # else it may be trimmed, or have lost its thoughts
            changes["it"] = {**message, "content": ""}
        if "tool_calls" in message:
            changes["its tool_calls"] = {k: v or "" for k, v in message.items() if k != "tool_calls"}
        for what, changed in changes.items():
            try:
                without = [*conversation[:i], changed, *conversation[i + 1 :]]
                same = rendered(tokenizer, without, args, generation_prompt) == text
            except ValueError:
                same = False
            if same:
                raise ValueError(
                    f"message {i + 1} ({message['role']}): the tokenizer's chat template leaves {what} out, so the "
                    "model would not see it; say it in a message the template writes"
                )
    return text


def mark_in(tokenizer: Any, text: str, chat_template: bool = True) -> str | None:
    """What of a text is no text to this tokenizer, if anything: a special token, or a mark of the template's turns.

    Tags as <think> are text, also where they are special tokens. Without a chat template only the tokens count that
    begin and end a sequence.
    """
    template = _template(tokenizer) if chat_template else None
    found = None if (marks := _marks(tokenizer, template)) is None else marks.search(text)
    return None if found is None else found[0]


def require_plain(where: str, conversation: Sequence[Message], tokenizer: Any) -> None:
    """DataError for a message that holds what is no text, as a prompt does that is rendered already."""
    for number, message in enumerate(conversation, 1):
        for field in ("content", "reasoning_content"):
            if (mark := mark_in(tokenizer, message.get(field) or "")) is not None:
                raise DataError(
                    f"{where}: message {number} ({message['role']}) holds {mark}, which is no text to the tokenizer "
                    "but a mark; a prompt that is rendered already needs data.chat_template=false, in any other take "
                    "it out, or leave the row out"
                )


def with_defaults(template: str, args: Mapping[str, Any]) -> str:
    """A template that has these arguments where it is given none. ConfigError for one that it does not read."""
    _require_used(args, template)
    literals = {key: "none" if value is None else json.dumps(value, ensure_ascii=False) for key, value in args.items()}
    lines = [f"{{%- if {k} is not defined %}}{{%- set {k} = {v} %}}{{%- endif %}}" for k, v in literals.items()]
    return "".join(lines) + template


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    return template


def _require_used(args: Mapping[str, Any], template: str) -> None:
    for key in map(str, args):
        if key in _OURS or key.endswith("_token"):
            raise ConfigError(f"data.chat_template_args.{key}: is not to be set here; leave it out")
        names = _names(template)
        if key not in names:
            hint = f"{nearest(key, names)}; it reads {', '.join(sorted(names))}" if names else ""
            raise ConfigError(f"data.chat_template_args.{key}: the tokenizer's chat template does not read it{hint}")


@functools.lru_cache(maxsize=8)
def _names(template: str) -> frozenset[str]:
    """What a template reads that a user may give; nothing is run. None of one that cannot be read."""
    import jinja2.meta

    # The block that transformers adds to the language, without a value of its own.
    plain = re.sub(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}", "", template)
    env = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        names = jinja2.meta.find_undeclared_variables(env.parse(plain))
    except jinja2.TemplateError:
        return frozenset()
    return frozenset(n for n in names if n not in _OURS and n not in env.globals and not n.endswith("_token"))


def _render(tokenizer: Any, conversation: Sequence[Message], args: Mapping[str, Any], generation_prompt: bool) -> str:
    """A content that is None stays None for the templates that ask for it, and is empty where it would be a word."""
    how = dict(args, add_generation_prompt=generation_prompt)
    if all(message["content"] is not None for message in conversation):
        return _apply(tokenizer, conversation, how)
    empty = _apply(tokenizer, [{**m, "content": m["content"] or ""} for m in conversation], how)
    try:
        null = _apply(tokenizer, conversation, how)
    except ValueError:
        return empty
    return empty if null.count("None") > empty.count("None") else null


def _apply(tokenizer: Any, conversation: Sequence[Message], how: Mapping[str, Any]) -> str:
    try:
        return tokenizer.apply_chat_template([dict(message) for message in conversation], tokenize=False, **how)
    except Exception as e:
        why = (str(e).splitlines() or [""])[0][:200]
        raise ValueError(f"the tokenizer's chat template refuses it: {type(e).__name__}: {why}") from e


def _continued(tokenizer: Any, conversation: Sequence[Message], args: Mapping[str, Any]) -> str:
    """The text up to the end of the last message's words, which the assistant goes on from.

    Some templates trim a message, and some put thoughts before one that has none: neither may come between.
    """
    *before, last = conversation
    words = last["content"] or ""
    core = words.strip()
    if not core or "tool_calls" in last:
        raise ValueError("its last message is the assistant's but has no words to be continued; leave that message out")
    opened = _render(tokenizer, before, args, generation_prompt=True)
    text = _apply(tokenizer, conversation, dict(args, continue_final_message=True))
    if not text.endswith(words) and text.rstrip().endswith(core):
        text = text.rstrip().removesuffix(core) + words
    if not text.endswith(words):
        raise ValueError(
            f"its last message is the assistant's, to be continued from {words[-40:]!r}, but the tokenizer's chat "
            "template does not end with these words"
        )
    if text.startswith(opened) and text[len(opened) : len(text) - len(words)].strip():
        return opened + words[_overlap(opened, words) :]
    return text


def _overlap(text: str, words: str) -> int:
    """How much of the beginning of `words` a text ends with already, as with a <think> that the template opens."""
    exact = next((n for n in range(len(words), 0, -1) if text.endswith(words[:n]) and words[:n].strip()), 0)
    tag, begun = _TAG_LAST.search(text), words.lstrip()
    if exact or tag is None or not begun.startswith(tag[1]):
        return exact
    return len(words) - len(begun.removeprefix(tag[1]))  # another line's end after it, or none


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: Any, template: str | None) -> re.Pattern[str] | None:
    """Matches what is no text to this tokenizer and template."""
    named = tokenizer.special_tokens_map
    marks = {named[name] for name in ("bos_token", "eos_token") if name in named}
    if template is not None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = {token for token in special if len(token) > 2}  # some pad with a letter: "!"
        marks |= {token for token in special if not _TAG.fullmatch(token)} | _between_turns(tokenizer)
        marks |= {token for token in named.values() if isinstance(token, str) and _MARK.fullmatch(token)}
    marks = {mark for mark in marks if mark.strip()}
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first))) if marks else None


def _between_turns(tokenizer: Any) -> set[str]:
    """What the template writes between two messages that looks like a mark: <|user|>, [INST], a special token of it."""
    system, first, answer, last = (
        {"role": role, "content": text}
        for role, text in zip(("system", "user", "assistant", "user"), _SAID, strict=True)
    )
    for conversation in ([system, first, answer, last], [first, answer, last], [first]):
        try:
            text = _apply(tokenizer, conversation, {"add_generation_prompt": False})
        except ValueError:
            continue
        *between, _ = re.split("|".join(_SAID), text)
        found = {mark for piece in between for mark in _MARK.findall(piece)}
        # A template that writes thoughts for those who have none: <think></think> are text all the same.
        pairs = {mark for mark in found if mark.replace("/", "") in found and f"</{mark.strip('</>')}>" in found}
        return found - {mark for mark in pairs if _TAG.fullmatch(mark)}
    return set()
