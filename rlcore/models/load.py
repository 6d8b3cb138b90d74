"""A Hugging Face model from disk, as we run it, and its tokenizer: hub ids, local directories, GGUF files.

Nothing of a checkpoint is executed: no remote code, no pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from rlcore.config import ModelConfig, compute_dtype
from rlcore.errors import ConfigError
from rlcore.files import locked, written_aside
from rlcore.models.checkpoint_files import (
    directory_of,
    has_vocabulary,
    headers,
    one_line,
    require_fetched,
    require_usable,
)
from rlcore.models.pack import SCORE, pack, pack_value
from rlcore.models.whole import (
    Found,
    compare,
    require_finite,
    require_still_tied,
    require_tied,
    require_whole,
    without_memory,
)
from rlcore.surroundings import offline_without_hub

_NOT_A_MODEL = (OSError, ValueError, KeyError, ImportError, RuntimeError)  # what transformers raises for a bad path
_LOADING: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
_ANOTHER_MAKES_IT_SECONDS = 3600.0


def model_dtype(cfg: ModelConfig, device: str) -> torch.dtype:
    """Of the forward pass, as torch names it; the rule is `config.compute_dtype`, which the engines go by too."""
    return getattr(torch, compute_dtype(cfg, device))


def load_path(path: str, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    """The language model at `path` (hub id, local directory or GGUF file) on the CPU, ready for `token_logp`.

    `weights=False` makes the same modules with memory that was never written, for ranks that get the weights from
    rank 0. Raises ConfigError (key model.path) when it cannot be loaded, is not whole, or cannot be packed.
    """
    return pack(_read(path, dtype, weights))


def _read(path: str, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    where, at = _source(path), f"model.path: {path}"
    try:
        if weights and not _is_gguf(path):
            loaded: Any = AutoModelForCausalLM.from_pretrained(**(where | _LOADING), dtype=dtype)
            model, info = loaded
            require_whole(model, _found(info), at)
        else:
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where), dtype=dtype)
                model.tie_weights()
            model = _fill_from_gguf(model, path, dtype) if weights else model
    except _NOT_A_MODEL as e:
        raise ConfigError(f"model.path: cannot load {path}: {one_line(e)}") from e
    if weights:
        require_still_tied(model, at)
        require_finite(model, at)
    return model


def _found(info: Mapping[str, Any]) -> Found:
    """What transformers says of a load."""
    return Found(info["missing_keys"], info["unexpected_keys"], [str(each) for each in info["mismatched_keys"]])


def _fill_from_gguf(model: PreTrainedModel, path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The dequantized tensors of a GGUF file. transformers' own `from_pretrained` would need accelerate for it."""
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model, torch_dtype=dtype)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = model.all_tied_weights_keys
    require_whole(model, Found({n for n in missing if n not in tied}, set(unexpected)), f"model.path: {path}")
    model.tie_weights()
    return model


def load_value_path(
    path: str, key: str, dtype: torch.dtype, weights: bool = True, new_head: bool = True
) -> PreTrainedModel:
    """The language model or reward model at `path` (hub id or local directory) on the CPU, ready for `token_value`.

    A reward model's head of one output is kept. A model without one gets a head of zeros, so that the first advantages
    are the plain returns; with `new_head` False it is refused. `weights` as in load_path. ConfigError names the `key`.
    """
    where = _source(path)
    if not Path(path).exists():
        offline_without_hub()
    try:
        shape = AutoConfig.from_pretrained(**where, num_labels=1)
        if not weights:
            with no_init_weights():
                return pack_value(AutoModelForSequenceClassification.from_config(shape, dtype=dtype), key)
        where |= {"config": shape, "dtype": dtype, **_LOADING}
        model, info = AutoModelForSequenceClassification.from_pretrained(**where)
    except _NOT_A_MODEL as e:
        what = "critic" if new_head else "reward model"
        raise ConfigError(f"{key}: cannot make a {what} of {path}: {one_line(e)}") from e
    _require_value(model, _found(info), f"{key}: {path}", new_head)
    packed, head = pack_value(model, key), f"{SCORE}.weight"
    if head in info["missing_keys"]:
        torch.nn.init.zeros_(packed.get_submodule(SCORE).get_parameter("weight"))
    require_finite(packed, f"{key}: {path}")
    return packed


