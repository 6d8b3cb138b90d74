r"""Grade-school word problems (arXiv 2110.14168): the answer is one number, the gold answer ends in `#### 72`."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from rlcore.errors import UnparseableGold
from rlcore.records import Prompt

# Spaces are bounded: `\s*` twice would take hours over a response of ten thousand spaces.
_NUMBER = re.compile(r"(?P<sign>-?)\s{0,2}\$?\s{0,2}(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_STRICT = re.compile(r"####\s{0,80}(?P<sign>-?)\$?(?P<digits>\d[\d,]*(?:\.\d+)?)%?\.?(?=\s|$)", re.ASCII)
_FRACTIONS = frozenset("\u00bc\u00bd\u00be\u2153\u2154\u2155\u2156\u2157\u2158\u2159\u215a\u215b\u215c\u215d\u215e")
_TAIL = 10_000  # characters at the end of a response in which its last number is looked for


def gsm8k(prompt: Prompt, response: str) -> float:
    """1.0 if the response's answer equals the gold one, else 0.0.

    The answer is the first number after the last `####`, else the last number of the response. Commas, `$`, `%` and a
    trailing `.0` do not matter. Raises UnparseableGold if the gold answer has no number.
    """
    gold = _gold(prompt)
    head, mark, after = response.rstrip().rpartition("####")
    found = _numbers(after[:_TAIL])[:1] if mark else []
    found = found or _numbers(head[-_TAIL:] if mark else after[-_TAIL:])[-1:]
    return float(found == [gold])


def gsm8k_strict(prompt: Prompt, response: str) -> float:
    """1.0 if the response says `#### NUMBER` and the last one so marked equals the gold answer, else 0.0."""
    gold = _gold(prompt)
    at = response.rfind("####")
    found = _STRICT.match(response[at : at + _TAIL]) if at >= 0 else None
    return float(found is not None and _value(found) == gold)


def gsm8k_gold(prompt: Prompt) -> None:
    """UnparseableGold if there is no number in the gold answer (after its `####`, if it has one)."""
    _gold(prompt)


def _gold(prompt: Prompt) -> Decimal:
    found = _numbers(prompt.answer.rpartition("####")[2][-_TAIL:])
    if not found:
        raise UnparseableGold(f"prompt {prompt.id}: no number in the gold answer {prompt.answer[:80]!r}")
    return found[-1]


def _numbers(text: str) -> list[Decimal]:
    """All numbers, in order. `is -7` is negative; `9-7` and `9 - 7` take 7 away."""
    plain = text if text.isascii() else "".join(map(_ascii, text))
    numbers = []
    for found in _NUMBER.finditer(plain):
        before = plain[max(0, found.start() - 8) : found.start()]
        if plain[found.end("sign")].isspace():
            before = before.rstrip()
        minus = found["sign"] and not (before and (before[-1].isalnum() or before[-1] == ")"))
        numbers.append(_value(found) if minus else abs(_value(found)))
    return numbers


@lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    """Full-width and other digits and signs as ASCII. `m\u00b2` is no 2, and `2\u00bd` is 2.5."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isdigit():
        return ""
    if character in _FRACTIONS:
        return f"{unicodedata.numeric(character):.6f}"[1:]
    return unicodedata.normalize("NFKC", character).replace("\u2212", "-")


def _value(found: re.Match[str]) -> Decimal:
    return Decimal(found["sign"] + found["digits"].replace(",", ""))
