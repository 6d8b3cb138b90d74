"""The shape of a reasoning response (arXiv 2501.12948): `<think>...</think><answer>...</answer>`."""

from __future__ import annotations

import unicodedata

from rlcore.records import Prompt

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # by Unicode's categories letters and a symbol, but nothing is to be seen


def think_answer(prompt: Prompt, response: str) -> float:
    """1.0 if the four tags appear in order, once each, around something visible, and outside is only space; else 0.0.

    Tags that the prompt ends with count as the response's own.
    """
    text = whole(prompt, response).strip()
    if not in_order(text) or not text.startswith(TAGS[0]) or not text.endswith(TAGS[3]):
        return 0.0
    at = [text.find(tag) for tag in TAGS]
    thought, between, answer = (text[at[i] + len(TAGS[i]) : at[i + 1]] for i in range(3))
    return float(_visible(thought) and not between.strip() and _visible(answer))


def _visible(text: str) -> bool:
    """Whether it has a letter, digit, sign or symbol: no space, mark, or zero-width or control character alone."""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANKS for c in text)


def whole(prompt: Prompt, response: str) -> str:
    """The response with the tags that its prompt has written before it, from `<think>` on.

    Where the prompt has closed the thought, or begun the answer without one, there is nothing more to think: `-`.
    """
    own, head = response.removeprefix(prompt.opened), prompt.opened
    if TAGS[1] in head or head.startswith(TAGS[2]):
        head = f"{TAGS[0]}-{TAGS[1]}" + head.rpartition(TAGS[1])[2]
    return head + own


def in_order(text: str) -> bool:
    """Whether each of the four tags appears exactly once, and in order."""
    at = [text.find(tag) for tag in TAGS]
    return all(text.count(tag) == 1 for tag in TAGS) and at == sorted(at)


def after_thought(response: str) -> str:
    """What follows the last `</think>`; the whole response if there is none."""
    return response.rpartition(TAGS[1])[2]


def last_answer(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, without space around it; None if no such pair."""
    begin = text.rfind(TAGS[2], 0, max(0, text.rfind(TAGS[3])))
    return None if begin < 0 else text[begin + len(TAGS[2]) : text.find(TAGS[3], begin)].strip()
