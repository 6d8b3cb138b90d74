r"""Grade-school word problems (arXiv 2110.14168): the answer is one number, the gold answer ends in `#### 72`."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from rewards.format import after_thought
from rewards.golds import readable_golds
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt

# Spaces are bounded: `\s*` twice would take hours over a response of ten thousand spaces.
_SIGN = r"(?P<sign>-?)\s{0,2}(?:\$\s{0,2}(?P<after>-?))?"  # `-$3` and `$-3`
_VALUE = (
    r"(?:(?P<whole>\d{1,9})(?:\s{1,2}(?:and\s)?(?=\d{1,9}\s?/\s?\d)|\s?(?=\\[dt]?frac\{\d)))?"  # the 2 of 2 1/2
    r"(?:\\[dt]?frac\{(?P<over>\d{1,20})\}\{(?P<below>\d{1,20})\}"
    r"|(?P<digits>\d{1,3}(?:\ \d{3})+(?!\d)(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<under>\d[\d,]*(?:\.\d+)?)|[eE](?P<tens>[+-]?\d+))?)"
)
_NUMBER = re.compile(
    _SIGN + _VALUE + r"(?P<scale>[kK](?![A-Za-z\d])|\s{1,2}(?:thousand|million|billion)(?![A-Za-z]))?", re.ASCII
)
_STRICT = re.compile(rf"####\s{{0,80}}{_SIGN}{_VALUE}%?\.?(?=\s|$)(?![^\d\n]{{0,200}}\d)", re.ASCII)
_HEDGE = re.compile(r"(?:\b(?:or|not|than)\b|n't\b|\^)[\s$*({]{0,4}$")  # before a number that is not the answer
_MORE = re.compile(r"[\s*%]{0,4}(?:or|and|to|times|[-,&|^:x*/+])\s{0,4}[$({]{0,2}\d")  # `72 or 73`, `72 * 2`, `72:30`
# `3 * 12, or`, `3 dozen, or`, `2 pairs (or`: an amount that the number after "or" may only say again.
_RESTATED = re.compile(
    r"(?<![\d.,/])(?:(\d{1,9})\s{0,2}[*x]\s{0,2})?(\d{1,9})(?:\s(dozens?|pairs?)\b)?(?:\s(?:of\s)?[a-z]{2,20})?[,\s$(]{1,4}or[\s$]{0,3}$",
    re.ASCII,
)
_SCALES = {"k": 10**3, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12, "pair": 2}
_GROUPED = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?,?|[^,]*,?", re.ASCII)  # `1,00,000`; not `12,00`
_FRACTIONS = frozenset("\u00bc\u00bd\u00be\u2153\u2154\u2155\u2156\u2157\u2158\u2159\u215a\u215b\u215c\u215d\u215e")
_LONGEST = 400  # characters of a number
_TAIL = 10_000  # characters at the end of a response in which its last number is looked for


def gsm8k(prompt: Prompt, response: str) -> float:
    """1.0 if the response's answer equals the gold one, else 0.0.

    The answer is the first number after the last `####`, or what follows `=` on its line; else the last number of the
    response, after `</think>`. What is one number: docs/rewards.md. Raises UnparseableGold if the gold one has none.
    """
    golds = _golds(prompt)
    text = after_thought(response).rstrip()
    return float(any(_answer(text, scaled) == [gold] for gold in golds for scaled in (False, True)))


def gsm8k_strict(prompt: Prompt, response: str) -> float:
    """1.0 if the response says `#### NUMBER` and the last one so marked equals the gold answer, else 0.0.

    Words may follow on the line, another number may not; a heading of five `#` is no mark.
    """
    golds = _golds(prompt)
    text = after_thought(response)
    at = text.rfind("####")
    found = _STRICT.match(text[at : at + _TAIL]) if at >= 0 and text[at - 1 : at] != "#" else None
    return float(found is not None and _value(found) in golds)


def gsm8k_gold(prompt: Prompt) -> None:
    """UnparseableGold if there is no number in the gold answer (after its `####`, if it has one)."""
    _golds(prompt)


def _golds(prompt: Prompt) -> list[Fraction]:
    """Any of which is right."""
    return readable_golds(prompt, _gold)


def _gold(answer: str) -> Fraction:
    found = _numbers(answer.rpartition("####")[2][-_TAIL:])
    if not found or found[-1] is None:
        raise UnparseableGold(f"no number in the gold answer {answer[:80]!r}")
    return found[-1]


def _answer(text: str, scaled: bool = False) -> list[Fraction | None]:
    """The number after the last `####`, else the last one, as a list; [] if there is none."""
    head, mark, after = text.rpartition("####")
    found = _marked(after[:_TAIL], scaled) if mark else []
    return found or _numbers(head[-_TAIL:] if mark else after[-_TAIL:], scaled)[-1:]


def _marked(text: str, scaled: bool) -> list[Fraction | None]:
    """The number of the first line that has one, [None] if it has no single one; [] if no line has any."""
    for line in _plain(text).split("\n"):
        right = line.rpartition("=")[2]
        said = right if _NUMBER.search(right) else line
        found = _NUMBER.search(said)
        if found:
            return [None] if _MORE.match(said, found.end()) else _numbers(said, scaled)[:1]
    return []


def _numbers(text: str, scaled: bool = False) -> list[Fraction | None]:
    """All numbers, in order, None for one that is denied. `is -7` is negative; `9-7` and `9 - 7` take 7 away.

    `scaled`: "5 million" is 5000000, else 5.
    """
    plain = _plain(text)
    numbers = []
    for found in _NUMBER.finditer(plain):
        before = plain[max(0, found.start() - 8) : found.start()]
        hedged = _HEDGE.search(before)
        if plain[found.end("sign")].isspace():
            before = before.rstrip()
        taken = found["sign"] and before and (before[-1].isalnum() or before[-1] == ")")
        value = _value(found, scaled)
        hedged = hedged and not _restates(plain[max(0, found.start() - 60) : found.start()], value)
        numbers.append(None if hedged or value is None else abs(value) if taken else value)
    return numbers


def _restates(before: str, value: Fraction | None) -> bool:
    """Whether the value says again what stands before "or": 36 after `3 * 12, or` and `3 dozen, or`."""
    said = _RESTATED.search(before)
    return said is not None and int(said[1] or 1) * int(said[2]) * _SCALES.get((said[3] or "").rstrip("s"), 1) == value


def _plain(text: str) -> str:
    return text if text.isascii() else "".join(map(_ascii, text))


@lru_cache(maxsize=4096)
def _ascii(character: str) -> str:
    """Full-width and other digits and signs as ASCII. `m\u00b2` is no 2, and `2\u00bd` is 2 1/2."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isdigit():
        return ""
    plain = unicodedata.normalize("NFKC", character).replace("\u2212", "-").replace("\u2044", "/")
    return f" {plain}" if character in _FRACTIONS else plain


def _value(found: re.Match[str], scaled: bool = False) -> Fraction | None:
    """None for a number that is too long to be worth reading, divided by 0, or with commas as in `12,00`."""
    if not _GROUPED.fullmatch(found["digits"] or "") or not _GROUPED.fullmatch(found["under"] or ""):
        return None
    if len(found.group()) > _LONGEST or len(found["tens"] or "") > 4:
        return None
    over, under = (_fraction(found[a] or found[b] or "1") for a, b in (("over", "digits"), ("below", "under")))
    if not under:
        return None
    value = int(found["whole"] or 0) + over / under * Fraction(10) ** int(found["tens"] or 0)
    scale = (found.groupdict().get("scale") or "").strip().lower()
    if scale == "k" or scaled:
        value *= _SCALES.get(scale, 1)
    return -value if "-" in (found["sign"], found["after"]) else value


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))
