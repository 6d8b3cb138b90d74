r"""Mathematics judged by math-verify: the answer in `\boxed{}` (MATH, arXiv 2103.03874), or wherever the text gives it.

Three rules that differ in where they look for the answer; how answers are compared is in math_equal.py.

A decimal number counts as an irrational number or a fraction if the two are the same when rounded to 6 decimals:
1.414214 and 1.4142136 are `\sqrt{2}`, 1.41421 and 1.414213 are not. Between two decimals, or two fractions, nothing is
rounded.
"""

from __future__ import annotations

import re

from rewards.format import last_answer
from rewards.math_equal import equal, readable
from rewards.math_text import MOST_CHARACTERS, clean, last_box
from rlcore.errors import ConfigError, UnparseableGold
from rlcore.records import Prompt, Score

_TAIL = 10_000  # characters at the end of a response in which an answer without a box is looked for
_SAID = re.compile(r"\banswer\s{0,4}(?:is|are|:|=)\s{0,4}:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|,\s{1,4}(?:so|as|which)\b|,?\s{1,4}(?:because|since)\b")
_MATHS = re.compile(
    r"\$\$([^$]{1,400}?)\$\$|\$(?!\s)([^$\n]{1,400}?)(?<!\s)\$(?!\d)|\\\(([^\n]{1,400}?)\\\)"
    r"|(?<!\\)\\\[((?s:.){1,400}?)\\\]"
)
_AROUND = re.compile(r"^(?:\\[(\[]|[\s*`$])+|(?:\\[)\]]|[\s*`$.])+$")  # what may stand around a side of an equation
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: 0x2E}  # full-width, as ASCII
_FILLER = re.compile(
    r"(?:(?:indeed|therefore|thus|then|simply|just|exactly|approximately|about|roughly|equal to)\s{1,4})+(?=[-$\\\d.])",
    re.IGNORECASE,
)
# Asides that leave the number what it is; `(cm)`, `(base 8)`, `(mod 7)` and `(or 19)` do not.
_ASIDE = re.compile(r"\s{1,4}\((?:see|as|by|from|using|because|since)\s(?:(?!\b(?:or|not)\b)[^()\d]){1,80}\)$")
_SPELLED = re.compile(r"(\d{1,2})\s{1,4}\(([a-z]{1,10})\)", re.ASCII | re.IGNORECASE)
_SPELLED_OUT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMERALS: dict[str, int] = {word: value for value, word in enumerate(_SPELLED_OUT.split())}
_PER = re.compile(r"(?<=\d)\s{1,4}(?:per [a-z]{1,20}|an? [a-z]{1,20}|each|in total|in all|altogether)$")
_NAME = re.compile(r"\s*[A-Za-z]\s*")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NUMBER = re.compile(
    r"(?:(?<![\w)}])-)?\$?(?:\\[dt]?frac\{-?\d{1,20}\}\{\d{1,20}\}|\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?|\.\d+)(?:\s?\\?%)?",
    re.ASCII,
)


def boxed_math(prompt: Prompt, response: str) -> Score:
    r"""1.0 if the last `\boxed{}` of the response equals `prompt.answer`, else 0.0; part `boxed`: 1.0 if there is one.

    The gold answer is LaTeX, a plain number or plain words, with or without its own `\boxed{}` or `$`, or ends in
    GSM8K's `#### 72`. A unit must agree if both have one; words are compared without case. Answers over 400 characters,
    numbers too big to write down and sums or integrals not worked out are wrong. Raises UnparseableGold as
    boxed_math_gold does, TimeoutError when math-verify takes too long.
    """
    return _judged(prompt, last_box(response))


def boxed_math_strict(prompt: Prompt, response: str, *, last_characters: int = 300) -> Score:
    r"""boxed_math, but the last `\boxed{}` counts only if all of it is in the last `last_characters` of the response.

    So the box must end the response: one in the middle of the reasoning earns nothing. DAPO's rule (arXiv 2503.14476)
    looks at the last 300 characters, its strict mode at 100.
    """
    if last_characters < 1:
        raise ConfigError(f"reward.args.boxed_math_strict.last_characters: {last_characters}, must be at least 1")
    return _judged(prompt, last_box(response[-last_characters:]))


