"""What both ends of publish(version) compute: which parameters there are, their buckets, and what one publish was.

Weights go from the trainer to every engine in buckets, and are verified there. The sending half is workers/sender.py,
the receiving half, with vLLM, rollout/receiver.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Broadcast = Callable[["Tensor"], None]  # a tensor from rank 0 to the engines' GPUs


class WeightInfo(NamedTuple):
    """One parameter as it travels: its Hugging Face name, full shape, and the dtype the engine computes in."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", "bfloat16": a torch dtype's name

    @property
    def bytes(self) -> int:
        import torch

        size = getattr(torch, self.dtype).itemsize
        for n in self.shape:
            size *= n
        return size


def plan_buckets(infos: Sequence[WeightInfo], bucket_bytes: int) -> list[list[int]]:
    """Consecutive indices of `infos`, in buckets of at most `bucket_bytes`.

    Parameters of one block (`model.layers.3.self_attn`: what an engine fuses into one matrix) stay in one bucket, so
    the engine can finish a matrix before the next bucket comes; a block larger than a bucket is a bucket of its own.
    """
    buckets: list[list[int]] = []
    filled = 0
    for block in _blocks(infos):
        size = sum(infos[i].bytes for i in block)
        if not buckets or filled + size > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1] += block
        filled += size
    return buckets


def _blocks(infos: Sequence[WeightInfo]) -> list[list[int]]:
    blocks: list[list[int]] = []
    last = None
    for i, info in enumerate(infos):
        block = info.name.rsplit(".", 2)[0]  # model.layers.3.self_attn.q_proj.weight -> model.layers.3.self_attn
        if block != last:
            blocks.append([])
        blocks[-1].append(i)
        last = block
    return blocks


def manifest(version: int, infos: Sequence[WeightInfo]) -> dict[str, Any]:
    """What one publish was: both ends compute it, the sender of what it sent, the engine of what it loaded."""
    digest = hashlib.blake2b(digest_size=16)
    for info in sorted(infos):
        digest.update(f"{info.name} {tuple(info.shape)} {info.dtype}\n".encode())
    total = sum(i.bytes for i in infos)
    return {"version": version, "parameters": len(infos), "bytes": total, "digest": digest.hexdigest()}
