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
from torch.utils.checkpoint import checkpoint
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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D). Dropout is never applied: a log-probability
    must be the same in the engine, before and in the update.

    `softcap` limits scores (Gemma 2), `s_aux` (H,) are sinks, scores of no token (gpt-oss). Raises ConfigError (key
    model.path) for architectures whose attention is more than that.
    """
    if segments is None:
        raise ConfigError(f"model.path: {type(module).__name__} does not pass on where rollouts begin: not packable")
    if kwargs.get("position_bias") is not None or attention_mask is not None or not getattr(module, "is_causal", True):
        what = "position_bias" if kwargs.get("position_bias") is not None else "an attention mask of its own"
        raise ConfigError(f"model.path: {type(module).__name__} uses {what}, which packed attention does not compute")
    window = sliding_window if sliding_window and sliding_window < segments.longest else None
    if softcap is not None or s_aux is not None:
        return _with_scores(query, key, value, scaling, window, segments, softcap, s_aux), None
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
        band = _band(qs.shape[2], window, q.device) if window and qs.shape[2] > window else None
        parts.append(
            scaled_dot_product_attention(
                qs, ks, vs, attn_mask=band, is_causal=band is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            ).transpose(1, 2)
        )
    return torch.cat(parts, dim=1)


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length): whether the token of a row sees that of a column."""
    position = torch.arange(length, device=device)
    behind = position[:, None] - position[None, :]
    return (behind >= 0) & (behind < (window or length))


def _with_scores(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, segments: Segments,
    cap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """What no fused kernel computes: the scores of one segment in one layer exist at a time, in the backward too."""
    parts = []
    for qs, ks, vs in zip(*(x.split(segments.lengths, 2) for x in (q, k, v)), strict=True):
        band = _band(qs.shape[2], window, q.device)
        inputs = (qs, ks, vs, scale or q.shape[-1] ** -0.5, band, cap, sinks)
        parts.append(checkpoint(_of_scores, *inputs, use_reentrant=False) if q.requires_grad else _of_scores(*inputs))
    return torch.cat(parts, dim=1)


def _of_scores(
    q: Tensor, k: Tensor, v: Tensor, scale: float, band: Tensor, cap: float | None, sinks: Tensor | None
) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)).float() * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~band, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    share = scores.softmax(-1)[..., : k.shape[2]]
    return (share.to(v.dtype) @ v).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
