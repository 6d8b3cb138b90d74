"""Whether a checkpoint is the whole of the model that its config.json describes, and nothing else.

The model is built without memory, and the names, shapes and dtypes of the files go through transformers' own renaming
and conversion, so what is found is what loading will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.logging import disable_progress_bar

from rlcore.errors import ConfigError
from rlcore.models.checkpoint_files import Header, first_few
from rlcore.models.names import checkpoint_tensors

_FLOATS = {"F64", "F32", "F16", "BF16"}
_COMPARED_AT_ONCE = 1 << 24  # numbers of each of two matrices


class Found(NamedTuple):
    """How a checkpoint differs from its model, by tensor. `reshaped` and `unreadable` say in words."""

    missing: set[str]
    surplus: set[str]
    reshaped: list[str] = []
    unreadable: list[str] = []


def without_memory(from_config: Callable[..., PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model that `from_config`, of one of transformers' classes, makes of `config`, on the meta device."""
    with torch.device("meta"), no_init_weights():
        model = from_config(config, dtype=torch.float32)
        model.tie_weights()
    return model


def to_disk(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors a save of `model` writes, under the names and in the shapes they have on disk."""
    kept = model.state_dict()
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
    with torch.no_grad():
        return checkpoint_tensors(model, {name: tensor.detach() for name, tensor in named})


def compare(model: PreTrainedModel, disk: dict[str, Header]) -> Found:
    """How the tensors of a checkpoint differ from those of `model`, which has no memory and is spent here."""
    disable_progress_bar()
    renamings, converters, target = _renaming(model)
    of_converter, state = {name for name in disk if target(name)[1] is not None}, set(model.state_dict())
    unreadable = _unreadable(model, disk, target)
    settings = LoadStateDictConfig(
        device_map={"": "meta"}, dtype=torch.float32, weight_mapping=[*renamings, *converters]
    )
    empty = {name: torch.empty(header.shape, device="meta") for name, header in disk.items()}
    info, _ = convert_and_load_state_dict_in_model(model, empty, settings)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    written = {name for name in to_disk(model) if target(name)[1] is not None}
    missing, surplus = info.missing_keys, info.unexpected_keys
    if of_converter & written:  # experts: how many are fused is seen in a shape, which ones only here
        strange = {name for name in of_converter - written if target(name)[0] in state}
        missing, surplus = missing | (written - of_converter), surplus | strange
    reshaped = [f"{n} has shape {tuple(a)}, by config.json {tuple(b)}" for n, a, b in sorted(info.mismatched_keys)]
    return Found(missing, surplus, reshaped, unreadable + sorted(info.conversion_errors))


def _renaming(model: PreTrainedModel) -> tuple[list[Any], list[Any], Any]:
    """transformers' renamings and converters of a model, and name on disk -> (name in the model, converter or None)."""
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()

    def target(name: str) -> tuple[str, str | None]:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, converter = rename_source_key(name, [], [], prefix, state)
        return renamed, converter

    return renamings, converters, target


def _unreadable(model: PreTrainedModel, disk: dict[str, Header], target: Any) -> list[str]:
    """Tensors of which transformers would take another one, or make numbers of what are none."""
    state, first, wrong = model.state_dict(), dict[str, str](), list[str]()
    for name, header in disk.items():
        renamed, converter = target(name)
        if renamed in state and state[renamed].is_floating_point() and header.dtype not in _FLOATS:
            wrong.append(f"{name} holds {header.dtype}, not floating-point numbers of 16 bits or more (quantised?)")
        if converter is None and renamed in state and first.setdefault(renamed, name) != name:
            wrong.append(f"{name} and {first[renamed]} are the same tensor of the model")
    return wrong


def require_whole(model: PreTrainedModel, found: Found, at: str, optional: Iterable[str] = ()) -> None:
    """Raise ConfigError naming the tensors when a checkpoint is not `model`'s. `at`: the config's key and the path.

    `optional` may be missing. Surplus may be what the language model of the same config has, where `model` is not one,
    and layers that the config declares for predicting further tokens.
    """
    missing = found.missing - set(optional)
    surplus = {name for name in found.surplus if not _declared(name, model.config.get_text_config())}
    if surplus and not model.can_generate():
        surplus -= _language_model(model.config)
    reasons = []
    if missing:
        reasons.append(f"it has no {first_few(missing)}" + _tied_hint(model, missing))
    if surplus:
        reasons.append(f"it has {first_few(surplus)}, of which the model knows nothing")
    reasons += found.reshaped[:1] + found.unreadable[:1]
    if reasons:
        counts = f"{len(missing)} missing, {len(surplus)} too much"
        counts += f", {len(found.reshaped) + len(found.unreadable)} otherwise wrong"
        raise ConfigError(
            f"{at} does not hold the weights of its config.json ({type(model).__name__}): {'; '.join(reasons)} "
            f"(tensors: {counts}); nothing is made up or left out, so fetch it again or correct the one that is wrong"
        )


def _declared(name: str, config: PreTrainedConfig) -> bool:
    """Whether a tensor is of the layers that predict further tokens (MTP), which no trainer here runs."""
    more, layer = getattr(config, "num_nextn_predict_layers", None) or 0, re.search(r"\blayers\.(\d+)\.", name)
    return layer is not None and 0 <= int(layer[1]) - config.num_hidden_layers < more


def _language_model(config: PreTrainedConfig) -> set[str]:
    try:
        model = without_memory(AutoModelForCausalLM.from_config, config)
        return set(model.state_dict()) | set(to_disk(model))
    except (ValueError, KeyError):  # there is none of this architecture
        return set()


def _tied_hint(model: PreTrainedModel, missing: set[str]) -> str:
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return ""
    lost = head & {name.rpartition(".")[0] for name in missing}
    return " (config.json has tie_word_embeddings false; true makes the embedding the head)" if lost else ""


def require_tied(model: PreTrainedModel, disk: dict[str, Header], at: str) -> None:
    """Raise ConfigError when config.json ties two matrices and the checkpoint holds two different ones.

    transformers would train them apart, vLLM would sample with one: whoever made the model has to say which is meant.
    """
    target = _renaming(model)[2]
    on_disk = {target(name)[0]: name for name in disk}
    for tied, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if tied in on_disk and source in on_disk and not _equal(disk, on_disk[tied], on_disk[source]):
            refuse_two_heads(at, on_disk[tied], on_disk[source])


def require_still_tied(model: PreTrainedModel, at: str) -> None:
    """`require_tied`, of a model that was loaded."""
    for tied, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if tied not in model.all_tied_weights_keys:
            refuse_two_heads(at, tied, source)


def refuse_two_heads(at: str, tied: str, source: str) -> None:
    raise ConfigError(
        f"{at} has tie_word_embeddings true in config.json, but {tied} and {source} differ; set it to false there to "
        f"keep both, or remove {tied} from the weights"
    )


def _equal(disk: dict[str, Header], one: str, other: str) -> bool:
    """Whether two matrices hold the same numbers; read a few rows at a time."""
    from safetensors import safe_open

    a, b = disk[one], disk[other]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    with safe_open(a.file, framework="pt") as first, safe_open(b.file, framework="pt") as second:
        left, right = first.get_slice(one), second.get_slice(other)
        rows = max(1, _COMPARED_AT_ONCE // max(1, a.shape[-1]))
        return all(left[i : i + rows].equal(right[i : i + rows]) for i in range(0, a.shape[0], rows))


def require_finite(model: PreTrainedModel, at: str) -> None:
    """Raise ConfigError naming a tensor that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not _finite(tensor):
            bad = int((~tensor.isfinite()).sum())
            raise ConfigError(f"{at}: {name} holds {bad} numbers that are NaN or infinite, of {tensor.numel()}")


def _finite(tensor: Tensor) -> bool:
    """The sum is not finite when a term is not, and takes no memory."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
