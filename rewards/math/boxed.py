r"""Mathematics judged by math-verify: the answer in `\boxed{}` (MATH, arXiv 2103.03874), or wherever the text gives it.

Three rules that differ in where they look for the answer; how answers are compared is in equal.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rewards.format import TAGS, after_thought, last_answer
from rewards.golds import readable_golds
from rewards.math.equal import equal, readable
from rewards.math.text import MOST_CHARACTERS, clean, last_box
from rlcore.errors import ConfigError
from rlcore.records import Prompt, Score

_MOST_ALTERNATIVES = 4
_TAIL = 10_000  # characters at the end of a response in which an answer without a box is looked for
_SAID = re.compile(r"\banswer\s{0,4}(?:is|are|:|=)\s{0,4}:?", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"[.!?](?=[*\"']{0,4}(?:\s|$))|;(?=\s{1,4}[A-Za-z]{2}|$)|,\s{1,4}(?:so|as|which|where|not(?=\s[-$\\\d]))\b"
    r"|\s{1,4}\((?:because|since)\b(?=(?:(?!\bor\b)[^()\n]){1,200}\)[.*\s]{0,4}$)"
    r"|,?\s{1,4}(?:because|since|as (?:we|I|above|shown|stated|required|desired|expected))\b"
)
_SENTENCE_OVER = re.compile(r"\n|[.!?]\s{1,4}\S")
_NOTE = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's calculator annotations, as in 48/2=<<48/2=24>>24
_MARKUP = re.compile(  # tags, quotes, bold (`2**3` is a power) and LaTeX's environments of lines
    r"</?(?:b|strong|em|i|u|p|code|span)>|^[ \t]{0,4}>+[ \t](?=[^\n])|(?<![\w)}\]*])\*\*|\*\*(?![\w({\[*])"
    r"|\\(?:begin|end)\{(?:align|aligned|equation|gather|split)\*?\}",
    re.MULTILINE,
)
_ARROW = re.compile(r"-{1,2}>|=>|[\u2192\u21d2\u27f9]|\\(?:implies|(?:Long)?[Rr]ightarrow)(?![A-Za-z])")
_MATHS = re.compile(
    r"\$\$([^$]{1,400}?)\$\$|\$(?!\s)([^$\n]{1,400}?)(?<!\s)\$(?!\d)|\\\(([^\n]{1,400}?)\\\)"
    r"|(?<!\\)\\\[((?s:.){1,400}?)\\\]"
)
_AROUND = re.compile(r"^(?:\\[(\[]|[\s*`$])+|(?:\\[)\]]|[\s*`$.])+$")  # what may stand around a side of an equation
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: 0x2E}  # full-width, as ASCII
_FILLER = (
    r"(?:(?:indeed|therefore|thus|hence|then|so|now|simply|just|exactly|only|clearly|definitely|actually|approximately"
    r"|about|roughly|equal to|given by|(?:found )?to be|a total of|the (?:number|value|integer|fraction|set|interval"
    r"|point|ordered pair|matrix|vector|function|equation)),?\s{1,4}){0,6}"
)
# "that she has", "the area is": words up to a verb, none of which can make it say something else.
_CLAUSE = (
    r"(?:(?:(?!(?:no|not|none|nobody|nothing|never|neither|nor|cannot|either|or|if|unless|whether|when|where|while|until"
    r"|after|before|because|since|once|what|how|than|half|twice|double|wrong|incorrect|false)\b)[A-Za-z']{1,20}(?<!n't)"
    r"\s{1,4}|\$(?:\\(?:triangle|angle)\s?)?[A-Za-z]{1,4}\$\s{1,4}|\\\([A-Za-z]{1,4}\\\)\s{1,4}){1,8}?(?:is|are|was|were|be|equals?|has|have|had|gets?|got|needs?|needed|makes?|made|earns?|earned|pays?|paid"
    r"|spends?|spent|saves?|saved|sells?|sold|buys?|bought|takes?|took|costs?|eats?|ate|uses?|used|receives?|received)"
    r"\s{1,4})?"
)
_LABEL = r"(?:\([A-J]\)\s{1,4}(?=[-$\\\d.]))?"  # the choice that the answer is
_LEAD = re.compile(_LABEL + _FILLER + _CLAUSE + _FILLER + r"(?=[-$\\\d.(\[])", re.IGNORECASE)  # before the answer
# Asides that leave the number what it is; `(cm)`, `(base 8)`, `(mod 7)` and `(or 19)` do not.
_ASIDE = re.compile(r"\s{1,4}\((?:see|as|by|from|using|because|since)\s(?:(?!\b(?:or|not)\b)[^()\d]){1,80}\)$")
_SPELLED = re.compile(r"(\d{1,2})\s{1,4}\(([a-z]{1,10})\)(?=$|\s)", re.ASCII | re.IGNORECASE)
_SPELLED_OUT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NUMERALS: dict[str, int] = {word: value for value, word in enumerate(_SPELLED_OUT.split())}
_PER = re.compile(r"(?<=\d)\s{1,4}(?:per [a-z]{1,20}|an? [a-z]{1,20}|each|in total|in all|altogether)$")
# Words after a formula: `cookies`, `of the total`; not `or more`, `times 3`.
_WORDS_AFTER = re.compile(
    r"\s{1,4}(?!(?:and|times|plus|minus|over|choose|at|pi|sqrt|squared|cubed)\b)"
    r"(?:(?!\b(?:or|nor|not)\b)[A-Za-z ./-]){2,100}"
)
_RAISED_UNIT = re.compile(
    r"(?<=\d)(?:\s{1,4}(m|in|yd)(?=\S)|\s{0,4}(mm|cm|dm|km|kg|ft))(\^\{?[23]\}?|[\u00b2\u00b3])?$"
)
_COUNTED = re.compile(r"(?<=\d)\s{1,4}(?:of (?:them|these|those)|in total|in all|altogether)$")
_RATE = re.compile(r"(?<=\d)\s{1,4}([A-Za-z]{2,10}/[A-Za-z]{1,10}|m/s)$")
# What, right before the last number or formula, says that it is not the answer, or not all of it; and right after it.
_HEDGE = re.compile(
    r"(?:(?:\b(?:not|or|nor|than)|n't|\b(?:half|thirds?|quarters?|multiple|factor|percent|%)\s{1,4}of)(?:\sequal\sto)?"
    r"\b\s{0,4}|(?:[!<>]=?|\u2260|\u2264|\u2265|\\(?:neq?|leq?|geq?|lt|gt))\s{0,4})(?:[A-Za-z]\s?=\s?)?[*$\\(\[]{0,4}\s?$",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[^.!?\n]{0,200}\?")
_DIGIT = re.compile(r"\d", re.ASCII)
_DASHES = re.compile(r"^(?:[-+*=:\u2013\u2014\u2022]+\s+)+|\s+[-+*=:\u2013\u2014]+$")
_TOKEN = re.compile(r"\S+")
_NAME = re.compile(r"\s*[A-Za-z]\s*")
_EQUATION = re.compile(r"\b(?:equation|identity|formula) (?:of [^=.]{1,80} )?(?:is|becomes)\b")
_NAMED = re.compile(r"(?P<name>[A-Za-z](?:_\{?\w{1,3}\}?)?|\\[a-z]{2,7})\s*=\s*(?P<value>[^=<>]{1,100})")
_OR = re.compile(r"[,;]?\s{0,4}(?:\(\s?)?(?:(?<=[\s(])or\s|\\text\s?\{\s?,?\s?or\s?\})\s{0,4}")
_AND = re.compile(r",?\s{1,4}and\s|,(?!\d{3}(?!\d))")
# Tokens between spaces: what is no word belongs to the expression around a number; `a` and `I` do next to a sign.
_PROSE = re.compile(
    r"[\"'(*]{0,4}(?!(?:pi|sqrt|log|ln|sin|cos|tan)\b)[A-Za-z]{2,}[-'A-Za-z]*[\"')*.,;:!?]{0,4}|[aAI][,.]?"
)
_SIGN = re.compile(r"[-+*/^=<>\u2212\u00d7\u00f7\u00b7]|\\(?:cdot|times|div|pm)")
_SCALED = re.compile(
    r"\s{1,4}(?:hundred|thousand|million|billion|trillion|dozen|pi|squared|cubed|factorial|percent)s?\b", re.IGNORECASE
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NUMBER = re.compile(
    r"(?:(?<![\w)}])-)?\$?(?:\\[dt]?frac\{-?\d{1,20}\}\{\d{1,20}\}|\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?|\.\d+)(?:\s?\\?%)?",
    re.ASCII,
)


def boxed_math(prompt: Prompt, response: str) -> Score:
    r"""1.0 if the last `\boxed{}` of the response equals `prompt.answer`, else 0.0; part `boxed`: 1.0 if there is one.

    After a `</think>`, only what follows the last one counts. What is equal: docs/rewards.md, "Mathematics". Raises
    UnparseableGold as boxed_math_gold does, TimeoutError when math-verify takes too long.
    """
    return _judged(prompt, last_box(after_thought(response)))


def boxed_math_strict(prompt: Prompt, response: str, *, last_characters: int = 300) -> Score:
    r"""boxed_math, but the last `\boxed{}` counts only if all of it is in the last `last_characters` of the response.

    So the box must end the response: one in the middle of the reasoning earns nothing. DAPO's rule (arXiv 2503.14476)
    looks at the last 300 characters, its strict mode at 100.
    """
    if last_characters < 1:
        raise ConfigError(f"reward.args.boxed_math_strict.last_characters: {last_characters}, must be at least 1")
    return _judged(prompt, last_box(after_thought(response)[-last_characters:]))


def math(prompt: Prompt, response: str) -> Score:
    r"""boxed_math, and where there is no box, the answer in the text.

    That is in the last `<answer>`, after `####`, "answer is" or `=`, in the last formula, or around the last number; in
    which order, and what is left out of it: docs/rewards.md, "Mathematics".
    """
    text = after_thought(response)
    box = last_box(text)
    answer = stated_answer(text) if box is None else box
    right = _judged(prompt, answer).reward
    if box is None and answer is not None:
        equation = any("=" in gold for gold in _golds(prompt))
        right = 0.0 if _is_an_equation(text, answer) and not equation else right or _each(prompt, answer)
    return Score(right, {"boxed": float(box is not None)})


def boxed_math_gold(prompt: Prompt) -> None:
    """UnparseableGold if the gold answer is empty, over 400 characters, too big, or neither mathematics nor words."""
    _golds(prompt)


def stated_answer(text: str) -> str | None:
    """The answer of a text without a box; the order is that of math(). None if there is no number either."""
    thinking = TAGS[0] in text
    text = _ARROW.sub("=", _NOTE.sub("", text.rstrip()[-_TAIL:].translate(_WIDE)))
    text = _MARKUP.sub("", text)
    tagged = last_answer(text)
    if tagged is not None:
        return _held(tagged)
    if thinking:
        return None
    text = text.replace("<answer>", "").replace("\\boxed{", "").replace("\\boxed", "")  # cut off before it is closed
    last_line = text.rpartition("\n")[2].strip()
    if last_line.startswith("####"):
        return _held(last_line.lstrip("#"))
    return _said(text) or _worked(text)


def _is_an_equation(text: str, answer: str) -> bool:
    """Whether the answer is what "the equation is" says on the last line: `x^2 = 4` there does not say 4."""
    said = "=" in answer and not _NAMED.fullmatch(answer)
    return said and bool(_EQUATION.search(text[-_TAIL:].rstrip().rpartition("\n")[2]))


def _each(prompt: Prompt, answer: str) -> float:
    """1.0 if the answer is a few alternatives, `3/4, or 0.75`, and all of them are right."""
    either = _OR.split(answer)
    if _open(either[-1]) < 0:  # `3/4 (or 0.75)`
        either[-1] = either[-1].removesuffix(")")
    return float(1 < len(either) <= _MOST_ALTERNATIVES and all(_judged(prompt, one).reward for one in either))


def _held(text: str) -> str | None:
    """The answer that the text in tags or after `####` gives: all of the text, unless it is prose or worked."""
    text = text.strip(" *`\n")
    if said := _said(text):
        return said
    if _WORD.match(text):
        if _SENTENCE_OVER.search(text):
            return _worked(text)
        if not _LEAD.match(text) or len(_MATHS.findall(text)) > 1:
            return _in_dollars(text) or _whole(text)
    return _whole(text)


def _worked(text: str) -> str | None:
    """What the last line of a worked solution comes to, else its last formula, else its last number."""
    last_line = text.rstrip().rpartition("\n")[2].strip()
    return _several(last_line) or _right_side(last_line) or _in_dollars(text) or _last_expression(text)


def _said(text: str) -> str | None:
    """The sentence after the last "answer is" that is not a question; None if there is none or it is empty."""
    for said in reversed(list(_SAID.finditer(text))):
        rest = text[said.end() : said.end() + 3 * MOST_CHARACTERS]
        line = (_displayed(rest) or rest.partition("\n")[0])[:MOST_CHARACTERS]
        formulas = [found.span() for found in _MATHS.finditer(line)]
        ends = (e for e in _SENTENCE_END.finditer(line) if not any(a <= e.start() < b for a, b in formulas))
        end = next(ends, None)
        if end is None or end.group() != "?":
            return _whole(line[: end.start() if end else None].strip(" *`:")) or None
    return None


def _displayed(rest: str) -> str | None:
    r"""The `$$...$$` or `\[...\]` that the rest of the text begins with, here or on the next lines, as one line."""
    rest = rest.lstrip(" *:\n")
    found = _MATHS.match(rest) if rest.startswith(("$$", "\\[")) else None
    if found is None:
        return None
    return f"\\({' '.join(_inner(found).split())}\\){rest[found.end() :].partition(chr(10))[0]}"


def _whole(sentence: str) -> str:
    r"""All of a sentence as one answer: "that she has $12$ of them" is `12\text{ of them}`, "not $12$" is "not 12"."""
    lead = _LEAD.match(sentence)
    bare = _SPELLED.sub(_digits, _ASIDE.sub("", sentence[lead.end() if lead else 0 :]), count=1)
    bare = _COUNTED.sub("", bare)
    found = _MATHS.match(bare)
    if found:
        after = bare[found.end() :]
        if _WORDS_AFTER.fullmatch(after):
            return f"{_inner(found)}\\text{{{after}}}"
        return _MATHS.sub(_inner, bare)
    amount = _PER.sub("", bare)
    if amount.startswith(("$", "\\$")) and _NUMBER.fullmatch(amount.lstrip("\\$")):
        return amount
    return _RAISED_UNIT.sub(r"\\text{ \1\2}\3", _RATE.sub(r"\\text{ \1}", _MATHS.sub(_inner, bare)))


def _inner(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()))


def _digits(found: re.Match[str]) -> str:
    """`15` for `15 (fifteen)`."""
    return found[1] if _NUMERALS.get(found[2].lower()) == int(found[1]) else found[0]


def _several(line: str) -> str | None:
    """All of `x = 12 or 13`, `x = 5, x = -5` or `x = 3 and y = 2` at the end of a line: no part of it is the answer."""
    plain = _MATHS.sub(_inner, line[-MOST_CHARACTERS:])
    others = [word.end() for word in _WORD.finditer(plain) if word.group().lower() not in ("or", "and")]
    end = plain[others[-1] if others else 0 :].strip(" ,:*`.")
    if _OR.search(end):
        return end
    parts = [part.strip() for part in _AND.split(end)]
    named = [_NAMED.fullmatch(part) for part in parts]
    begins = named[0] or all(_NUMBER.fullmatch(part) for part in parts)
    if len(parts) < 2 or not begins or any("=" in p and not one for one, p in zip(named, parts, strict=True)):
        return None
    if len({one["name"] for one in named if one}) > 1:
        return ", ".join(parts)
    return ", ".join(one["value"] if one else part for one, part in zip(named, parts, strict=True))


def _right_side(line: str) -> str | None:
    """What follows the last `=` of a line, if no words do."""
    before, equals, after = line.rpartition("=")
    right = _AROUND.sub("", after[: 2 * MOST_CHARACTERS])
    if (
        not equals
        or not right
        or _WORD.search(right)
        or _EQUATION.search(before)
        or _hedged(line, len(line) - len(after))
    ):
        return None
    left = _AROUND.sub("", before.rpartition("=")[2][-2 * MOST_CHARACTERS :]) if _NAME.fullmatch(right) else ""
    return left if _NUMBER.fullmatch(left) else right  # `$15 = x$`


def _in_dollars(text: str) -> str | None:
    """The last formula; all of a list of formulas: of `$2$ and $3$` neither is the answer."""
    found = [one for one in _MATHS.finditer(text) if not _NAME.fullmatch(_inner(one))]
    if not found:
        return None
    first = last = len(found) - 1
    while first and _joined(text, found[first - 1], found[first]):
        first -= 1
    if _hedged(text, found[first].start(), found[last].end()):
        return None
    return ", ".join(_inner(one) for one in found[first:])


def _joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether `and`, `or` or, unless they are equations, a comma alone stands between two formulas."""
    between = text[one.end() : other.start()].strip(" ,")
    equations = "=" in one.group() + other.group()
    return between in ("and", "or") or (not between and not equations and "," in text[one.end() : other.start()])


