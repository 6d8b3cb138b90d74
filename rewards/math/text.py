r"""Mathematical answers as text: cleaned, split from their units, refused if they cannot be worth reading. No sympy.

What math-verify gets wrong alone and is settled here: docs/rewards.md, "Mathematics".
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MOST_CHARACTERS = 400  # a longer answer is wrong, whatever it says
_LONGEST_FORMULA = 100  # characters
DEEPEST = 8  # an answer nested deeper is wrong: the LaTeX reader's time grows faster than the depth

_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_NAMED = (
    "\u00d7:times \u00f7:div \u00b7:cdot \u22c5:cdot \u03c0:pi \u221e:infty \u00b1:pm \u2264:le \u2265:ge \u2260:ne "
    "\u222a:cup \u2229:cap \u2208:in \u2205:emptyset \u221a:sqrt \u2248:approx \u2026:ldots"
)
_SYMBOLS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013", "-"),
    **{symbol: f"\\{name} " for symbol, _, name in (each.partition(":") for each in _NAMED.split())},
    **{"\u2044": "/", "\u00b0": "^\\circ ", "\u2032": "'"},
}
_SPELLING = str.maketrans(_SYMBOLS)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_LOWERED = re.compile("[\u2080-\u208e]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_OPENS, _CLOSES = ("\\[", "\\("), ("\\]", "\\)")
# What only dresses an answer up: colour, weight, `Answer:`, an equals sign with nothing before it.
_DRESS = re.compile(
    r"\\(?:text)?color\s*\{[^{}]{0,40}\}|\\(?:bf|it|rm|tt|sf|bfseries|displaystyle|textstyle|boldmath|large|Large|huge)"
    r"(?![A-Za-z])|\\(?:underline|boldsymbol|bm|pmb)(?=\s*\{)"
)
_ANNOUNCED = re.compile(
    r"(?:=|\\(?:approx|therefore|implies|Rightarrow)(?![A-Za-z])"
    r"|\\text\s*\{\s*(?:the\s)?(?:final\s)?answer(?:\sis)?\s*:?\s*\}:?|(?:the\s)?(?:final\s)?answer(?:\sis|\s?:))\s*",
    re.IGNORECASE,
)
_OF = r"\s*(\{[^{}]{1,40}\}|[^{}\\]{1,40}?)\s*"
_CHOOSE = re.compile(rf"(?:\{{|^){_OF}\\choose(?![A-Za-z]){_OF}(?:\}}|$)")
_ROMAN = re.compile(r"\\(?:text|math)(?:rm|it|up)?\s{0,4}\{([ie])\}")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!;:]|\{,\}|,\\!|\\ |\s)(?=\d{3}(?!\d))")
_SCIENTIFIC = re.compile(r"(?<![\w.}])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.{])", re.ASCII)

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it)|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,!;: ]|~|\\q?quad(?![A-Za-z])|\s")
_WORDS = re.compile(r"[^\W\d_][\w '\u2019.,:;!?&/()-]*")
_CHOICES = frozenset("abcdefghij")
_CLOCK = re.compile(r"\d[\w '.,:/-]*")
_TIME = re.compile(r"(\d{1,2}):(\d\d)([ap]\.?m\.?)?", re.ASCII | re.IGNORECASE)
_GREEK = "alpha beta gamma delta epsilon theta lambda sigma omega"
_MATHS = frozenset(f"sqrt cbrt frac infinity infty sin cos tan cot sec csc log exp sinh cosh tanh {_GREEK}".split())

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|[+-]?\.\d+", re.ASCII)
_TENS = re.compile(r"\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))", re.ASCII)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)\s*(?=\\|\s\d))?(?:\\[dtc]?frac\s*(?:\{\s*(?P<p>-?\d+)\s*\}\s*"
    r"\{\s*(?P<q>-?\d+)\s*\}|\s?(?P<p1>\d)\s?(?P<q1>\d)(?!\d))|\s*(?P<p2>\d+)\s*/\s*(?P<q2>\d+))",
    re.ASCII,
)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d{0,20})\\(?:overline|bar)\s*\{?\s*(\d{1,20})\s*\}?", re.ASCII)
_AND_SO_ON = re.compile(r"([+-]?)(\d*)\.(\d{0,20}?)(\d{1,6}?)\4{1,20}(?:\\[lc]?dots|\.{3})", re.ASCII)

_POWER = r"(?:\s{0,4}\^\s{0,4}\{?-?[23]\}?)?"
_GAP = r"(?:\\[,!;: ]|~|\s)*"
_PIECE = rf"\\(?:text(?:bf|it|rm)?|mathrm|mbox|operatorname)\s{{0,4}}\{{[A-Za-z ./()-]{{1,60}}\}}{_POWER}"
_TEXT_UNIT = re.compile(rf"{_GAP}(?P<unit>\(?{_PIECE}(?:\s{{0,4}}(?:/|\\cdot)?\s{{0,4}}{_PIECE}){{0,2}}\)?)$")
_UNIT_OVER = re.compile(rf"\\[dt]?frac\s*\{{\s*({_PIECE})\s*\}}\s*\{{\s*({_PIECE})\s*\}}")
_SHORT = (
    "mm|cm|dm|km|kg|mg|ml|mi|ft|mph|inch(?:es)?|feet|met(?:er|re)s?|miles?|hours?|hrs?|minutes?|mins?|seconds?|secs?"
    "|days?|years?|degrees?|dollars?|USD|cents?|units?"
)
_BARE_UNIT = re.compile(
    rf"(?<=[\d}}]){_GAP}(?<!\\)(?:\b|(?<=\d)(?!m[gil]|dm))(?P<unit>(?:{_SHORT})(?:\s?/\s?(?:{_SHORT}|[smhgLl]))?{_POWER}"
    rf"|(?<=[\s~])[mgLl]\s?/\s?(?:{_SHORT}|[smhgLl]){_POWER})$"
)
_NOUN_UNIT = re.compile(rf"(?<=\d)\s{{1,4}}(?P<unit>[A-Za-z]{{3,20}}(?:(?: | ?/ ?)[A-Za-z]{{1,20}}){{0,3}}{_POWER})$")
_LONE_UNIT = re.compile(rf"(?<=\d)(?:\\[,!;: ]|~|\s)+(?P<unit>[mgsLlh]{_POWER})$")
_RAISED_UNIT = re.compile(r"\s*\^\s*\{?(-?[23])\}?")
_TIMES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# After a number these words make it another number, a bound, a condition or a denial: what has one of them is no unit.
_LETTERS = frozenset("mgsLlhNJWVAKCF")  # units of one letter
_CHANGING = {*_MATHS, *_TIMES} | set(
    "or and not no nor is are isn was be but if when where unless except than least most over under below about "
    "around almost nearly plus minus multiplied divided factorial root power mod modulo base binary octal "
    "hexadecimal infinite negative wrong incorrect false double twice triple half halves third thirds fourths "
    "fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths "
    "thousandth thousandths millionth millionths zero one two three four five six seven eight nine ten tens "
    "eleven twelve twenty thirty forty fifty sixty seventy eighty ninety".split()
)
_PERCENT = re.compile(r"\s*(?:\\?%|\\(?:text|mathrm)\{\s*(?:%|\\%)\s*\})$")
_MONEY = re.compile(r"(?P<sign>[+-]?)\s*(?P<coin>\\\$|[\u20ac\u00a3\u00a5\u20b9])\s*(?=[\d.])")
_MONEY_AFTER = re.compile(r"(?<=\d)\s*(?P<coin>\\\$|[\u20ac\u00a3\u00a5\u20b9])$")
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\{\s*)?(?P<scale>[CF]?)\s*\}?$")
_BASED = re.compile(r"(?P<digits>[0-9A-F]+)_\{?(?P<base>\d{1,2})\}?", re.ASCII)
_ALIAS = (
    "metre:m meter:m centimeter:cm centimetre:cm millimeter:mm kilometer:km kilometre:km foot:ft feet:ft inch:in "
    "inche:in mile:mi gram:g kilogram:kg liter:l litre:l second:s sec:s minute:min hour:h hr:h dollar:\\$ usd:\\$ "
    "euro:\u20ac pound:lb lb:lb percent:% percentage:% pct:%"
)
_ALIASES = {
    **{name: unit for name, _, unit in (each.partition(":") for each in _ALIAS.split())},
    **{"mi per h": "mph", "kph": "km per h", "kmph": "km per h", "unit": ""},
}

# What the LaTeX reader would drop (a prime, a transpose) or take apart (the letters of `ABC`), as it keeps it.
_PRIMED = re.compile(r"([A-Za-z]|\\[a-z]+\s?)(?:_\{?(\w{1,4})\}?)?('{1,4}|\^\s?\{?(?:\\prime\s?){1,4}\}?)")
_TRANSPOSED = re.compile(
    r"(?<!matrix\})\^\s{0,4}(?:\{\s{0,4}(?:T|\\top|\\intercal|\\(?:text|math)(?:rm|sf|bf)?\s?\{T\})\s{0,4}\}"
    r"|T|\\top(?![A-Za-z])|\\intercal(?![A-Za-z])|\\(?:text|math)(?:rm|sf|bf)?\s?\{T\})"
)
_CAPITALS = re.compile(  # a name: all of the text, after an angle, in a ratio of segments that share an end
    r"^([A-Z](?:\s?[A-Z])+)$|(?<=angle|quare)\s+([A-Z](?:\s?[A-Z])+)(?!\s?\^)"
    r"|(?<=frac\{)(?=[A-Z]?([A-Z])[A-Z]?\}\{[A-Z]?\3[A-Z]?\}$)([A-Z]{2})"
)
_AND = r"(?:\\text\s{0,4}\{\s{0,4},?\s{0,4}(?:and|or)\s{0,4}\}|(?:and|or)(?![A-Za-z]))"
_JOINED = re.compile(rf"(?<=\d)\s{{0,4}},?\s{{0,4}}{_AND}\s{{0,4}}(?=\d{{3}}(?!\d))")
_SEPARATED = re.compile(rf",(?!\d{{3}}(?!\d))|(?<=\d)\s{{0,4}}{_AND}")  # no thousands
_PI_OVER = re.compile(r"frac\s*\\pi\s*([2-9])(?!\d)")
_BEFORE_BINOM = re.compile(  # which the reader would add: 2+120
    r"((?<![\^_\d.])\d+|\\[dt]?binom\s*\{\s*\w+\s*\}\s*\{\s*\w+\s*\})\s*(?=\\[dt]?binom)"
)
_GAMMA = re.compile(r"\\gamma(?![A-Za-z])(?!\s?\()")

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
    plain = _SIZE.sub("", plain).strip()
    plain = _undelimited(plain.strip("*").strip() if plain.startswith("*") else plain)
    plain = plain.replace("\\langle", "(").replace("\\rangle", ")").replace("\\varnothing", "\\emptyset")
    plain = re.sub(r"\^?\\degree(?![A-Za-z])", r"^\\circ", plain)
    plain = plain.removesuffix(".").strip() if not plain.endswith("...") else plain
    plain = _UNIT_OVER.sub(r"\1/\2", plain)
    whole = _TEXT.fullmatch(plain)
    plain = _undressed(whole[1].strip() if whole and any(c.isdigit() for c in whole[1]) else plain)
    plain = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", _THOUSANDS.sub("", plain))
    return plain if len(plain) <= 2 * MOST_CHARACTERS else ""


def _undressed(text: str) -> str:
    r"""Without colour and weight, braces around all of it, and `=`, `\approx` or `Answer:` before it."""
    text = _ROMAN.sub(r"\1", _DRESS.sub(" ", text)).strip()
    text = _CHOOSE.sub(lambda m: f"\\binom{{{m[1].strip('{} ')}}}{{{m[2].strip('{} ')}}}", text)
    while text.startswith("{") and last_box(f"\\boxed{text}") == text[1:-1]:
        text = text[1:-1].strip()
    announced = _ANNOUNCED.match(text)
    return text[announced.end() :].strip() if announced else text


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
    plain = " ".join(_SPACE.sub(" ", _TEXT.sub(r"\1", text)).split()).strip(' ."').removeprefix("'")
    if plain.startswith("(") and plain.find(")") == len(plain) - 1:
        plain = plain[1:-1].strip()
    if not re.search(r"[^\W\d_]{2}", plain) and plain.casefold() not in _CHOICES:  # `P` is not `p`, `F(x)` not `f(x)`
        return plain if _WORDS.fullmatch(plain) or _CLOCK.fullmatch(plain) else ""
    return plain.casefold() if _WORDS.fullmatch(plain) or _CLOCK.fullmatch(plain) else ""


def clock(text: str) -> tuple[int, str, str] | None:
    r"""(6, "00", "pm") of `6:00\text{ p.m.}`, the last "" of `06:00`; None of what is no time of day."""
    found = _TIME.fullmatch(_SPACE.sub("", _TEXT.sub(r"\1", text)))
    return (int(found[1]), found[2], (found[3] or "").replace(".", "").lower()) if found else None


def is_prose(text: str) -> bool:
    """Whether it is words for sure, to be compared as such: as mathematics `east` is a product equal to `seat`."""
    plain = words(text)
    if not plain or any(c.isdigit() for c in plain):
        return False
    return bool(_TEXT.search(text)) or any(len(w) > 3 and w not in _MATHS for w in re.findall(r"[^\W\d_]+", plain))


def is_formula(text: str) -> bool:
    """Whether LaTeX that no reader reads can still be compared as text: it is short, whole, and has no words in it."""
    marked = re.search(r"\\[A-Za-z|]|[_^*']", text)
    whole = all(text.count(a) == text.count(b) for a, b in ("{}", "()", "[]"))
    return len(text) <= _LONGEST_FORMULA and bool(marked) and whole and not _TEXT.search(text) and not words(text)


def spelled(text: str) -> str:
    r"""What the LaTeX reader keeps all of: primes as subscripts, `^T` as an exponent, `ABC` as one name."""
    text = text.replace('"', "''")
    text = _PRIMED.sub(lambda m: f"{m[1]}_{{{m[2] or ''}{'q' * (m[3].count(chr(39)) + m[3].count('prime'))}}}", text)
    text = _TRANSPOSED.sub(r"^{1T}", text)
    text = _CAPITALS.sub(lambda m: f"\\text{{{''.join(m[m.lastindex or 1].split())}}}", text.strip())
    text = _BEFORE_BINOM.sub(r"\1\\cdot ", text)
    return _GAMMA.sub(r"\\text{gammas}", _PI_OVER.sub(r"frac{\\pi}{\1}", text))


def as_typeset(text: str) -> str:
    r"""The same for texts that mean the same for sure: `\bar z` and `\bar{z}`, `2 x` and `2x`, `bmatrix` as well."""
    text = re.sub(r"\{\s*([\w*]|\\circ)\s*\}", r" \1 ", text.replace("{bmatrix}", "{pmatrix}"))
    return re.sub(r"(?<![A-Za-z\d,])\s+|\s+(?![A-Za-z\d])", "", text).strip()


def apart(text: str, other: str) -> str:
    r"""`200 or 300` as `200, 300`; the same of `200,300` in a set, or where the other is a list: no number 200300."""
    if re.search(r"[<>]|\\[lg]eq?(?![A-Za-z])", text):
        return text
    if _JOINED.search(text):
        return _JOINED.sub(", ", text)
    several = enclosure(text) == "{" or enclosure(other) in ("{", "(") or _SEPARATED.search(other)
    return text if not several or _SEPARATED.search(text) else text.replace(",", ", ")


def enclosure(text: str) -> str:
    r"""`(` of a tuple `(1,2)`, `{` of a set `\{1,2\}`, `,` of a list without brackets, "" of all others."""
    if "matrix" in text:
        return ""
    inner = text.replace("\\{", "(").replace("\\}", ")")
    depth, first_closed, commas = 0, len(inner), False
    for at, character in enumerate(inner):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            first_closed = min(first_closed, at) if depth == 0 else first_closed
        elif character in ",;" and depth <= 1:
            commas |= depth == 1
            if depth == 0:
                return ","
    if not commas or first_closed < len(inner) - 1:
        return ""
    return "{" if text.startswith("\\{") else "(" if text[0] == "(" and text[-1] == ")" else ""


def rational(text: str) -> Fraction | None:
    r"""The value of a number, `3/4`, `\frac{3}{4}`, `1\frac12`, `1 1/2` or `1.5\times10^{3}`; None for others."""
    number = _NUMBER.match(text)
    if number and number.end() == len(text):
        return Fraction(text.replace(",", "").removesuffix("."))
    tens = _TENS.fullmatch(text, number.end()) if number else None
    if number and tens:
        return Fraction(number.group().replace(",", "").removesuffix(".")) * Fraction(10) ** int(tens[1] or tens[2])
    repeating = _REPEATING.fullmatch(text) or _AND_SO_ON.fullmatch(text)
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
        amount, _ = split_unit(sign + text[: found.start()].rstrip() + text[found.end() :], other)
        return amount, found["coin"]  # `\$8 million`, `\$8 per day`
    found = _DEGREES.search(text)
    if found:
        return text[: found.start()], f"degree{found['scale'].lower()}"
    based = _BASED.fullmatch(text)
    if based:
        return based["digits"], f"base {based['base']}"
    found = _TEXT_UNIT.search(text) or _BARE_UNIT.search(text) or _NOUN_UNIT.search(text)
    if found is None and any(r.search(other) for r in (_TEXT_UNIT, _BARE_UNIT, _LONE_UNIT)):
        found = _LONE_UNIT.search(text)
    if found is None or not re.search(r"\d|\\pi", text[: found.start()]):
        return text, ""
    return _scaled(text, text[: found.start()], found["unit"])


def _scaled(text: str, value: str, tail: str) -> tuple[str, str]:
    """The value and unit of a number and the words after it: `8`, `million cookies` -> ("8000000", "cookie")."""
    plain = re.sub(r"\\cdot(?![A-Za-z])|[~(){}]|\\[,!;: ]", " ", _TEXT.sub(r" \1 ", _RAISED_UNIT.sub(r" ^\1 ", tail)))
    named = re.sub(r"\s*/\s*", " per ", plain.strip().strip(".")).split()
    factor = 1
    while named and (times := _TIMES.get(named[0].lower().removesuffix("s"))):
        factor, named = factor * times, named[1:]
    if any(w.lower() in _CHANGING for w in named) or (named and named[0].lower() in ("squared", "cubed")):
        return text, ""
    if len(named) == 1 and len(named[0]) == 1 and named[0] not in _LETTERS:
        return text, ""
    if factor > 1:
        number = rational(value.strip())
        value = f"({value}) \\cdot {factor}" if number is None else _plain(number * factor)
    return value, _unit(named)


def _plain(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else f"\\frac{{{number.numerator}}}{{{number.denominator}}}"


def _unit(named: list[str]) -> str:
    """One spelling for each unit: `square meters`, `meters squared` and `m ^2` are "m2"; `units` is none."""
    power = "".join(w[1:] for w in named if w[0] == "^" and w == named[-1])
    named = [w for w in named if w[0] != "^" or w != named[-1]]
    name = named[0] if len(named) == 1 and len(named[0]) == 1 else " ".join(named).lower()
    for word, raised in (("square", "2"), ("sq", "2"), ("sq.", "2"), ("cubic", "3"), ("squared", "2"), ("cubed", "3")):
        if word in name.split():
            name, power = " ".join(w for w in name.split() if w != word), raised
    singular = (w.removesuffix("s") if len(w) > 2 else w for w in name.split())
    name = " ".join(_ALIASES.get(w, w) for w in singular)
    name = _ALIASES.get(name, name)
    return name + power if name else ""
