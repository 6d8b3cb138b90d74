"""A penalty for saying the same again (arXiv 2502.03373, appendix C.2)."""

from __future__ import annotations

import regex

from rlcore.errors import ConfigError
from rlcore.records import Prompt

# Scripts that put no space between words: there, each letter stands for a word.
_WORD = regex.compile(
    r"(?P<letter>[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}])|(?:(?!(?&letter))\S)+"
)


def repetition(prompt: Prompt, response: str, *, ngram: int = 20, penalty: float = 1.0) -> float:
    """From 0.0 (no run of `ngram` words comes twice) towards `-penalty`: the share of runs that were there before.

    Words are what stands between spaces, in lower case; of Chinese, Japanese, Thai and the like every letter. With
    fewer than `ngram` words it is 0.0. Raises ConfigError for an `ngram` below 1.
    """
    if ngram < 1:
        raise ConfigError(f"reward.args: repetition.ngram is {ngram}, must be at least 1")
    words = [found.group() for found in _WORD.finditer(response.lower())]
    runs = len(words) - ngram + 1
    if runs < 1:
        return 0.0
    different = len({tuple(words[i : i + ngram]) for i in range(runs)})
    return penalty * (different / runs - 1.0)
