"""What lies beside a saved model's weights, and the proof, before a run starts, that it can be saved and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlcore.errors import ConfigError
from rlcore.models.checkpoint_files import Header, first_few, one_line
from rlcore.models.load import load_tokenizer_path
from rlcore.models.whole import compare, to_disk, without_memory

_DRY = ".dry_save"
_GENERATION = "generation_config.json"


def save_beside(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Write config, generation config and tokenizer beside the weights of `model`, for `from_pretrained`.

    Gives what could not be written, in words: only the config is needed to load the weights again, so only it raises.
    """
    written = json.loads(model.config.to_json_string(use_diff=False))
    written |= {"architectures": [type(model).__name__], "dtype": "float32", "use_cache": True}
    written.pop("quantization_config", None)  # of a GGUF file; these weights are not quantized
    (directory / "config.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    generation = model.generation_config if model.can_generate() else None
    failed = []
    try:
        if generation is not None:
            # Its own save_pretrained refuses what published models say, as a temperature without do_sample.
            generation.to_json_file(directory / _GENERATION, use_diff=True, keys_to_pop=["compile_config"])
    except Exception as e:  # whatever it is, the weights are there
        failed.append(f"{_GENERATION}: {one_line(e)}")
    try:
        tokenizer.save_pretrained(directory)
    except Exception as e:
        failed.append(f"the tokenizer: {one_line(e)}")
    return failed


def prove_saved(model: PreTrainedModel, source: Path, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> None:
    """Save `model`, which has no memory and came from `source`, into the run directory, all but its weights; load what
    that wrote, and compare. Raises ConfigError for what would not come back, or a directory that cannot be written."""
    out = run_dir / _DRY
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if model.can_generate() and (source / _GENERATION).is_file():
            model.generation_config = _generation(source)
        if failed := save_beside(out, model, tokenizer):
            raise ConfigError(f"model.path: {source} could not be saved after training: {failed[0]}")
        _prove_model(model, source, out)
        _prove_tokenizer(tokenizer, out)
    except OSError as e:
        raise ConfigError(f"run_dir: {run_dir} cannot be written: {one_line(e)}") from e
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _generation(directory: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"model.path: {directory / _GENERATION}: {one_line(e)}") from e


def _prove_model(model: PreTrainedModel, source: Path, out: Path) -> None:
    """The names and shapes that a save writes are those that the saved configuration asks for."""
    try:
        # The class itself: a scoring model's config is also its language model's.
        again = without_memory(type(model)._from_config, AutoConfig.from_pretrained(out, trust_remote_code=False))
        if model.can_generate():
            _generation(out)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"model.path: the configuration of {source}, saved, does not load: {one_line(e)}") from e
    disk = {name: Header(tuple(t.shape), "F32", out) for name, t in to_disk(model).items()}
    found = compare(again, disk)
    if any(found):
        wrong = found.missing | found.surplus | set(found.reshaped) | set(found.unreadable)
        raise ConfigError(f"model.path: {type(model).__name__} of {source}, saved, would not load: {first_few(wrong)}")


def _prove_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    again = load_tokenizer_path(str(out), "model.tokenizer")
    for what in ("get_vocab", "special_tokens_map", "chat_template"):
        before, after = (getattr(each, what) for each in (tokenizer, again))
        if (before() if callable(before) else before) != (after() if callable(after) else after):
            raise ConfigError(
                f"model.tokenizer: {tokenizer.name_or_path}, saved and loaded again, has another {what}; its files are "
                "not of the installed transformers' kind"
            )


def parameters_of(model: PreTrainedModel) -> int:
    """A tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def require_space(run_dir: Path, checkpoint: int, export: int, copies: int, why: str) -> None:
    """Raise ConfigError when the disk of `run_dir` cannot hold `copies` checkpoints at a time and an export, of so many
    bytes each. `why` says what they come from."""
    free, needed = shutil.disk_usage(run_dir).free, copies * checkpoint + export
    if free < needed:
        raise ConfigError(
            f"run_dir: {run_dir} has {_gib(free)} free, and the run needs {_gib(needed)}: {copies} checkpoints of "
            f"{_gib(checkpoint)} at a time ({why}) and an export of {_gib(export)}"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
