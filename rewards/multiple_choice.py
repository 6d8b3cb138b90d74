r"""Multiple choice with up to ten choices, A to J (MMLU, arXiv 2009.03300; ARC, 1803.05457; MMLU-Pro, 2406.01574)."""

from __future__ import annotations

import re
from typing import Any

from rewards.format import after_thought, last_answer
from rewards.math.text import last_box
from rlcore.errors import UnparseableGold
from rlcore.records import Prompt

_LETTERS = "ABCDEFGHIJ"
_TAIL = 10_000  # characters at the end of a response in which the answer is looked for
_ADVERB = r"(?:therefore|thus|hence|then|clearly|probably|definitely|most likely)"
_SAID = re.compile(
    r"(?:\b(?:answer|choice|option)[\s*\"']{0,6}(?:(?:is|(?:must|should|would|has to) be)\b"
    rf"(?:\s{_ADVERB}\b)?[\s*]{{0,6}}:?|:)"
    r"|^\W{0,6}(?:(?:the|final|correct)\s){0,2}answer[\s*]{1,6}[-\u2013\u2014](?=\s)"
    r"|\bI(?:'d| would|'ll| will)?\s(?:choose|pick|select|go with)\b:?)[\s*]{0,6}(?:(?:option|choice)\s)?",
    re.IGNORECASE | re.MULTILINE,
)
_OPTION = re.compile(r"^(?:the\s)?(?:option|choice)\s{1,2}(?=[(*]{0,3}[A-J](?![A-Za-z]))", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf))\s*\{([^{}]*)\}")
_ALONE = re.compile(r"[(\[]?\s?([A-Ja-j])\s?[)\]]?\s?[.:)]?")
_BRACKETED = re.compile(r"\(([A-Ja-j])\)|([A-J])[).:](?=\s|$)")
_NAMED = re.compile(r"([A-J])(?=$|[.,;!?\s\"\u201d])")  # a bare letter at the beginning of a sentence
_CORRECT = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s)?(?:only\s)?(?:(?:the\s)?(?:option|choice|answer)\s)?\(?([A-J])\)?\s"
    r"is\s(?:the\s)?(?:correct|right)(?:\s(?:answer|choice|option))?[.!\s]{0,4}",
    re.IGNORECASE,
)
_IT_IS = re.compile(
    r"(?i:(?:(?:so|thus|hence|therefore),?\s)?(?:I\s(?:think|believe|guess|say)\s)?(?:it|that)(?:['\u2019]s|\sis|\s(?:must|should"
    rf"|would|has to)\sbe)\s(?:{_ADVERB}\s)?(?:(?:option|choice)\s)?)\(?([A-J])\)?[.!\s]{{0,4}}"
)
_HENCE = re.compile(  # "so I" may be the beginning of more
    r"(?:.*[,;:.!?]\s)?(?i:(?:and\s)?(?:so|thus|hence|therefore),?\s(?:(?:option|choice)\s)?)"
    r"(?:\(?([B-HJ])\)?[.!\s]{0,4}|\(([AI])\)[.!\s]{0,4}|([AI])[.!]{1,4})"
)
_BEFORE = re.compile(r"\W*(?:(?:so|the|my|final|correct|right|best)\W+)*", re.IGNORECASE)
_DELIMITERS = re.compile(r"\\?\$|\\[()\[\]]")
_TAG = re.compile(r"</?(?:b|strong|em|i)>")
_QUOTES = " \t\r\n*`'\"\u201c\u201d{}"
_ARTICLES = "AI"  # bare letters that begin a sentence as words
_REASON = re.compile(r"(?:$|[.,;!?]|\s+(?:because|since|as|is)\b)")
_ANOTHER = re.compile(r"\W{0,4}(?:\s|,|/|\bor\b|\band\b|&|\|){1,8}\(?[A-J]\)?(?=$|[\W_])")
# What follows a choice may dismiss others: ". C is also wrong".
_DISMISSED = re.compile(
    r"\W{0,4}\s(?:(?:and|but|because|since|while|as)\s)?(?P<letters>\(?[A-J]\)?(?:(?:,|,?\s(?:and|or))\s\(?[A-J]\)?){0,8})"
    r"\s(?:is|are|was|were)(?:\s(?:also|both|all|clearly|just|simply))?"
    r"\s(?:wrong|incorrect|false|not (?:right|correct|true))\b"
)
_BOLD = re.compile(r"\*\*\s?\(?([A-J])\)?[.:)]?\s?\*\*|\(([A-J])\)")


def multiple_choice(prompt: Prompt, response: str) -> float:
    r"""1.0 if the response chooses the gold choice, else 0.0.

    The choice is the last `\boxed{B}`, else what is in `<answer>`, follows "answer is" or stands on the last line; two
    choices are none. docs/rewards.md, "Choices". Raises UnparseableGold unless the gold answer is a letter, or the text
    or index of one of the row's `choices`.
    """
    choices = _choices(prompt)
    gold = _gold(prompt, choices)
    return float(_chosen(response, choices) == gold)


