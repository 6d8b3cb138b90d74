"""Exact match: the answer's text is the gold text."""

from __future__ import annotations

import unicodedata

from rewards.format import after_thought, last_answer
from rewards.golds import readable_golds
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt


def exact_match(prompt: Prompt, response: str, *, case_sensitive: bool = False, last_line: bool = False) -> float:
    """1.0 if the response's answer is the text of `prompt.answer`, else 0.0. Runs of white space count as one space.

    The answer is what stands in the last `<answer>...</answer>`; without one the whole response, or with `last_line`
    its last line that is not empty. Only what follows the last `</think>` is read. Case does not matter unless
    `case_sensitive`. Raises UnparseableGold if the gold answer is empty.
    """
    golds = readable_golds(prompt, _gold)
    response = after_thought(response)
    answer = last_answer(response)
    if answer is None:
        answer = response.rstrip().rpartition("\n")[2] if last_line else response
    return float(_spelled(answer, case_sensitive) in [_spelled(gold, case_sensitive) for gold in golds])


def exact_match_gold(prompt: Prompt) -> None:
    """UnparseableGold if the gold answer is empty."""
    readable_golds(prompt, _gold)


def _gold(answer: str) -> str:
    if not answer.strip():
        raise UnparseableGold("the gold answer is empty: no text can match it")
    return answer


def _spelled(text: str, case_sensitive: bool) -> str:
    """One spelling of characters that Unicode writes in several ways, e.g. an accent of its own or in the letter."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return plain if case_sensitive else plain.casefold()
