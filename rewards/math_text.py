r"""Mathematical answers as text: cleaned, split from their units, refused if they cannot be worth reading. No sympy.

What math-verify gets wrong alone and is settled here: `1\,000` (0), full-width digits (none), `x²` (x2), `1½` (11/2),
`10 cm` (equals 10 m), `\$10` (equals 10 cents), `10101_2` (equals 10101_3), `east` (equals seat: the same letters).
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MOST_CHARACTERS = 400  # a longer answer is wrong, whatever it says
DEEPEST = 8  # an answer nested deeper is wrong: the LaTeX reader's time grows faster than the depth

_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_SYMBOLS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u00d7": "\\times ",
    "\u00f7": "\\div ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u2044": "/", "\u03c0": "\\pi ",
    "\u221e": "\\infty ", "\u00b1": "\\pm ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ",
    "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u2205": "\\emptyset ", "\u00b0": "^\\circ ",
    "\u221a": "\\sqrt ",
}  # fmt: skip
_SPELLING = str.maketrans(_SYMBOLS)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_LOWERED = re.compile("[\u2080-\u208e]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_OPENS, _CLOSES = ("\\[", "\\("), ("\\]", "\\)")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;:]|\{,\}|,\\!|\\ |\s)(?=\d{3}(?!\d))")
_SCIENTIFIC = re.compile(r"(?<![\w.}])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.{])", re.ASCII)

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it)|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,!;: ]|~|\\q?quad(?![A-Za-z])|\s")
_WORDS = re.compile(r"[^\W\d_][\w '\u2019.,:;!?&/()-]*")
_CLOCK = re.compile(r"\d[\w '.,:/-]*")
_GREEK = "alpha beta gamma delta epsilon theta lambda sigma omega"
_MATHS = frozenset(f"sqrt cbrt frac infinity infty sinh cosh tanh {_GREEK}".split())

_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d*)?|[+-]?\.\d+", re.ASCII)
_TENS = re.compile(r"\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))", re.ASCII)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)\s*(?=\\|\s\d))?(?:\\[dtc]?frac\s*(?:\{\s*(?P<p>-?\d+)\s*\}\s*"
    r"\{\s*(?P<q>-?\d+)\s*\}|\s?(?P<p1>\d)\s?(?P<q1>\d)(?!\d))|\s*(?P<p2>\d+)\s*/\s*(?P<q2>\d+))",
    re.ASCII,
)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d{0,20})\\overline\s*\{?\s*(\d{1,20})\s*\}?", re.ASCII)

_POWER = r"(?P<power>\s*\^\s*\{?[23]\}?)?"
_TEXT_UNIT = re.compile(
    r"(?:\\[,!;: ]|~|\s)*\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox|operatorname)\s*"
    rf"\{{\s*(?P<unit>[A-Za-z][A-Za-z ./]*?)\.?\s*\}}{_POWER}$"
)
_BARE_UNIT = re.compile(
    r"(?<=[\d}])(?:\\[,!;: ]|~|\s)*(?<!\\)\b(?P<unit>mm|cm|dm|km|kg|mg|ml|mi|ft|mph|inch(?:es)?|feet|met(?:er|re)s?"
    rf"|miles?|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|years?|degrees?|dollars?|USD|cents?|units?){_POWER}$"
)
_NOUN_UNIT = re.compile(rf"(?<=\d)\s{{1,4}}(?P<unit>[A-Za-z]{{3,20}}(?: [A-Za-z]{{2,20}}){{0,3}}){_POWER}$")
_LONE_UNIT = re.compile(rf"(?<=\d)(?:\\[,!;: ]|~|\s)+(?P<unit>[mgsLlh]){_POWER}$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\(?:text|mathrm)\{\s*(?:%|\\%)\s*\})$")
_MONEY = re.compile(r"(?P<sign>[+-]?)\s*(?P<coin>\\\$|[\u20ac\u00a3\u00a5\u20b9])\s*(?=[\d.])")
_MONEY_AFTER = re.compile(r"(?<=\d)\s*(?P<coin>\\\$|[\u20ac\u00a3\u00a5\u20b9])$")
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\{\s*)?(?P<scale>[CF]?)\s*\}?$")
_BASED = re.compile(r"(?P<digits>[0-9A-F]+)_\{?(?P<base>\d{1,2})\}?", re.ASCII)
_ALIASES = {
    "metre": "m", "meter": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km",
    "kilometre": "km", "foot": "ft", "feet": "ft", "inch": "in", "inche": "in", "mile": "mi", "gram": "g",
    "kilogram": "kg", "liter": "l", "litre": "l", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h",
    "dollar": "\\$", "usd": "\\$", "euro": "\u20ac", "pound": "lb", "lb": "lb", "percent": "%", "percentage": "%",
    "pct": "%", "mile per hour": "mph", "miles per hour": "mph", "unit": "",
}  # fmt: skip

# What is worked out while it is read, or would not fit into memory.
_HUGE = (
    re.compile(r"(?:\^|\*\*)\s*[{(\s]*-?\d{7,}"),
    re.compile(r"(?:\*\*.*){2}"),
    re.compile(r"\d{6,}\s*!|[\d!]\s*!\s*!"),
    re.compile(
        r"\d{5,}[\s}]*\}?\s*\\choose|\\[dt]?binom\s*\{[^}]{0,80}?(?:\d{5,}|!|\d\s*\^\s*\{?\d|\d\s*(?:\*|\\cdot|\\times)\s*\d)"
    ),
    re.compile(r"\d{101,}"),
    re.compile(r"operatorname\s*\{\s*(?:eye|zeros|ones|diag)"),
)
_WORK = re.compile(r"\\(?:sum|prod|i{0,3}int|oint|lim|det|frac\s*\{\s*d\s*\}\s*\{\s*d)(?![A-Za-z])")


def last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}`; None if there is none, or it never closes."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opened = _BOX.match(text, at) if at >= 0 else None
    if opened is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, opened.end(), opened.end() + 20 * MOST_CHARACTERS):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[opened.end() : brace.start()]
    return None


def clean(text: str) -> str:
    """The same mathematics in LaTeX and ASCII digits, no thousands separators; "" if it has over 400 characters."""
    if len(text) > MOST_CHARACTERS:
        return ""
    plain = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m.group())}}}", text)
    plain = _LOWERED.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m.group())}}}", plain)
    plain = _VULGAR.sub(_spelled_fraction, plain)
    plain = unicodedata.normalize("NFKC", plain).translate(_SPELLING)
    plain = _undelimited(_SIZE.sub("", plain).strip().strip("*").strip())
    plain = plain.replace("\\langle", "(").replace("\\rangle", ")").replace("\\varnothing", "\\emptyset")
    plain = plain.removesuffix(".").strip()
    whole = _TEXT.fullmatch(plain)
    if whole and any(c.isdigit() for c in whole[1]):
        plain = whole[1].strip()
    plain = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", _THOUSANDS.sub("", plain))
    return plain if len(plain) <= 2 * MOST_CHARACTERS else ""


def _spelled_fraction(found: re.Match[str]) -> str:
    over, _, under = unicodedata.normalize("NFKC", found.group()).partition("\u2044")
    return f"\\frac{{{over}}}{{{under}}}"


def _undelimited(text: str) -> str:
    r"""Without `$`, `\(` and `\[` around it; a single `$` before a digit is money, `\$`."""
    bare = text.replace("\\$", "")
    if bare.count("$") == 1 and re.search(r"\$\s?[\d.]", bare):
        return text if "\\$" in text else text.replace("$", "\\$")
    text = re.sub(r"(?<!\\)\$", "", text).strip()
    if text.startswith(_OPENS) and text.endswith(_CLOSES):
        text = text[2:-2].strip()
    return text


def words(text: str) -> str:
    r"""The plain words, in small letters, of `\text{(C)}`, `Evelyn`, `6:00\text{ p.m.}`; "" for mathematics."""
    plain = " ".join(_SPACE.sub(" ", _TEXT.sub(r"\1", text)).split()).strip(" .\"'")
    if plain.startswith("(") and plain.find(")") == len(plain) - 1:
        plain = plain[1:-1].strip()
    return plain.casefold() if _WORDS.fullmatch(plain) or _CLOCK.fullmatch(plain) else ""


def is_prose(text: str) -> bool:
    """Whether it is words for sure, to be compared as such: as mathematics `east` is a product equal to `seat`."""
    plain = words(text)
    if not plain or any(c.isdigit() for c in plain):
        return False
    return bool(_TEXT.search(text)) or any(len(w) > 3 and w not in _MATHS for w in re.findall(r"[^\W\d_]+", plain))


def rational(text: str) -> Fraction | None:
    r"""The value of a number, `3/4`, `\frac{3}{4}`, `1\frac12`, `1 1/2` or `1.5\times10^{3}`; None for others."""
    number = _NUMBER.match(text)
    if number and number.end() == len(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    tens = _TENS.fullmatch(text, number.end()) if number else None
    if number and tens:
        return Fraction(number.group().replace(",", "").removesuffix(".")) * Fraction(10) ** int(tens[1] or tens[2])
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        sign, whole, once, again = repeating.groups()
        value = Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1)) + Fraction(f"{whole or 0}.{once or 0}")
        return -value if sign == "-" else value
    found = _FRACTION.fullmatch(text)
    if found is None:
        return None
    over, under = int(found["p"] or found["p1"] or found["p2"]), int(found["q"] or found["q1"] or found["q2"])
    if under == 0 or (found["whole"] and (over < 0 or under < 0)):
        return None
    value = int(found["whole"] or 0) + Fraction(over, under)
    return -value if found["sign"] == "-" else value


def too_big(text: str) -> bool:
    """Whether reading it could take minutes or gigabytes: deep nesting, towers of powers, factorials of factorials."""
    return any(huge.search(text) for huge in _HUGE) or _runs_away(text)


def unfinished(gold: str, answer: str) -> bool:
    r"""Whether the answer still is a `\sum`, `\int`, `\lim`, ... where the gold answer is none: work, not an answer."""
    return bool(_WORK.search(answer)) and not _WORK.search(gold)


def _runs_away(text: str) -> bool:
    """Over 8 brackets deep, three storeys of exponents (`9^{9^{9^9}}`), or a factorial of a factorial."""
    exponents, factorials = [False], [False]  # of each open bracket: is it an exponent, is there a factorial in it
    last = ""  # the last character that is no space
    for character in text:
        if character in "{([":
            exponents.append(last == "^")
            factorials.append(False)
        elif character in "])}" and len(exponents) > 1:
            exponents.pop()
            inside = factorials.pop()
            factorials[-1] |= inside
            last = "!" if inside else character
            continue
        elif character == "!":
            if last == "!":
                return True
            factorials[-1] = True
        elif character == "^" and sum(exponents) > 1:
            return True
        if len(exponents) > DEEPEST + 1:
            return True
        last = last if character.isspace() else character
    return False


def split_unit(text: str, other: str) -> tuple[str, str]:
    r"""`12\text{ cm}^2` -> ("12", "cm2"). A lone letter is a unit only if the other text too ends in a unit.

    Units are also `%`, money before or after the number, degrees, and the base of `2516_8`.
    """
    found = _PERCENT.search(text)
    if found:
        return text[: found.start()].rstrip("\\ "), "%"
    found = _MONEY.match(text) or _MONEY_AFTER.search(text)
    if found:
        sign = found.groupdict().get("sign") or ""
        return sign + text[: found.start()].rstrip() + text[found.end() :], found["coin"]
    found = _DEGREES.search(text)
    if found:
        return text[: found.start()], f"degree{found['scale'].lower()}"
    based = _BASED.fullmatch(text)
    if based:
        return based["digits"], f"base {based['base']}"
    found = _TEXT_UNIT.search(text) or _BARE_UNIT.search(text) or _NOUN_UNIT.search(text)
    if found is None and any(r.search(other) for r in (_TEXT_UNIT, _BARE_UNIT, _LONE_UNIT)):
        found = _LONE_UNIT.search(text)
    if found is None or not any(c.isdigit() for c in text[: found.start()]):
        return text, ""
    return text[: found.start()], _unit(found["unit"], (found["power"] or "").strip(" ^{}"))


def _unit(name: str, power: str) -> str:
    """One spelling for each unit: `square meters` and `m^2` are "m2"; `units` is none."""
    name = " ".join(name.split()) if len(name) == 1 else " ".join(name.lower().split())
    for word, raised in (("square", "2"), ("sq", "2"), ("sq.", "2"), ("cubic", "3"), ("squared", "2"), ("cubed", "3")):
        if word in name.split():
            name, power = " ".join(w for w in name.split() if w != word), raised
    name = name.removesuffix("s") if len(name) > 2 else name
    name = _ALIASES.get(name, name)
    return name + power if name else ""
