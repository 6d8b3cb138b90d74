r"""Text on a command line: which of it is Hydra's grammar, and which backslashes are more than themselves.

Hydra's grammar knows no `\n`, cuts a text at its commas, and reads 2026_11 as a number. Here a key that takes text gets
it as it was typed, and in what a model reads `\n` is a line break and `\\` a backslash: see docs/configuration.md.
"""

from __future__ import annotations

import re
from typing import Any, Optional

from hydra.core.override_parser.types import Quote, QuotedString

from rlcore.compose.merge import hint, root_key
from rlcore.config import all_keys
from rlcore.errors import ConfigError

PROSE = ("data.prompt_template", "data.system_prompt")  # a comma or a bracket is part of them
_ESCAPE = re.compile(r"\\[()\[\]{}:=, \t]")  # Hydra's
_FOR_A_MODEL = (*PROSE, "rollout.stop", "reward.args", "data.chat_template_args")


# Of TeX's commands that begin with \n those that are no line's beginning in any language.
_TEX = re.compile(
    r"(?<!\\)(?:\\\\)*\\n(e|eg|eq|u|abla|atural|cong|earrow|ewline|exists|geq|leq|mid|onumber|ot|otin|parallel|warrow)\b"
)


def quoted(text: str) -> str:
    """The text as Hydra's grammar has it in quotes."""
    return QuotedString(text, Quote.single).with_quotes()


def as_typed(key: str, typed: str, parsed: Any) -> Any:
    """The value of a key: `typed` is what stands after the `=`, `parsed` what Hydra's grammar makes of it. ConfigError
    for a text in a list that was read as something else."""
    value, number = parsed, bool | int | float
    if key in PROSE and parsed is not None and not is_quoted(typed, parsed):
        value = typed
    elif isinstance(parsed, number) and (takes_text(key) or takes_texts(key)):
        value = typed.strip()
    elif isinstance(parsed, str) and takes_text(key) and not is_quoted(typed, parsed):
        value = parsed if _ESCAPE.search(typed) else typed.strip()  # of a path every backslash counts
    elif isinstance(parsed, list) and takes_texts(key):
        for inner in parsed:
            if isinstance(inner, number) and str(inner) not in typed:  # 1_000, true, 1e5
                raise ConfigError(
                    f"{key}={typed}: one of these texts reads as {inner}; write it in quotes, inside the list"
                )
    return value


def takes_text(key: str) -> bool:
    return key in all_keys() and hint(key) in (str, Optional[str])


def takes_texts(key: str) -> bool:
    return key in all_keys() and hint(key) == list[str]


def with_breaks(key: str, value: Any) -> Any:
    r"""What a model is to read has `\n` as a line break; any other key's value is as it is. ConfigError for `\neq`."""
    if root_key(key) not in _FOR_A_MODEL:
        return value
    if isinstance(value, str) and (tex := _TEX.search(value)) is not None:
        word = tex[1]
        raise ConfigError(
            f"{key}: \\n{word} reads as a line break and {word!r}; write \\\\n{word} for TeX's command, or the line "
            "break itself"
        )
    return _breaks(value)


def is_quoted(typed: str, parsed: Any) -> bool:
    """Whether a text stands in quotes of Hydra's grammar."""
    return isinstance(parsed, str) and typed.strip()[:1] in ("'", '"') and typed != parsed


def _breaks(value: Any) -> Any:
    r"""With `\n` as a line break and `\\` as one backslash; any other backslash, as of \boxed, is itself."""
    if isinstance(value, str):
        return re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", value)
    if isinstance(value, list):
        return [_breaks(inner) for inner in value]
    return {key: _breaks(inner) for key, inner in value.items()} if isinstance(value, dict) else value
