"""A Hugging Face language model, and the log-probability or the value of every token of a flat batch under it.

`_before()`, which `token_logp()` and `token_value()` share, is the only place that shifts by one.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from rlcore.models import attention
from rlcore.models.heads import LogpHead, ValueHead
from rlcore.records import COLUMNS, Batch

_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
_SCORE = "score"  # transformers' name of the layer of one output in every decoder's sequence classification form
_NOT_A_MODEL = (OSError, ValueError, KeyError, ImportError, RuntimeError)  # what transformers raises for a bad path


def model_dtype(cfg: ModelConfig, device: str) -> torch.dtype:
    """Of the forward pass, as torch names it; the rule is `config.compute_dtype`, which the engines go by too."""
    return getattr(torch, compute_dtype(cfg, device))


def load_model(cfg: ModelConfig, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    """The model of `model.path` (hub id, local directory or GGUF file) on the CPU, ready for `token_logp`.

    `weights=False` makes the same modules with memory that was never written, for ranks that get the weights from
    rank 0. Nothing of the checkpoint is executed: no remote code, no pickle. Raises ConfigError naming model.path when
    it cannot be loaded or its architecture cannot be packed.
    """
    return load_path(cfg.path, dtype, weights)


def load_path(path: str, dtype: torch.dtype, weights: bool = True) -> PreTrainedModel:
    """`load_model` of another path than the config's: a checkpoint's."""
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
) -> PreTrainedModel:  # fmt: skip
    """The language model or reward model at `path` (hub id or local directory) on the CPU, ready for `token_value`.

    A reward model's head of one output is kept. A model without one gets a head of zeros: all first values are 0, so
    the first advantages are the plain returns, where a random head would put noise into them. With `new_head` False it
    is refused. `weights` as in load_model. Raises ConfigError naming the config's `key`.
    """
    try:
        shape = AutoConfig.from_pretrained(path, num_labels=1)
        if not weights:
            with no_init_weights():
                return _pack_value(AutoModelForSequenceClassification.from_config(shape, dtype=dtype), key)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, config=shape, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except _NOT_A_MODEL as e:
        what = "critic" if new_head else "reward model"
        raise ConfigError(f"{key}: cannot make a {what} of {path}: {_first_line(e)}") from e
    missing = set(found["missing_keys"])
    other_head = sorted(n for n in found["unexpected_keys"] if n.startswith((f"{_SCORE}.", "v_head.", "value_head.")))
    if other_head or missing - {f"{_SCORE}.weight"}:
        what = f"it has {other_head[0]}" if other_head else f"it has no {min(missing)}"
        raise ConfigError(f"{key}: {path} is neither a language model nor a reward model with one linear head: {what}")
    if missing and not new_head:
        raise ConfigError(
            f"{key}: {path} is a language model without a scoring head, so all its scores would be 0; give a sequence "
            "classification model of one label, as `rlcore train-rm` makes them"
        )
    packed = _pack_value(model, key)
    if missing:
        torch.nn.init.zeros_(packed.get_submodule(_SCORE).get_parameter("weight"))
    return packed


def demand_same_tokens(path: str, cfg: ModelConfig) -> None:
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
    model = _read(cfg.path, torch.float32)
    # Written aside and renamed, so that a killed process leaves no half a model that looks whole.
    aside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    model.save_pretrained(aside)
    load_tokenizer(cfg).save_pretrained(aside)
    aside.rename(out)
    return out


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Make `model`, in place, one that `token_logp` can run: packed attention, the chunked head, no dropout.

    Parameters keep their names. Raises ConfigError (key model.path) for architectures in which a token could see
    another rollout, or whose logits are not understood.
    """
    head = model.get_output_embeddings()
    _demand_packable(model, head, "model.path")
    assert isinstance(head, nn.Linear)
    model.set_output_embeddings(LogpHead(head, model.config.get_text_config()))
    return _pack_backbone(model)


def _pack_value(model: PreTrainedModel, key: str) -> PreTrainedModel:
    """`pack` for `token_value`."""
    head = getattr(model, _SCORE, None)
    _demand_packable(model, head, key)
    assert isinstance(head, nn.Linear)
    setattr(model, _SCORE, ValueHead(head))
    return _pack_backbone(model)


def _demand_packable(model: PreTrainedModel, head: Any, key: str) -> None:
    text = model.config.get_text_config()
    reason = None
    if not model._can_set_attn_implementation():
        reason = "has attention that cannot be replaced"
    elif unknown := sorted(set(getattr(text, "layer_types", None) or ()) - _PACKABLE_LAYERS):
        reason = f"has layers of type {', '.join(unknown)}"
    elif any(isinstance(m, nn.Conv1d) for m in model.base_model.modules()):
        reason = "mixes tokens by convolution"
    elif "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        reason = "does not take position_ids"
    elif not isinstance(head, nn.Linear):
        reason = f"has a {type(head).__name__} for output layer, not a linear one"
    if reason:
        raise ConfigError(f"{key}: {type(model).__name__} {reason}; rlcore trains softmax-attention decoders only")


