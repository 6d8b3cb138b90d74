"""The files of a model's directory, as far as they can be known without reading a weight: which ones there are, whether
they are whole, and the name, shape and dtype of every tensor. What rlcore cannot take is refused here by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlcore.errors import ConfigError

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.safetensors")  # what a run needs of a repository
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024
_CHARACTERS = 300  # of a library's message
_NAMED = 3  # tensors or files an error lists


class Header(NamedTuple):
    """What a safetensors file says of one tensor; `dtype` in its own words: "F32", "BF16", "I8"."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def first_few(names: Iterator[str] | list[str] | set[str]) -> str:
    """ "a, b, c and 4 more", in order."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def directory_of(path: str, key: str, weights: bool = True) -> Path:
    """The directory of a model: `path` itself, or where the hub's files of that id lie, fetched when they are not here.

    `weights` False: a tokenizer's is enough. Raises ConfigError naming the config's `key`.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    others = ["consolidated*", *(f"*/{pattern}" for pattern in _READ if pattern != "*.jinja")]
    others += [] if weights else ["*.safetensors"]
    try:
        return Path(snapshot_download(path, allow_patterns=list(_READ), ignore_patterns=others))
    except Exception as e:  # whatever the network, the hub, its client or the disk say
        raise ConfigError(f"{key}: no directory {path}, and the hub gives none: {one_line(e)}") from e


def read_json(file: Path, key: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ConfigError naming the file."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{key}: {file}: {one_line(e)}") from e
    if not isinstance(read, dict):
        raise ConfigError(f"{key}: {file} holds a {type(read).__name__}, not a mapping")
    return read


def require_usable(directory: Path, key: str) -> None:
    """Raise ConfigError naming what a model's directory is, where it is none that rlcore takes."""
    require_fetched(directory, key)
    if (directory / "adapter_config.json").is_file():
        base = read_json(directory / "adapter_config.json", key).get("base_model_name_or_path")
        raise ConfigError(
            f"{key}: {directory} is an adapter (LoRA) of {base}: merge it into its base first, with peft's "
            "merge_and_unload, and give the directory that makes"
        )
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{key}: {directory} has no config.json, so it is no model's directory")
    config = read_json(directory / "config.json", key)
    if reason := _not_taken(config):
        raise ConfigError(f"{key}: {directory} {reason}")
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as e:  # of any kind: it is about what the file says
        raise ConfigError(f"{key}: {directory / 'config.json'}: {one_line(e)}") from e


def _not_taken(config: dict[str, Any]) -> str | None:
    """Why a model of this config.json is not taken, by what it says of itself."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            return (
                f"needs its own code (auto_map in config.json, model_type {kind}), and rlcore runs no code of a model"
            )
        return f"has model_type {kind} in config.json, which the installed transformers does not know"
    if quantized := config.get("quantization_config") or config.get("compression_config"):
        how = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        return f"is quantised ({how}): weights in so few bits cannot be trained; give the unquantised model"
    if kind in IMAGE_TEXT or any(config.get(f"{sense}_config") for sense in ("vision", "audio")):
        return f"is a {kind} model, which reads more than text; rlcore trains text models only"
    if config.get("is_encoder_decoder"):
        return f"is a {kind} model of encoder and decoder; rlcore trains decoders only"
    if (named := config.get("transformers_weights")) not in (None, ONE_FILE, INDEX):
        return (
            f"takes its weights from {named} (transformers_weights in config.json); rlcore reads {ONE_FILE} or {INDEX}"
        )
    return None


def require_fetched(directory: Path, key: str) -> None:
    """Raise ConfigError naming a file that is a Git LFS pointer or empty: the real one was never fetched."""
    for file in sorted(p for pattern in _READ for p in directory.glob(pattern) if p.is_file()):
        size = file.stat().st_size
        if size == 0 and file.suffix in (".json", ".safetensors", ".model"):
            raise ConfigError(f"{key}: {file} is empty; fetch it again")
        if size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
            raise ConfigError(
                f"{key}: {file} is a Git LFS pointer of {size} bytes, not the file itself; run `git lfs pull` in "
                f"{directory}"
            )


def has_vocabulary(directory: Path) -> bool:
    """Whether a tokenizer's files are there. Without any, transformers makes an empty tokenizer for some models."""
    return any(path.is_file() for pattern in _VOCABULARIES for path in directory.glob(pattern))


