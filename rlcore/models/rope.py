"""Rotary embeddings, for the ways in which a forward of many rollouts could not be what each of them alone is."""

from __future__ import annotations

from typing import Any

from rlcore.errors import ConfigError

# Types whose angle at a position is the same whatever else is in the forward (transformers' modeling_rope_utils).
_BY_POSITION = {"default", "linear", "llama3", "yarn", "proportional"}
# Types that take other angles for everything as soon as one position passes a length: where the config says it.
_BY_LONGEST = {"longrope": "original_max_position_embeddings", "dynamic": "max_position_embeddings"}


def ropes(config: Any) -> list[dict[str, Any]]:
    """The rope parameters of a text model's config: one dict, or one for each kind of its layers."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in found.values() if isinstance(each, dict)]
    return nested or ([found] if found else [])


def longest_rollout(config: Any, key: str = "model.path") -> int | None:
    """Tokens of the longest rollout whose log-probabilities are the same alone and beside others, and in an engine of
    any context; None: no limit. Raises ConfigError (`key`) for a type of which that is not known."""
    limits = []
    for rope in ropes(config):
        kind = rope.get("rope_type", "default")
        if kind in _BY_LONGEST:
            limits.append(rope.get(_BY_LONGEST[kind]) or getattr(config, _BY_LONGEST[kind]))
        elif kind not in _BY_POSITION:
            raise ConfigError(f"{key}: rope_type {kind} is unknown here; known are {', '.join(_known())}")
    return min(limits, default=None)


def require_rollout(config: Any, tokens: int, key: str = "model.path") -> None:
    """Raise ConfigError when a rollout of so many tokens would change the log-probabilities of those beside it."""
    limit = longest_rollout(config, key)
    if limit is not None and tokens > limit:
        kinds = sorted({r["rope_type"] for r in ropes(config) if r.get("rope_type") in _BY_LONGEST})
        raise ConfigError(
            f"{key}: {config.model_type} with rope_type {', '.join(kinds)} takes other angles for all rollouts of a "
            f"batch when one has more than {limit} tokens, and this run allows {tokens}: set data.max_prompt_tokens "
            f"and rollout.max_response_tokens to at most {limit} together"
        )


def _known() -> list[str]:
    return sorted(_BY_POSITION | _BY_LONGEST.keys())