def _last_expression(text: str) -> str | None:
    """The expression that the last number stands in: `12 cm^2`, `2x + 5`, `-3`; None if it is denied or a bound."""
    head, line = next(((a, b) for a, b in _from_the_end(text) if _DIGIT.search(b)), ("", ""))
    tokens = list(_TOKEN.finditer(line))
    if not tokens:
        return None
    start, end = _around_the_number(line, tokens)
    expression = _bare(line[start:end])
    bound = expression[:1] in set("<>!\u2264\u2265\u2260") or "!=" in expression
    asked = len(head) + start + len(line[start:end].rstrip("?"))
    if not expression or bound or _open(expression) or _hedged(text, len(head) + start, asked):
        return None
    scaled = _SCALED.match(line, end)
    expression = _RAISED_UNIT.sub(r"\\text{ \1\2}\3", expression.replace("**", "^"))
    return expression + scaled.group() if scaled else expression


def _from_the_end(text: str) -> Iterator[tuple[str, str]]:
    """What stands before each line, and the line, from the last one on."""
    end = len(text)
    while end >= 0:
        begin = text.rfind("\n", 0, end) + 1
        yield text[:begin], text[begin:end]
        end = begin - 1


def _around_the_number(line: str, tokens: list[re.Match[str]]) -> tuple[int, int]:
    """Where the expression that the last number of a line stands in begins and ends."""
    first = last = max(i for i, token in enumerate(tokens) if _DIGIT.search(token.group()))
    while last + 1 < len(tokens) and _goes_on(tokens[last].group(), tokens[last + 1].group()):
        last += 1
    while first:
        before = tokens[first - 1].group()
        in_brackets = _DIGIT.search(before) and _open(line[tokens[first].start() : tokens[last].end()]) < 0
        if not in_brackets and not _goes_on(before, tokens[first].group(), back=True):
            break
        first -= 1
    return tokens[first].start(), tokens[last].end()


