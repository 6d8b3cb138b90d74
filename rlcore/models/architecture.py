"""Whether an architecture can be trained and sampled, from its config alone: before weights are read or Ray starts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from rlcore.config import RolloutConfig
from rlcore.errors import ConfigError
from rlcore.models.load import load_path, load_value_path
from rlcore.models.rope import require_rollout, ropes

# Where vLLM looks for the length a model was made for, the smallest counts; and the rope types whose `factor` is
# already in it (its ModelConfig).
_CONTEXT = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


# Model types whose tensors vLLM copies past its own loaders, so that it cannot take them again, and which tensors.
_LOADED_ONCE = {"gpt_oss": "attention sinks and experts"}


def require_trainable(path: str, key: str, tokens: int, scores: bool = False, new_head: bool = True) -> None:
    """Raise ConfigError (`key`) unless the model at `path` can be packed, its longest rollout having `tokens` tokens.

    `scores`: for values, not log-probabilities; `new_head` as in load_value_path.
    """
    with torch.device("meta"):
        if scores:
            model = load_value_path(path, key, torch.bfloat16, weights=False, new_head=new_head)
        else:
            model = load_path(path, torch.bfloat16, weights=False)
    require_rollout(model.config.get_text_config(), tokens, key)


def require_sampled(path: str, prompt_tokens: int, cfg: RolloutConfig) -> None:
    """Raise ConfigError, with the value that would fit, when an engine would refuse the model for a number, its longest
    prompt having `prompt_tokens`: the context it was made for, or heads that cannot be shared out."""
    config = AutoConfig.from_pretrained(path).get_text_config()
    reason = None
    if tensors := _LOADED_ONCE.get(config.model_type):
        reason = f"vLLM does not take its {tensors} again once it has started, so no trained weights could be sampled"
    elif getattr(config, "kv_lora_rank", None):
        reason = (
            "of its latent attention (kv_lora_rank) vLLM and transformers give log-probabilities that differ, by a nat "
            "on a tiny model before any training"
        )
    if reason:
        raise ConfigError(
            f"model.path: {path} is a {config.model_type} model, and {reason}; `rlcore sft` and `rlcore dpo` without "
            "reward.fns train it"
        )
    response_tokens, tensor_parallel = cfg.max_response_tokens, cfg.tensor_parallel
    require_rollout(config, cfg.vllm_args.get("max_model_len") or 0)  # the engine chooses its angles by it
    limit = context_tokens(config)
    if limit is not None and prompt_tokens + response_tokens > limit:
        fits = {"rollout.max_response_tokens": limit - prompt_tokens, "data.max_prompt_tokens": limit - response_tokens}
        ways = [f"set {key} to at most {most}" for key, most in fits.items() if most > 0]
        raise ConfigError(
            f"model.path: {path} was made for {limit} tokens, and the longest prompt of this run has {prompt_tokens}, "
            f"rollout.max_response_tokens is {response_tokens}: {prompt_tokens + response_tokens} together; "
            + (", or ".join(ways) or f"lower both it and data.max_prompt_tokens below {limit}")
        )
    heads = getattr(config, "num_attention_heads", None)
    if heads and heads % tensor_parallel:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ConfigError(
            f"rollout.tensor_parallel is {tensor_parallel}, and the {heads} attention heads of {path} cannot be shared "
            f"out among so many; use one of {', '.join(map(str, fitting))}"
        )


def context_tokens(config: Any) -> int | None:
    """The most tokens of prompt and response that vLLM samples with a model of this text config; None: any number."""
    said = [n for n in (getattr(config, name, None) for name in _CONTEXT) if n is not None]
    if not said:
        return None
    most = getattr(config, "model_max_length", None) or min(said)
    factor = 1.0
    for rope in ropes(config):
        if rope.get("rope_type", "default") not in _SCALED:
            factor = rope.get("factor", factor)
    return int(most * (factor or 1.0)) if "gemma3" not in config.model_type else int(most)
