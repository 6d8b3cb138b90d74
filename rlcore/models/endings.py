"""The ending tokens of a run's model: of its tokenizer, its chat template and its generation config together."""

from __future__ import annotations

import json
from typing import Any

from transformers.utils import cached_file

from rlcore.config import Config
from rlcore.data.endings import MARKER, Endings, endings, special_tokens, text_of
from rlcore.errors import ConfigError

_FILES = ("generation_config.json", "config.json")  # the first that says anything counts, as in transformers and vLLM


def model_endings(cfg: Config, tokenizer: Any) -> Endings:
    """What ends a response of this run, the same in every process. Raises ConfigError where the files contradict."""
    file, declared = _declared(cfg.model.path)
    known = special_tokens(tokenizer)
    for token in declared:
        if not 0 <= token < len(tokenizer):
            what = f"which is no token of the tokenizer (it has {len(tokenizer)})"
        elif token not in known and not MARKER.fullmatch(text_of(tokenizer, [token])):
            what = f"which is {text_of(tokenizer, [token])!r} in the tokenizer, a piece of text and no ending"
        else:
            continue
        raise ConfigError(
            f"model.path: {file} of {cfg.model.path} ends responses with eos_token_id {token}, {what}; they are of two "
            "models: correct eos_token_id, or the tokenizer"
        )
    return endings(tokenizer, cfg.data.chat_template, cfg.data.chat_template_args, declared)


def _declared(path: str) -> tuple[str, list[int]]:
    """The eos_token_id of the model's files, as a list, and the file that has it."""
    for name in _FILES:
        found = _read(path, name)
        value = found.get("eos_token_id", (found.get("text_config") or {}).get("eos_token_id"))
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            if not all(type(token) is int for token in listed):  # true is an int to Python
                raise ConfigError(f"model.path: {name} of {path}: eos_token_id is {value!r}, must be a token's number")
            return name, listed
    return _FILES[0], []


def _read(path: str, name: str) -> dict[str, Any]:
    """A JSON file of a directory or of a hub's model; {} where there is none."""
    try:
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    if file is None:
        return {}
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
    except ValueError as e:
        raise ConfigError(f"model.path: {name} of {path} is not valid JSON: {e}") from e
    return found if isinstance(found, dict) else {}
