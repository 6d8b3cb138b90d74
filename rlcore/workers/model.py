"""A Hugging Face causal language model, and the log-probability of every token of a flat batch under it.

`token_logp()` is the only place that shifts by one.
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from rlcore.config import ModelConfig, compute_dtype
from rlcore.errors import ConfigError
from rlcore.records import COLUMNS, Batch
from rlcore.workers import attention
from rlcore.workers.head import LogpHead

_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
_NOT_A_MODEL = (OSError, ValueError, KeyError, ImportError)  # what transformers raises for a bad path or file


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


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, or the model's own. Raises ConfigError naming the key."""
    key, path = ("model.tokenizer", cfg.tokenizer) if cfg.tokenizer else ("model.path", cfg.path)
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
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
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
        raise ConfigError(f"model.path: {type(model).__name__} {reason}; rlcore trains softmax-attention decoders only")
    assert isinstance(head, nn.Linear)
    model.set_attn_implementation(attention.NAME)
    model.set_output_embeddings(LogpHead(head, text))
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def token_logp(
    model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor, temperature: float, chunk_tokens: int,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`(logp (n,), entropy (n,))`, float32, of rollouts laid end to end; 0 where `mask` is False and at first tokens.

    logp[i] = log p(token i | the tokens before it in its rollout) after dividing the logits by `temperature` (0 counts
    as 1); the entropy, in nats, is of that distribution over the vocabulary, without gradient (zeros when not asked
    for). `model` has been through `pack()`. At most `chunk_tokens` rows of logits exist at once.
    """
    device = tokens.device
    host_offsets = offsets.cpu()
    lengths = host_offsets[1:] - host_offsets[:-1]
    first = torch.repeat_interleave(host_offsets[:-1], lengths).to(device)
    position = torch.arange(len(tokens), device=device) - first
    segments = attention.Segments.of(host_offsets, device)
    hidden = model.base_model(
        input_ids=tokens.long()[None], position_ids=position[None], use_cache=False, segments=segments
    ).last_hidden_state[0]
    # The hidden state before token i predicts it.
    index = (mask & (position > 0)).nonzero()[:, 0]
    head: Any = model.get_output_embeddings()
    some_logp, some_entropy = head(hidden[index - 1], tokens[index].long(), temperature or 1.0, chunk_tokens, entropy)
    zeros = torch.zeros(len(tokens), device=device)
    return zeros.index_put((index,), some_logp), zeros.index_put((index,), some_entropy)


class TokenLogp(nn.Module):
    """`token_logp` as a module, for DeepSpeed to wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, offsets: Tensor, mask: Tensor, temperature: float, chunk_tokens: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return token_logp(self.model, tokens, offsets, mask, temperature, chunk_tokens, entropy)


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


@torch.no_grad()
def batch_logp(
    module: Callable[..., tuple[Tensor, Tensor]], batch: Batch, microbatches: list[list[int]], temperature: float,
    chunk_tokens: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """(n,) float32 on the host: `token_logp` of a whole batch, one micro-batch after the other. `module` is a
    TokenLogp, or DeepSpeed's engine around one."""
    logp = torch.zeros(len(batch.tokens))
    for rollouts in microbatches:
        micro = microbatch(batch, rollouts, device)
        some, _ = module(micro.tokens, micro.offsets, micro.mask, temperature, chunk_tokens, False)
        if rollouts:
            logp[batch.tokens_of(rollouts)] = some.cpu()
    return logp


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
