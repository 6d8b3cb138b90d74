"""Whether a tokenizer and a model go together: each id has a row of the embedding, and means what the model learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlcore.config import ModelConfig
from rlcore.errors import ConfigError
from rlcore.models.checkpoint_files import directory_of, has_vocabulary
from rlcore.models.load import load_tokenizer_path

_NAMED = ("eos_token", "bos_token", "pad_token")
_PICTURES = ("image_token", "video_token", "audio_token")  # of a family; its text models have no row for them


def require_rows(tokenizer: PreTrainedTokenizerBase, tokenizer_at: str, model: PreTrainedModel, model_at: str) -> None:
    """Raise ConfigError when the tokenizer at `tokenizer_at` has tokens for which the embedding has no row.

    Both places are "key PATH". An embedding with more rows than there are tokens is a padded one.
    """
    rows = rows_of(model)
    placeholders = {getattr(tokenizer, name, None) for name in _PICTURES}
    beyond = {t: i for t, i in tokenizer.get_vocab().items() if i >= rows and t not in placeholders}
    if beyond:
        token, number = min(beyond.items(), key=lambda each: each[1])
        raise ConfigError(
            f"{tokenizer_at}: the tokenizer has {len(beyond)} tokens that the model of {model_at} does not know: "
            f"{token!r} is {number}, and its embedding has {rows} rows; enlarge it (resize_token_embeddings), or take "
            "the model's own tokenizer"
        )


def rows_of(model: PreTrainedModel) -> int:
    """Of the embedding."""
    embedding: Any = model.get_input_embeddings()
    return embedding.num_embeddings


def require_same_tokens(
    mine: PreTrainedTokenizerBase, mine_at: str, theirs: PreTrainedTokenizerBase, theirs_at: str
) -> None:
    """Raise ConfigError when `theirs` gives a token of `mine` another number, or has none for it.

    Both places are "key PATH".
    """
    known = theirs.get_vocab()
    wrong = [token for token, number in mine.get_vocab().items() if known.get(token) != number]
    if wrong:
        first = min(wrong, key=lambda token: mine.get_vocab()[token])
        raise ConfigError(
            f"{theirs_at} has another tokenizer than {mine_at}: {len(wrong)} tokens differ; {first!r} is "
            f"{known.get(first)} there and {mine.get_vocab()[first]} here"
        )


def require_own_tokens(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError when model.tokenizer is not of model.path: other numbers for tokens, or other special tokens.

    Compared with the model's own tokenizer, or where it has none, with what its configuration says.
    """
    if cfg.tokenizer is None:
        return
    directory, at = directory_of(cfg.path, "model.path"), f"model.tokenizer {cfg.tokenizer}"
    if has_vocabulary(directory):
        own = load_tokenizer_path(str(directory), "model.path")
        require_same_tokens(own, f"model.path {cfg.path}", tokenizer, at)
        theirs = _of_tokenizer(own)
    else:
        theirs = _configured(directory)
    for name in _NAMED:
        found = getattr(tokenizer, f"{name}_id")
        if theirs[name] and found not in theirs[name]:
            meant = " or ".join(str(number) for number in sorted(theirs[name] - {None})) or "none"
            raise ConfigError(
                f"{at} has {getattr(tokenizer, name)!r} ({found}) for {name}, model.path {cfg.path} has {meant}; give "
                "the tokenizer the special tokens of the model, or put it into the model's directory in place of its "
                "own, and eos_token_id into its generation_config.json"
            )


def _of_tokenizer(own: PreTrainedTokenizerBase) -> dict[str, set[Any]]:
    """The ids that special tokens may have; none where any may."""
    eos, bos, pad = (getattr(own, f"{name}_id") for name in _NAMED)
    return {"eos_token": {eos} - {None}, "bos_token": {bos}, "pad_token": set() if pad is None else {pad, None}}


def _configured(directory: Path) -> dict[str, set[Any]]:
    """The same, of what a model's files name. Published ones name a first token that their tokenizers do not have."""
    sources: list[Any] = [AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()]
    if (directory / "generation_config.json").is_file():
        sources.append(GenerationConfig.from_pretrained(directory))
    named = {name: {i for source in sources for i in _ids(getattr(source, f"{name}_id", None))} for name in _NAMED}
    return {name: ids | {None} if ids and name != "eos_token" else ids for name, ids in named.items()}


def _ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
