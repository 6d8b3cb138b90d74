"""What vLLM raises when it cannot run what it was given, in words a user can act on."""

from __future__ import annotations

import math
import re
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcore.config import RolloutConfig
    from rollout.engine import EngineSpec

_CACHE = re.compile(r"\(([\d.]+) GiB KV\s+cache is needed")
_LONGEST = 600  # letters of what vLLM says


def in_our_words(error: Exception, spec: EngineSpec, cfg: RolloutConfig, model_config: Any) -> str:
    """Why there is no engine, and the value that would fit where that is known. `model_config` is vLLM's, or None."""
    said = _said(error)
    if found := _CACHE.search(said):
        return _cache(float(found[1]), spec, cfg)
    if "Unsupported CPU attention configuration" in said and model_config is not None:
        return _heads(spec, model_config)
    overridden = f"; rollout.vllm_args sets {', '.join(cfg.vllm_args)}" if cfg.vllm_args else ""
    return f"vLLM cannot run {spec.model_path} as it was asked to: {said}{overridden}"


def _cache(gib: float, spec: EngineSpec, cfg: RolloutConfig) -> str:
    what = f"one sequence of {spec.max_model_tokens} tokens needs {gib:g} GiB of key-value cache"
    lower = "or lower rollout.max_response_tokens or data.max_prompt_tokens"
    if spec.device == "cpu":
        fits = math.ceil(gib * 1.1 * 100 + 1) / 100  # a block of it is never used
        return f"{what}, and rollout.kv_cache_gib is {cfg.kv_cache_gib:g}: set it to at least {fits:g}, {lower}"
    return (
        f"{what}, more than is left of rollout.device_memory_fraction {cfg.device_memory_fraction:g} beside the "
        f"weights: raise it, or rollout.tensor_parallel, {lower}"
    )


def _heads(spec: EngineSpec, model_config: Any) -> str:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = ", ".join(map(str, CPUAttentionBackend.get_supported_head_sizes()))
    return (
        f"model.path: the attention heads of {spec.model_path} are {model_config.get_head_size()} wide (head_dim), and "
        f"vLLM's attention on a CPU takes {sizes}: use a model with one of these, or a GPU"
    )


def _said(error: Exception) -> str:
    """The error's own text: without pydantic's frame, and of a bare assertion the line that failed."""
    details: Any = getattr(error, "errors", None)  # pydantic's ValidationError
    text = "; ".join(str(d.get("msg", "")) for d in details()) if details is not None else str(error)
    text = " ".join(text.removeprefix("Value error, ").split())
    if not text:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__} at {last.line}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