def _bare(text: str) -> str:
    """An expression without what stands around it: quotes, a dash, the end and the brackets of its sentence."""
    text = text.strip("\"'`*_~#|:;,.!?\u2248\u201c\u201d ")
    if text.count("(") == 1 and text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    text = _DASHES.sub("", text)
    return text.rstrip(")") if _open(text) < 0 else text


def _goes_on(one: str, other: str, back: bool = False) -> bool:
    """Whether two tokens, one after the other, belong to one expression, as seen from the other or, back, the one."""
    new, known = (one, other) if back else (other, one)
    if one[-1] in ".,;:!?" and not one.endswith("..."):
        return False
    if new in ("a", "A", "I"):
        return bool(_SIGN.fullmatch(known))
    return not _PROSE.fullmatch(new)


def _open(text: str) -> int:
    """How many brackets are open at the end."""
    return sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")


def _hedged(text: str, start: int, end: int | None = None) -> bool:
    """Whether what stands there comes right after "not" or "or", or in a question."""
    asked = _ASKED.match(text, end) if end is not None else None
    return bool(asked or _HEDGE.search(text[max(0, start - 60) : start]))


def _judged(prompt: Prompt, answer: str | None) -> Score:
    golds = _golds(prompt)
    right = answer is not None and any(equal(gold, clean(answer)) for gold in golds)
    return Score(float(right), {"boxed": float(answer is not None)})


def _golds(prompt: Prompt) -> list[str]:
    """Any of which is right."""
    return readable_golds(prompt, _gold)


def _gold(answer: str) -> str:
    box = last_box(answer)
    # GSM8K's gold answers are worked solutions that end in "#### 72".
    return readable(answer.rpartition("####")[2] if box is None else box)