def multiple_choice_gold(prompt: Prompt) -> None:
    """UnparseableGold if the gold answer is no letter, no choice of the row and no index of one."""
    _gold(prompt, _choices(prompt))


def _choices(prompt: Prompt) -> list[str]:
    """The texts of the choices, [] if the row has none."""
    given = prompt.row.get("choices")
    texts = given.get("text") if isinstance(given, dict) else given
    if texts is None:
        return []
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(_LETTERS):
        raise UnparseableGold(f"prompt {prompt.id}: column choices is {str(given)[:80]}, not a list of 2 to 10 texts")
    return [_plain(str(text)) for text in texts]


def _gold(prompt: Prompt, choices: list[str]) -> str:
    answer = prompt.answer.strip()
    letters = _letters(choices)
    labels = _labels(prompt)
    if answer in labels and labels.index(answer) < len(letters):
        return letters[labels.index(answer)]
    found = _ALONE.fullmatch(answer) or re.match(r"\(?([A-J])[).:]\s", answer)
    if found and found[1].upper() in letters:
        return found[1].upper()
    # A number that the row holds as a number is an index; as text it may be what a choice says.
    is_index = any(type(value) is int and str(value) == answer for value in prompt.row.values())
    if choices.count(_plain(answer)) == 1 and not is_index:
        return letters[choices.index(_plain(answer))]
    if choices and answer in [str(i) for i in range(len(choices))]:
        return letters[int(answer)]
    what = f"one of {len(choices)} choices" if choices else "a letter from A to J, and the row has no column choices"
    raise UnparseableGold(f"prompt {prompt.id}: the gold answer {answer[:80]!r} is not {what}")


def _labels(prompt: Prompt) -> list[Any]:
    given = prompt.row.get("choices")
    labels = given.get("label") if isinstance(given, dict) else None
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _chosen(response: str, choices: list[str]) -> str | None:
    response = after_thought(response)
    box = last_box(response)
    if box is not None:
        return _letter(box, choices)
    text = response[-_TAIL:]
    tagged = last_answer(text)
    if tagged is not None:
        inside = list(_SAID.finditer(tagged))
        if len(inside) == 1 and _BEFORE.fullmatch(tagged, 0, inside[0].start()):
            tagged = tagged[inside[0].end() :]
        return _letter(tagged, choices)
    said = [found.end() for found in _SAID.finditer(text)]
    if said:
        return _letter(text[said[-1] :].partition("\n")[0], choices, sentence=True)
    line = text.rstrip().rpartition("\n")[2]
    correct = _CORRECT.fullmatch(_unmarked(line)) or _IT_IS.fullmatch(_unmarked(line))
    letter = _letter(correct[1] if correct else line, choices)
    if letter is None:
        marked = {a or b for a, b in _BOLD.findall(line)}
        letter = marked.pop() if len(marked) == 1 else None
    if letter is None and (hence := _HENCE.fullmatch(_bare(line).strip(_QUOTES))):
        letter = next(filter(None, hence.groups()))
        letter = letter if letter in _letters(choices) else None
    return letter


def _letters(choices: list[str]) -> str:
    """The letters that the choices have."""
    return _LETTERS[: len(choices) or len(_LETTERS)]


def _letter(text: str, choices: list[str], sentence: bool = False) -> str | None:
    """The one choice that the beginning of the text names; `sentence`: words may follow the letter."""
    plain = _OPTION.sub("", _unmarked(text), count=1)
    letters = _letters(choices)
    said = _plain(re.split(r"[.!?](?=\s|$)", plain)[0] if sentence else plain)
    if choices.count(said) == 1:
        return letters[choices.index(said)]
    alone = _ALONE.fullmatch(plain)
    found = alone or _BRACKETED.match(plain)
    if found is None and sentence:
        found = _NAMED.match(plain)
        if found and found[1] in _ARTICLES and not _REASON.match(plain, found.end()):
            return None
    if found is None or (_ANOTHER.match(plain, found.end()) and not _dismissed(plain, found)):
        return None
    if not sentence and re.search(r"\([A-J]\)", plain[found.end() :]):
        return None
    letter = (found[1] or found[found.lastindex or 1]).upper()
    return letter if letter in letters else None


def _dismissed(plain: str, found: re.Match[str]) -> bool:
    """Whether the letters that follow the one found are only called wrong."""
    others = _DISMISSED.match(plain, found.end(found.lastindex or 0))
    return others is not None and found[found.lastindex or 0].upper() not in others["letters"]


def _unmarked(text: str) -> str:
    """The beginning of the text without LaTeX's delimiters, bold and quotes."""
    return _bare(text[:400]).strip(_QUOTES)


def _bare(text: str) -> str:
    return _TAG.sub("", _DELIMITERS.sub("", _WRAPPED.sub(r"\1", text))).replace("**", "")


def _plain(text: str) -> str:
    return " ".join(_DELIMITERS.sub("", text).split()).strip(" .").casefold()
