"""Gold answers of which any is right: a list of texts in JSON, as in Skywork-OR1 and where a column holds lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from rlcore.data.cells import as_text
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt

T = TypeVar("T")


def accepted(answer: str) -> list[str]:
    """`["34", "34.0"]` and `[34]` as the answers that they hold; any other text, such as the interval `[1, 2]`, as the
    one answer that it is."""
    if not answer.lstrip().startswith("["):
        return [answer]
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return [answer]
    texts = bool(found) and all(isinstance(one, str) for one in found)
    number = len(found) == 1 and isinstance(found[0], int | float) and not isinstance(found[0], bool)
    return [as_text(one) for one in found] if texts or number else [answer]


def readable_golds(prompt: Prompt, read: Callable[[str], T]) -> list[T]:
    """What `read` makes of each accepted answer that it can read. UnparseableGold, with the prompt, if it can none."""
    golds, why = [], ""
    for text in accepted(prompt.answer):
        try:
            golds.append(read(text))
        except UnparseableGold as e:
            why = str(e)
    if not golds:
        raise UnparseableGold(f"prompt {prompt.id}: {why}")
    return golds