def math(prompt: Prompt, response: str) -> Score:
    r"""boxed_math, and where there is no box, the answer in the text.

    The first of these that there is, is the answer, right or wrong: the last `\boxed{}`; the last
    `<answer>...</answer>`; what follows the last "answer is", "answer:" or "answer ="; on the last line, what follows
    the last `=`, if no words do; the last `$...$`, `\(...\)` or `\[...\]` that is not just a letter; the last number or
    fraction. After "answer is" these are left out: "indeed", "approximately" and the like before a number, "(see
    above)", "(fifteen)" after 15, "per day" after an amount of money. Without a box only the last 10,000 characters are
    read.
    """
    box = last_box(response)
    answer = stated_answer(response.rstrip()[-_TAIL:]) if box is None else box
    return Score(_judged(prompt, answer).reward, {"boxed": float(box is not None)})


def boxed_math_gold(prompt: Prompt) -> None:
    """UnparseableGold if the gold answer is empty, over 400 characters, too big, or neither mathematics nor words."""
    _gold(prompt)


def stated_answer(text: str) -> str | None:
    """The answer of a text without a box; the order is that of math(). None if there is no number either."""
    text = text.translate(_WIDE)
    tagged = last_answer(text)
    if tagged is not None:
        return _in_dollars(tagged) or tagged
    said = [found.end() for found in _SAID.finditer(text)]
    if said and (one := _displayed(text[said[-1] :]) or _first_answer(text[said[-1] :].partition("\n")[0])):
        return one
    last_line = text.rstrip().rpartition("\n")[2]
    right = _AROUND.sub("", last_line.rpartition("=")[2][: 2 * MOST_CHARACTERS]) if "=" in last_line else ""
    if right and not _WORD.search(right):
        left = _AROUND.sub("", last_line.rpartition("=")[0][-2 * MOST_CHARACTERS :]) if _NAME.fullmatch(right) else ""
        return left if _NUMBER.fullmatch(left) else right  # `$15 = x$`
    return _in_dollars(text) or _last_number(text)


def _displayed(rest: str) -> str | None:
    r"""The `$$...$$` or `\[...\]` that the rest of the text begins with, on this line or the next ones."""
    rest = rest.lstrip(" *:\n")
    found = _MATHS.match(rest) if rest.startswith(("$$", "\\[")) else None
    return next(filter(None, found.groups())) if found else None


def _first_answer(line: str) -> str | None:
    """What a line gives that goes on after "answer is": the first `$...$` of its first sentence, else the sentence."""
    line = line[:MOST_CHARACTERS]
    sentence = _SENTENCE_END.split(line)[0].strip(" *`:")
    found = _MATHS.search(line)
    if found and found.start() <= len(line) - len(line.lstrip()) + len(sentence):
        return next(filter(None, found.groups()))
    return _number_alone(sentence) or None


def _number_alone(sentence: str) -> str:
    """The sentence without `indeed`, `(see above)`, `(fifteen)` after 15, and `per day` after an amount of money."""
    bare = _ASIDE.sub("", _FILLER.sub("", sentence, count=1) if _FILLER.match(sentence) else sentence)
    spelled = _SPELLED.fullmatch(bare)
    if spelled and _NUMERALS.get(spelled[2].lower()) == int(spelled[1]):
        return spelled[1]
    amount = _PER.sub("", bare)
    return amount if amount.startswith(("$", "\\$")) and _NUMBER.fullmatch(amount.lstrip("\\$")) else bare


def _in_dollars(text: str) -> str | None:
    found = [next(filter(None, groups)) for groups in _MATHS.findall(text)]
    return next((one for one in reversed(found) if not _NAME.fullmatch(one)), None)


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1].rstrip(",") if found else None


def _judged(prompt: Prompt, answer: str | None) -> Score:
    gold = _gold(prompt)
    right = answer is not None and equal(gold, clean(answer))
    return Score(float(right), {"boxed": float(answer is not None)})


def _gold(prompt: Prompt) -> str:
    box = last_box(prompt.answer)
    # GSM8K's gold answers are worked solutions that end in "#### 72".
    text = prompt.answer.rpartition("####")[2] if box is None else box
    try:
        return readable(text)
    except UnparseableGold as e:
        raise UnparseableGold(f"prompt {prompt.id}: {e}") from None