def _pack_backbone(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation(attention.NAME)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _before(model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`(index (m,), hidden (m, d))`: the tokens that are masked and not the first of their rollout, and the backbone's
    last hidden state just before each of them: all that is known when the token is chosen."""
    device = tokens.device
    host_offsets = offsets.cpu()
    lengths = host_offsets[1:] - host_offsets[:-1]
    first = torch.repeat_interleave(host_offsets[:-1], lengths).to(device)
    position = torch.arange(len(tokens), device=device) - first
    segments = attention.Segments.of(host_offsets, device)
    hidden = model.base_model(
        input_ids=tokens.long()[None], position_ids=position[None], use_cache=False, segments=segments
    ).last_hidden_state[0]
    index = (mask & (position > 0)).nonzero()[:, 0]
    return index, hidden[index - 1]


def token_logp(
    model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor, temperature: float, chunk_tokens: int,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`(logp (n,), entropy (n,))`, float32, of rollouts laid end to end; 0 where `mask` is False and at first tokens.

    logp[i] = log p(token i | the tokens before it in its rollout) after dividing the logits by `temperature` (0 counts
    as 1); the entropy, in nats, is of that distribution over the vocabulary (zeros when not asked for). Both have a
    gradient. `model` has been through `pack()`. At most `chunk_tokens` rows of logits exist at once.
    """
    index, hidden = _before(model, tokens, offsets, mask)
    head: Any = model.get_output_embeddings()
    some_logp, some_entropy = head(hidden, tokens[index].long(), temperature or 1.0, chunk_tokens, entropy)
    zeros = torch.zeros(len(tokens), device=tokens.device)
    return zeros.index_put((index,), some_logp), zeros.index_put((index,), some_entropy)


def token_value(model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
    """(n,) float32: value[i] is the model's guess, made before token i is known, of the rewards from token i on; 0
    where `mask` is False and at first tokens. `model` comes from `load_value_path()`."""
    index, hidden = _before(model, tokens, offsets, mask)
    values = model.get_submodule(_SCORE)(hidden)
    return torch.zeros(len(tokens), device=tokens.device).index_put((index,), values)


class TokenLogp(nn.Module):
    """`token_logp` as a module, for DeepSpeed to wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, offsets: Tensor, mask: Tensor, temperature: float, chunk_tokens: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return token_logp(self.model, tokens, offsets, mask, temperature, chunk_tokens, entropy)


class TokenValue(nn.Module):
    """`token_value` as a module, for DeepSpeed to wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        return token_value(self.model, tokens, offsets, mask)


def microbatch(batch: Batch, rollouts: list[int], device: torch.device) -> Batch:
    """These rollouts, on the device. None of them: one token that nobody chose, so that a forward and a backward run
    and the collectives of the other ranks find this one; its loss is 0."""
    if rollouts:
        chosen = batch.select(rollouts)
    else:
        zero = torch.zeros(1)
        filled = {name: zero for name in COLUMNS if getattr(batch, name) is not None}
        chosen = Batch(
            tokens=zero.int(), offsets=torch.tensor([0, 1]), mask=zero.bool(), rollout_logp=zero, reward=zero,
            group=zero.long(), baseline=zero, **filled,
        )  # fmt: skip
    columns = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Batch)}
    return dataclasses.replace(chosen, **{k: v.to(device) for k, v in columns.items() if v is not None})


def batch_logp(
    module: Callable[..., tuple[Tensor, Tensor]], batch: Batch, microbatches: list[list[int]], temperature: float,
    chunk_tokens: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """(n,) float32 on the host: `token_logp` of a whole batch, one micro-batch after the other. `module` is a
    TokenLogp, or DeepSpeed's engine around one."""

    def logp(micro: Batch) -> Tensor:
        return module(micro.tokens, micro.offsets, micro.mask, temperature, chunk_tokens, False)[0]

    return _column(logp, batch, microbatches, device)


def batch_value(
    module: Callable[..., Tensor], batch: Batch, microbatches: list[list[int]], device: torch.device
) -> Tensor:  # fmt: skip
    """(n,) float32 on the host: `token_value` of a whole batch. `module` is a TokenValue, or DeepSpeed's engine."""
    return _column(lambda micro: module(micro.tokens, micro.offsets, micro.mask), batch, microbatches, device)


@torch.no_grad()
def _column(
    of: Callable[[Batch], Tensor], batch: Batch, microbatches: list[list[int]], device: torch.device
) -> Tensor:  # fmt: skip
    column = torch.zeros(len(batch.tokens))
    for rollouts in microbatches:
        some = of(microbatch(batch, rollouts, device))
        if rollouts:
            column[batch.tokens_of(rollouts)] = some.cpu()
    return column


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
