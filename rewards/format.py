"""The shape of a reasoning response (arXiv 2501.12948): `<think>...</think><answer>...</answer>`."""

from __future__ import annotations

from rlcore.records import Prompt

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_answer(prompt: Prompt, response: str) -> float:
    """1.0 if the four tags appear in order, once each, around something, with nothing but space outside; else 0.0."""
    text = response.strip()
    if any(text.count(tag) != 1 for tag in _TAGS):
        return 0.0
    at = [text.find(tag) for tag in _TAGS]
    if at != sorted(at) or at[0] != 0 or not text.endswith(_TAGS[3]):
        return 0.0
    inside = [text[at[i] + len(_TAGS[i]) : at[i + 1]].strip() for i in range(3)]
    thought, between, answer = inside
    return float(bool(thought) and not between and bool(answer))