def _require_value(model: PreTrainedModel, found: Found, at: str, new_head: bool) -> None:
    """Raise ConfigError when a checkpoint is neither that of a language model nor of one with a linear scoring head."""
    head = f"{SCORE}.weight"
    if several := [each for each in found.reshaped if each.startswith(f"{head} ")]:
        raise ConfigError(f"{at} scores by several labels, and a critic or reward model has one: {several[0]}")
    require_whole(model, found, at, optional=[head])
    if head in found.missing and not new_head:
        raise ConfigError(
            f"{at} is a language model without a scoring head, so all its scores would be 0; give a sequence "
            "classification model of one label, as `rlcore train-rm` makes them"
        )


# -- known at start, from the files' headers


def proved(path: str, key: str) -> PreTrainedModel:
    """The language model at `path` (hub id or local directory) without memory. Raises ConfigError naming `key` when the
    checkpoint is not whole, or not of its config; the weights are not read."""
    directory = directory_of(path, key)
    require_usable(directory, key)
    disk = headers(directory, key)
    make = functools.partial(_without_memory, AutoModelForCausalLM.from_config, directory, key)
    model, at = make(), f"{key}: {directory}"
    require_whole(model, compare(make(), disk), at)
    require_tied(model, disk, at)
    return model


def proved_value(path: str, key: str, new_head: bool = True) -> PreTrainedModel:
    """`proved`, of what `load_value_path` loads."""
    directory = directory_of(path, key)
    require_usable(directory, key)
    disk = headers(directory, key)
    make = functools.partial(
        _without_memory, AutoModelForSequenceClassification.from_config, directory, key, num_labels=1
    )
    model = make()
    _require_value(model, compare(make(), disk), f"{key}: {directory}", new_head)
    return model


def _without_memory(from_config: Any, directory: Path, key: str, **changes: Any) -> PreTrainedModel:
    try:
        return without_memory(from_config, AutoConfig.from_pretrained(directory, trust_remote_code=False, **changes))
    except Exception as e:  # of any kind: it is about what the file says
        raise ConfigError(f"{key}: {directory / 'config.json'}: {one_line(e)}") from e


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, or the model's own. Raises ConfigError naming the key."""
    key, path = ("model.tokenizer", cfg.tokenizer) if cfg.tokenizer else ("model.path", cfg.path)
    return load_tokenizer_path(path, key)


def load_tokenizer_path(path: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`. Raises ConfigError naming the config's `key`."""
    where = _source(path)
    if not _is_gguf(path):
        # The hub's own client says at once that it cannot be reached; transformers tries for a minute.
        directory = directory_of(path, key, weights=False)
        require_fetched(directory, key)
        if not has_vocabulary(directory):
            raise ConfigError(f"{key}: no tokenizer in {path}: it has no vocabulary, as tokenizer.json is")
        where = _source(str(directory))
    try:
        return AutoTokenizer.from_pretrained(**where)
    except Exception as e:  # what the tokenizers library raises for a broken file is nothing more special
        raise ConfigError(f"{key}: no tokenizer in {path}: {one_line(e)}") from e


def to_directory(cfg: ModelConfig, out: Path) -> Path | str:
    """`model.path` as something vLLM loads: itself, or, for a GGUF file, the directory `out`, made if it is not there.

    Weights are float32 as dequantized; config, generation config and tokenizer with its chat template come along.
    """
    if not _is_gguf(cfg.path):
        return cfg.path
    if out.is_dir():
        return out
    with locked(out.with_name(f".lock-{out.name}"), wait_seconds=_ANOTHER_MAKES_IT_SECONDS):
        if not out.is_dir():
            with written_aside(out) as aside:
                _read(cfg.path, torch.float32).save_pretrained(aside)
                load_tokenizer(cfg).save_pretrained(aside)
    return out


def _is_gguf(path: str) -> bool:
    return path.endswith(".gguf")


def _source(path: str) -> dict[str, Any]:
    """What `from_pretrained` calls a path. Where nothing is said of a model's own code, transformers asks the user."""
    if not _is_gguf(path):
        return {"pretrained_model_name_or_path": path, "trust_remote_code": False}
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"model.path: no file {path} (looked for {file.resolve()})")
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
