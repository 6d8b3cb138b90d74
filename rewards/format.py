"""The shape of a reasoning response (arXiv 2501.12948): `<think>...</think><answer>...</answer>`."""

from __future__ import annotations

from rlcore.records import Prompt

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_answer(prompt: Prompt, response: str, *, prefilled: bool = False) -> float:
    """1.0 if the four tags appear in order, once each, around something, with nothing but space outside; else 0.0.

    `prefilled`: the prompt ends in an opening `<think>`, as TinyZero's and Logic-RL's templates do, so the response
    starts inside the thought.
    """
    text = opened(response, prefilled).strip()
    if not in_order(text) or not text.startswith(TAGS[0]) or not text.endswith(TAGS[3]):
        return 0.0
    at = [text.find(tag) for tag in TAGS]
    thought, between, answer = (text[at[i] + len(TAGS[i]) : at[i + 1]].strip() for i in range(3))
    return float(bool(thought) and not between and bool(answer))


def opened(response: str, prefilled: bool) -> str:
    """The response with the `<think>` that its prompt has already written, if it has."""
    return TAGS[0] + response if prefilled else response


def in_order(text: str) -> bool:
    """Whether each of the four tags appears exactly once, and in order."""
    at = [text.find(tag) for tag in TAGS]
    return all(text.count(tag) == 1 for tag in TAGS) and at == sorted(at)


def last_answer(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, without space around it; None if no such pair."""
    begin = text.rfind(TAGS[2], 0, max(0, text.rfind(TAGS[3])))
    return None if begin < 0 else text[begin + len(TAGS[2]) : text.find(TAGS[3], begin)].strip()
