"""Whether a response stays in one language: the consistency reward of DeepSeek-R1 (arXiv 2501.12948)."""

from __future__ import annotations

import regex

from rlcore.errors import ConfigError
from rlcore.records import Prompt

# Languages are told apart by their writing alone.
_SCRIPTS = {
    "Latin": "en de fr es it pt nl sv da no fi pl cs sk hu ro hr sl lt lv et tr vi id ms sw tl ca",
    "Cyrillic": "ru uk be bg sr mk kk mn",
    "Arabic": "ar fa ur ps",
    "Devanagari": "hi mr ne sa",
    "Han": "zh",
    "Hangul": "ko",
    "Greek": "el",
    "Hebrew": "he",
    "Thai": "th",
    "Bengali": "bn",
    "Tamil": "ta",
    "Telugu": "te",
    "Georgian": "ka",
    "Armenian": "hy",
}
LANGUAGES: dict[str, tuple[str, ...]] = {
    code: (script,) for script, codes in _SCRIPTS.items() for code in codes.split()
}
LANGUAGES["ja"] = ("Han", "Hiragana", "Katakana")

_UNSPACED = r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}"
_LETTER = r"[\p{L}\p{M}--\p{Script=Common}]"
# A word is a run of letters, or one letter where no spaces are written.
_WORD = regex.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}]){_LETTER})+", regex.V1)
# What belongs to no language: tags, LaTeX commands, and the single letters that mathematics calls its numbers.
_NEUTRAL = regex.compile(r"</?\w+>|\\[A-Za-z]+|(?<!\p{L})[\p{Script=Latin}\p{Script=Greek}](?![\p{L}\p{M}])", regex.V1)


def language(prompt: Prompt, response: str, *, language: str = "en") -> float:
    """The share of words that are in `language`, 0.0 to 1.0; 1.0 for a response without words.

    A word counts when all its letters are of the writing of the language: languages that share one are not told apart.
    Raises ConfigError for a language that is not in LANGUAGES.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"reward.args: language.language is {language}, must be one of {', '.join(LANGUAGES)}")
    words = _WORD.findall(_NEUTRAL.sub(" ", response))
    letters = "".join(rf"\p{{Script={script}}}" for script in LANGUAGES[language])
    written = regex.compile(rf"(?:[{letters}]|\p{{M}})+", regex.V1)
    return sum(written.fullmatch(word) is not None for word in words) / len(words) if words else 1.0