def headers(directory: Path, key: str) -> dict[str, Header]:
    """Every tensor of the checkpoint in `directory`, by its name there. Raises ConfigError naming the file that is
    missing, cut, outside, or contradicts another one."""
    index = _index(directory, key)
    files = sorted(set(index.values())) if index is not None else [ONE_FILE]
    found: dict[str, Header] = {}
    for name in files:
        for tensor, header in _header(directory / name, key).items():
            if tensor in found:
                raise ConfigError(f"{key}: {tensor} is in {found[tensor].file} and in {header.file}; which one counts?")
            found[tensor] = header
    wrong = {t for t, name in (index or {}).items() if t not in found or found[t].file.name != name}
    if wrong:
        where = (index or {})[min(wrong)]
        raise ConfigError(f"{key}: {directory / INDEX} says {first_few(wrong)} in {where}, which does not have it")
    return found


def require_engine_reads(architectures: list[str] | None, trained: str, path: str, key: str) -> None:
    """Raise ConfigError when vLLM, which reads a model's directory by rules of its own, would make another model of it
    than `trained`, the class that learns."""
    if trained not in (architectures or ()):
        raise ConfigError(
            f"{key}: {path} has architectures {architectures} in config.json, and vLLM goes by it; what would be "
            f"trained is a {trained}: set architectures to [{trained}] there, if that is what the weights are"
        )
    directory = directory_of(path, key)
    others = [p.name for p in directory.glob("*.safetensors") if p.name != ONE_FILE]
    # Mistral's own form of the same weights, which vLLM takes in place of the others.
    others = [name for name in others if not name.startswith("consolidated")]
    if others and _index(directory, key) is None:  # with an index it reads what that names
        raise ConfigError(
            f"{key}: {directory} has {first_few(others)} beside {ONE_FILE}, which vLLM would load over it; move it "
            "elsewhere"
        )


def _index(directory: Path, key: str) -> dict[str, str] | None:
    """Tensor -> file, or None where the checkpoint is one file."""
    path, one = directory / INDEX, directory / ONE_FILE
    if not path.is_file():
        if not one.is_file():
            raise ConfigError(f"{key}: {_instead(directory)}")
        return None
    index = read_json(path, key).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ConfigError(f"{key}: {path} has no weight_map of tensors and their files")
    for name in sorted(set(index.values())):
        # Only the name counts: where a link of it leads is the user's own doing, as in the hub's cache.
        if Path(name).name != name:
            raise ConfigError(f"{key}: {path} names {name}, which is not in the model's directory itself")
        if not (directory / name).is_file():
            raise ConfigError(f"{key}: {path} names {name}, and there is no such file")
    if one.is_file() and ONE_FILE not in index.values():
        raise ConfigError(
            f"{key}: {directory} holds two checkpoints, {ONE_FILE} and the files of {INDEX}; move one of them elsewhere"
        )
    return index


def _instead(directory: Path) -> str:
    """What a directory without a checkpoint has instead."""
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} has its weights as {first_few(pickles)} only, and loading such a file can run code; convert "
            f"it to safetensors where you trust it (from_pretrained, then save_pretrained)"
        )
    others = [p.name for p in directory.glob("*.safetensors")]
    instead = f"; there are {first_few(others)}" if others else ""
    return f"{directory} has neither {ONE_FILE} nor {INDEX}{instead}; no other kind of weights is taken"


def _header(file: Path, key: str) -> dict[str, Header]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {name: Header(tuple(s.get_shape()), s.get_dtype(), file) for name, s in slices.items()}
    except Exception as e:  # safetensors raises its own error
        raise ConfigError(f"{key}: {file} is cut short or no safetensors file: {one_line(e)}; fetch it again") from e


def one_line(error: Exception) -> str:
    """What an error says, for the end of another one's line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _CHARACTERS else said[:_CHARACTERS] + " ..."
