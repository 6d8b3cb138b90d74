"""A Hugging Face model from disk, as we run it, and its tokenizer: hub ids, local directories, GGUF files.

Nothing of a checkpoint is executed: no remote code, no pickle.
"""

from __future__ import annotations

from pathlib import Path

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
from rlcore.models.pack import SCORE, pack, pack_value
from rlcore.surroundings import offline_without_hub

_NOT_A_MODEL = (OSError, ValueError, KeyError, ImportError, RuntimeError)  # what transformers raises for a bad path
_ANOTHER_MAKES_IT_SECONDS = 3600.0


def model_dtype(cfg: ModelConfig, device: str) -> torch.dtype:
    """Of the forward pass, as torch names it; the rule is `config.compute_dtype`, which the engines go by too."""
    return getattr(torch, compute_dtype(cfg, device))


def load_path(path: str, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    """The language model at `path` (hub id, local directory or GGUF file) on the CPU, ready for `token_logp`.

    `weights=False` makes the same modules with memory that was never written, for ranks that get the weights from
    rank 0. Raises ConfigError (key model.path) when it cannot be loaded or its architecture cannot be packed.
    """
    return pack(_read(path, dtype, weights))


def _read(path: str, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    where = _source(path)
    try:
        if weights and not _is_gguf(path):
            return AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, use_safetensors=True)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**where), dtype=dtype)
            model.tie_weights()
        return _fill_from_gguf(model, path, dtype) if weights else model
    except _NOT_A_MODEL as e:
        raise ConfigError(f"model.path: cannot load {path}: {_first_line(e)}") from e


def _fill_from_gguf(model: PreTrainedModel, path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The dequantized tensors of a GGUF file. transformers' own `from_pretrained` would need accelerate for it."""
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model, torch_dtype=dtype)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = model.all_tied_weights_keys
    if lost := [n for n in missing if n not in tied]:
        raise ValueError(f"the file has no tensor for {lost[0]}" + (f", but {unexpected[0]}" if unexpected else ""))
    model.tie_weights()
    return model


def load_value_path(
    path: str, key: str, dtype: torch.dtype, weights: bool = True, new_head: bool = True
) -> PreTrainedModel:
    """The language model or reward model at `path` (hub id or local directory) on the CPU, ready for `token_value`.

    A reward model's head of one output is kept. A model without one gets a head of zeros, so that the first advantages
    are the plain returns; with `new_head` False it is refused. `weights` as in load_path. ConfigError names the `key`.
    """
    if not Path(path).exists():
        offline_without_hub()
    try:
        shape = AutoConfig.from_pretrained(path, num_labels=1)
        if not weights:
            with no_init_weights():
                return pack_value(AutoModelForSequenceClassification.from_config(shape, dtype=dtype), key)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, config=shape, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except _NOT_A_MODEL as e:
        what = "critic" if new_head else "reward model"
        raise ConfigError(f"{key}: cannot make a {what} of {path}: {_first_line(e)}") from e
    missing = set(found["missing_keys"])
    other_head = sorted(n for n in found["unexpected_keys"] if n.startswith((f"{SCORE}.", "v_head.", "value_head.")))
    if other_head or missing - {f"{SCORE}.weight"}:
        what = f"it has {other_head[0]}" if other_head else f"it has no {min(missing)}"
        raise ConfigError(f"{key}: {path} is neither a language model nor a reward model with one linear head: {what}")
    if missing and not new_head:
        raise ConfigError(
            f"{key}: {path} is a language model without a scoring head, so all its scores would be 0; give a sequence "
            "classification model of one label, as `rlcore train-rm` makes them"
        )
    packed = pack_value(model, key)
    if missing:
        torch.nn.init.zeros_(packed.get_submodule(SCORE).get_parameter("weight"))
    return packed


def require_same_tokens(path: str, cfg: ModelConfig) -> None:
    """Raise ConfigError (key critic.path) when the tokenizer at `path` gives a token of the policy's another number.

    A path without a tokenizer is taken to have the policy's.
    """
    try:
        theirs = AutoTokenizer.from_pretrained(path).get_vocab()
    except _NOT_A_MODEL:
        return
    wrong = [token for token, number in load_tokenizer(cfg).get_vocab().items() if theirs.get(token) != number]
    if wrong:
        raise ConfigError(
            f"critic.path: {path} has another tokenizer than the policy: {len(wrong)} tokens differ, {wrong[0]!r} first"
        )


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, or the model's own. Raises ConfigError naming the key."""
    key, path = ("model.tokenizer", cfg.tokenizer) if cfg.tokenizer else ("model.path", cfg.path)
    return load_tokenizer_path(path, key)


def load_tokenizer_path(path: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`. Raises ConfigError naming the config's `key`."""
    try:
        return AutoTokenizer.from_pretrained(**_source(path))
    except _NOT_A_MODEL as e:
        raise ConfigError(f"{key}: no tokenizer in {path}: {_first_line(e)}") from e


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


def _source(path: str) -> dict[str, str]:
    """What `from_pretrained` calls a path."""
    if not _is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"model.path: no file {path} (looked for {file.resolve()})")
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
