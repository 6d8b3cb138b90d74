"""What the assistant's turn has opened where a prompt ends, such as `<think>`: a response goes on from there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.data.endings import text_of

_FIRST = re.compile(r"</?think>|<answer>|\\boxed\{|```")
# At the very end of a text. A thought that was closed at once, as templates do to have none, stands after a marker or
# on a line of its own: "write it in <think> </think>" is an instruction.
_LAST = re.compile(
    r"(?:<think>\s*|(?:(?:(?<=[\n>\]:])|^)<think>\s*</think>|(?<!<think>)(?<=[>\]])</think>)\s*(?:<answer>\s*)?"
    r"|<answer>\s*|\\boxed\{\s*|```\w+\s*)\Z"
)
_TAIL = 64  # tokens; what a template opens is shorter


def opened(tokenizer: Any, tokens: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> str:
    """What is open at the end of a prompt, from where it was opened on: `<think>\\n`, or "" where nothing is.

    `messages` is the prompt's conversation; where the assistant began the last one, what it opened there counts too.
    """
    said = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    if not isinstance(said, str) or not said:
        return _at_the_end(text_of(tokenizer, tokens[-_TAIL:]))
    return of_text(text_of(tokenizer, tokens), said)


def of_text(text: str, said: str = "") -> str:
    """`opened` of a prompt's text, which ends with what the assistant `said`."""
    start = text.rfind(said.strip()) if said.strip() else len(text)
    if start < 0:
        return _at_the_end(text)
    before, words = _at_the_end(text[:start]), text[start:]
    if before:
        return before + words
    found = _FIRST.search(words)
    return words[found.start() :] if found else ""


def _at_the_end(text: str) -> str:
    found = _LAST.search(text)
    return found.group() if found else ""


def after(opening: str, message: str) -> str | None:
    """What a whole message says after its `opening`; None if it does not begin with it."""
    text, begins = message.lstrip(), opening.strip()
    if not text.startswith(begins):
        return None
    return text[len(begins) :].removeprefix(opening[len(opening.rstrip()) :])
