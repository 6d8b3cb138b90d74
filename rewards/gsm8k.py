r"""Grade-school word problems (arXiv 2110.14168): the answer is one number, the gold answer ends in `#### 72`."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from rlcore.records import Prompt

_NUMBER = re.compile(r"(?P<sign>-?)\s*\$?\s*(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_STRICT = re.compile(r"####\s*(?P<sign>-?)\$?(?P<digits>\d[\d,]*(?:\.\d+)?)%?\.?(?=\s|$)", re.ASCII)
_TAIL = 10_000  # characters at the end of a response in which its last number is looked for


def gsm8k(prompt: Prompt, response: str) -> float:
    """1.0 if the response's answer equals the gold one, else 0.0.

    The answer is the first number after the last `####`, else the last number of the response. Commas, `$`, `%` and a
    trailing `.0` do not matter. Raises ValueError if the gold answer has no number.
    """
    gold = _gold(prompt)
    head, mark, after = response.rpartition("####")
    found = _numbers(after[:_TAIL])[:1] if mark else []
    found = found or _numbers(head[-_TAIL:] if mark else after[-_TAIL:])[-1:]
    return float(found == [gold])


def gsm8k_strict(prompt: Prompt, response: str) -> float:
    """1.0 if the response says `#### NUMBER` and the last one so marked equals the gold answer, else 0.0."""
    gold = _gold(prompt)
    at = response.rfind("####")
    found = _STRICT.match(response[at : at + _TAIL]) if at >= 0 else None
    return float(found is not None and _value(found) == gold)


def _gold(prompt: Prompt) -> Decimal:
    found = _numbers(prompt.answer.rpartition("####")[2])
    if not found:
        raise ValueError(f"prompt {prompt.id}: no number in the gold answer {prompt.answer[:80]!r}")
    return found[-1]


def _numbers(text: str) -> list[Decimal]:
    """All numbers, in order. `is -7` is negative; `9-7` and `9 - 7` take 7 away."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    numbers = []
    for found in _NUMBER.finditer(plain):
        before = plain[max(0, found.start() - 8) : found.start()]
        if plain[found.end("sign")].isspace():
            before = before.rstrip()
        minus = found["sign"] and not (before and (before[-1].isalnum() or before[-1] == ")"))
        numbers.append(_value(found) if minus else abs(_value(found)))
    return numbers


def _value(found: re.Match[str]) -> Decimal:
    return Decimal(found["sign"] + found["digits"].replace(",", ""))
