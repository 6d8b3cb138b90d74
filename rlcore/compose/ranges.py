"""The values a number may have, one key at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlcore.config import Config, all_keys, value_of

LEAST_TEMPERATURE = 0.01

_AT_LEAST: dict[str, float] = {
    "steps": 1,
    "prompts_per_step": 1,
    "rollouts_per_prompt": 1,
    "save_every_steps": 0,
    "keep_checkpoints": 1,
    "data.max_prompt_tokens": 1,
    "rollout.engines": 1,
    "rollout.temperature": LEAST_TEMPERATURE,
    "rollout.tensor_parallel": 1,
    "rollout.top_k": 0,
    "rollout.min_response_tokens": 0,
    "rollout.max_response_tokens": 1,
    "rollout.max_sequences": 1,
    "reward.workers": 1,
    "reward.memory_mib": 256,
    "reward_model.ranks": 1,
    "reward.overlong_fraction": 0,
    "reward.overlong_penalty": 0,
    "reward.max_failed_fraction": 0,
    "advantage.epsilon": 0,
    "advantage.gamma": 0,
    "advantage.gae_lambda": 0,
    "loss.clip_low": 0,
    "loss.clip_high": 0,
    "loss.length_constant": 1,
    "loss.entropy_coef": 0,
    "correction.low": 0,
    "correction.high": 1,
    "kl.coef": 0,
    "kl.horizon": 1,
    "actor.ranks": 1,
    "actor.learning_rate": 0,
    "actor.warmup_steps": 0,
    "actor.weight_decay": 0,
    "actor.beta1": 0,
    "actor.beta2": 0,
    "actor.max_grad_norm": 0,
    "actor.epochs_per_step": 1,
    "actor.minibatches_per_step": 1,
    "actor.microbatch_tokens": 1,
    "actor.logits_chunk_tokens": 1,
    "reference.ranks": 1,
    "reference.refresh_steps": 0,
    "critic.ranks": 0,
    "critic.learning_rate": 0,
    "critic.clip": 0,
    "critic.warmup_steps": 0,
    "sync.bucket_mib": 1,
    "eval.every_steps": 0,
    "eval.prompts": 0,
    "eval.top_k": 0,
    "ray.object_store_mib": 80,
}
_ABOVE_ZERO = (
    "rollout.top_p",
    "eval.top_p",
    "rollout.kv_cache_gib",
    "rollout.device_memory_fraction",
    "reward.timeout_seconds",
    "loss.tau_positive",
    "loss.tau_negative",
    "loss.beta",
    "kl.target",
    "actor.adam_epsilon",
    "deadline.start_seconds",
    "deadline.rollout_seconds",
    "deadline.update_seconds",
    "deadline.publish_seconds",
)
_AT_MOST: dict[str, float] = {
    "rollout.top_p": 1,
    "eval.top_p": 1,
    "rollout.device_memory_fraction": 1,
    "reward.overlong_fraction": 1,
    "reward.max_failed_fraction": 1,
    "advantage.gamma": 1,
    "advantage.gae_lambda": 1,
    "loss.clip_low": 1,
    "correction.low": 1,
    "actor.zero_stage": 3,
}
_BELOW: dict[str, float] = {"actor.beta1": 1, "actor.beta2": 1}
_WHY = {
    "rollout.temperature": " (vLLM samples at that where less is asked; at 0 the samples of a prompt would all be one)",
}
_ZERO_OR: dict[str, tuple[str, str, Callable[[float], bool]]] = {
    "eval.temperature": (
        "greedy",
        f"at least {LEAST_TEMPERATURE} (vLLM samples at that where less is asked)",
        lambda x: x == 0 or x >= LEAST_TEMPERATURE,
    ),
    "rollout.dynamic_draws": ("no filter", "at least 1", lambda x: x == 0 or x >= 1),
    "loss.dual_clip": ("no limit", "above 1", lambda x: x == 0 or x > 1),
}


def out_of_range(cfg: Config) -> list[str]:
    """Of every number that is not finite or outside its range: the error in words."""
    numbers = {k: v for k in all_keys() if isinstance(v := value_of(cfg, k), (int, float))}
    lists = {k: v for k in all_keys() if isinstance(v := value_of(cfg, k), list)}
    broken = {k: v for k, v in numbers.items() if not math.isfinite(v)}
    broken |= {k: x for k, v in lists.items() for x in v if isinstance(x, float) and not math.isfinite(x)}
    if broken:
        return [f"{k} is {v}; it must be a finite number" for k, v in broken.items()]

    n = numbers  # a key that is None is not in it
    errors = [
        f"{k} is {n[k]}; it must be at least {m:g}{_WHY.get(k, '')}"
        for k, m in _AT_LEAST.items()
        if k in n and n[k] < m
    ]
    errors += [f"{k} is {n[k]}; it must be above 0" for k in _ABOVE_ZERO if k in n and n[k] <= 0]
    errors += [f"{k} is {n[k]}; it can be at most {m:g}" for k, m in _AT_MOST.items() if k in n and n[k] > m]
    errors += [f"{k} is {n[k]}; it must be below {m:g}" for k, m in _BELOW.items() if n[k] >= m]
    errors += [
        f"{k} is {n[k]}; it must be 0 ({off}) or {more}" for k, (off, more, ok) in _ZERO_OR.items() if not ok(n[k])
    ]
    if cfg.actor.zero_stage < 0:
        errors.append(f"actor.zero_stage is {cfg.actor.zero_stage}; it must be 0, 1, 2 or 3")
    return errors
