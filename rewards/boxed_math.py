r"""Mathematics judged by math-verify: the answer in `\boxed{}` (MATH, arXiv 2103.03874), or wherever the text gives it.

Three rules that differ in where they look for the answer; how answers are compared is in math_equal.py.
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
_MATHS = re.compile(r"\$(?!\s)([^$\n]{1,400}?)(?<!\s)\$(?!\d)|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]")
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
    fraction. Without a box only the last 10,000 characters are read.
    """
    box = last_box(response)
    answer = stated_answer(response.rstrip()[-_TAIL:]) if box is None else box
    return Score(_judged(prompt, answer).reward, {"boxed": float(box is not None)})


def boxed_math_gold(prompt: Prompt) -> None:
    """UnparseableGold if the gold answer is empty, over 400 characters, too big, or neither mathematics nor words."""
    _gold(prompt)


def stated_answer(text: str) -> str | None:
    """The answer of a text without a box; the order is that of math(). None if there is no number either."""
    tagged = last_answer(text)
    if tagged is not None:
        return _in_dollars(tagged) or tagged
    said = [found.end() for found in _SAID.finditer(text)]
    if said and (one := _first_answer(text[said[-1] :].partition("\n")[0][:MOST_CHARACTERS])):
        return one
    last_line = text.rstrip().rpartition("\n")[2]
    right = last_line.rpartition("=")[2].strip(" *`$.") if "=" in last_line else ""
    if right and not _WORD.search(right):
        return right
    return _in_dollars(text) or _last_number(text)


def _first_answer(line: str) -> str | None:
    """What a line gives that goes on after "answer is": the first `$...$` of its first sentence, else the sentence."""
    sentence = _SENTENCE_END.split(line)[0].strip(" *`:")
    found = _MATHS.search(line)
    if found and found.start() <= len(line) - len(line.lstrip()) + len(sentence):
        return next(filter(None, found.groups()))
    return sentence or None


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
