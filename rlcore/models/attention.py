"""Attention over rollouts laid end to end: each attends to itself, causally, and there is no (T, T) mask.

Registered with transformers as `rlcore_packed`, without a mask function, so transformers makes no mask. Where rollouts
begin travels as the keyword argument `segments`: gradient checkpointing recomputes layers in another thread, where a
context variable would not be set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rlcore.errors import ConfigError

NAME = "rlcore_packed"


class Segments(NamedTuple):
    """Where the rollouts of a flat batch lie. `cumulative` (B+1,) int32 is on the device, the rest on the host."""

    lengths: list[int]
    cumulative: Tensor
    longest: int

    @classmethod
    def of(cls, offsets: Tensor, device: torch.device) -> Segments:
        lengths = (offsets[1:] - offsets[:-1]).tolist()
        return cls(lengths, offsets.to(device=device, dtype=torch.int32), max(lengths))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D). Dropout is never applied: a log-probability
    must be the same in the engine, before and in the update.

    Raises ConfigError (key model.path) for architectures whose attention is more than softmax(q k) v.
    """
    if segments is None:
        raise ConfigError(f"model.path: {type(module).__name__} does not pass on where rollouts begin: not packable")
    extra = sorted(k for k in ("softcap", "s_aux", "position_bias") if kwargs.get(k) is not None)
    if extra or attention_mask is not None or not getattr(module, "is_causal", True):
        what = ", ".join(extra) or "an attention mask of its own"
        raise ConfigError(f"model.path: {type(module).__name__} uses {what}, which packed attention does not compute")
    window = sliding_window if sliding_window and sliding_window < segments.longest else None
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and query.shape[-1] == value.shape[-1] <= 256:
        return _varlen(query, key, value, scaling, window, segments), None
    return _per_segment(query, key, value, scaling, window, segments), None


def _varlen(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, segments: Segments) -> Tensor:
    """PyTorch's own variable-length flash attention: one kernel for all segments."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    cumulative, longest = segments.cumulative, segments.longest
    left = window - 1 if window else -1
    out = varlen_attn(
        q,
        k,
        v,
        cumulative,
        cumulative,
        longest,
        longest,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _per_segment(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, segments: Segments
) -> Tensor:
    """One call a segment. One `split` and one `cat` for all, so the backward copies every tensor once."""
    parts = []
    lengths = segments.lengths
    for qs, ks, vs in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        band = None
        if window and qs.shape[2] > window:
            position = torch.arange(qs.shape[2], device=q.device)
            behind = position[:, None] - position[None, :]
            band = (behind >= 0) & (behind < window)
        parts.append(
            scaled_dot_product_attention(
                qs, ks, vs, attn_mask=band, is_causal=band is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            ).transpose(1, 2)
        )
    return torch.cat(parts, dim=1)


AttentionInterface.register(NAME, packed_attention)
