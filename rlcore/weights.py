"""publish(version): the trainer's weights to every engine, in buckets, verified at the other end.

Every actor rank calls `Sender.publish` in step, because gathering a ZeRO-3 parameter is collective; only rank 0 talks
to the engines: `begin_weights`, `load_bucket` once a bucket, `end_weights`. What travels depends on the backend:

  shm   arrays in Ray's object store: shared memory on one machine, a copy between machines, gone with its last user
  ipc   CUDA IPC handles of tensors on the GPUs that trainer and engine share
  nccl  a broadcast from rank 0 to the engines' GPUs

The loads of one bucket run while the next is gathered; no more than two buckets exist at once. The receiving half,
with vLLM, is rollout/receiver.py.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlcore.errors import ConfigError, RlcoreError, SyncError, WorkerError

if TYPE_CHECKING:
    from torch import Tensor

Gather = Callable[[list[int]], AbstractContextManager[Sequence["Tensor"]]]
Broadcast = Callable[["Tensor"], None]
Join = Callable[[list[Any], float], Broadcast]

BACKENDS = ("shm", "ipc", "nccl")
_BUCKETS_AT_ONCE = 2


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


class Sender:
    """One actor rank's end of the way to the engines. Every rank has one and calls `publish` in step.

    `engines` are handles of `rollout.engine.Engine` actors, `seconds` the deadline of each call to them. `join`, for
    nccl only, opens the group of rank 0 and all engines: `rollout.receiver.join_nccl`.
    Raises ConfigError for an unknown backend, or for nccl without `join`.
    """

    def __init__(
        self, backend: str, engines: list[Any], rank: int, seconds: float, bucket_bytes: int = 64 << 20,
        join: Join | None = None,
    ) -> None:  # fmt: skip
        if backend not in BACKENDS:
            raise ConfigError(f"sync.backend: {backend} is unknown; use one of {', '.join(BACKENDS)}")
        if backend == "nccl" and join is None:
            raise ConfigError("sync.backend nccl needs a way to join the engines' group, and was given none")
        self.backend, self.engines, self.rank, self.seconds = backend, engines, rank, seconds
        self.bucket_bytes = bucket_bytes
        self._join = join
        self._broadcast: Broadcast | None = None
        self._staged: deque[list[Tensor]] = deque()  # ipc: what the engines may still be reading
        self._connected = False

    def publish(self, infos: Sequence[WeightInfo], gather: Gather, version: int) -> dict[str, float]:
        """Send every parameter of `infos` as `version`; returns {"sync/bytes": bytes of one copy of the model}.

        `gather(indices)` is a context manager giving the full tensors of those parameters, on every rank in step.
        Raises SyncError when what the engine loaded is not what was sent (the parameter is named), WorkerError when
        an engine fails, dies or misses the deadline (the engine is named). Both leave the engines refusing to sample.
        """
        sends = self.rank == 0
        if sends:
            self._connect()
            self._all("begin_weights", version, list(infos))
        loads: deque[list[ray.ObjectRef]] = deque()
        for bucket in plan_buckets(infos, self.bucket_bytes):
            with gather(bucket) as tensors:
                ready = [_as_announced(infos[i], t) for i, t in zip(bucket, tensors, strict=True)]
                while len(loads) >= _BUCKETS_AT_ONCE:
                    self._wait(loads.popleft(), "load_bucket")
                payload = self._payload(ready)
                if sends:
                    loads.append([e.load_bucket.remote(bucket, payload) for e in self.engines])
                    self._send(ready)
            del ready, payload
        while loads:
            self._wait(loads.popleft(), "load_bucket")
        if sends:
            self._demand_equal(manifest(version, infos), self._all("end_weights"))
        self._release()
        return {"sync/bytes": float(sum(i.bytes for i in infos))}

    def _connect(self) -> None:
        """Once: what the engines must know of the transport before the first bucket."""
        if self._connected:
            return
        if self.backend == "ipc":
            self._all("connect_weights", {"packed": False})
        if self._join is not None and self.backend == "nccl":
            self._broadcast = self._join(self.engines, self.seconds)
        self._connected = True

    def _payload(self, tensors: list[Tensor]) -> Any:
        """What `load_bucket` is called with. For ipc this is collective: each rank holds the handles of its own GPU."""
        if self.backend == "shm" and self.rank == 0:
            return ray.put([_bytes_of(t) for t in tensors])
        if self.backend == "ipc":
            return self._handles(tensors)
        return None

    def _handles(self, tensors: list[Tensor]) -> list[dict[str, Any]]:
        """{GPU: IPC handle} of each tensor, the GPUs of all ranks merged; the tensors behind them stay alive."""
        import torch
        from torch.multiprocessing.reductions import reduce_tensor

        staged = [t.clone() for t in tensors]  # the gathered memory is released before the engine has read it
        torch.cuda.synchronize()
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        handles: list[dict[str, Any]] = [{gpu: reduce_tensor(t)[1]} for t in staged]
        if _many_ranks():
            of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(of_ranks, handles)
            handles = [dict(pair for h in same for pair in h.items()) for same in zip(*of_ranks, strict=True)]
        # Rank 0 came here only after the engines had loaded the bucket before the last, so nobody reads that any more.
        while len(self._staged) >= _BUCKETS_AT_ONCE:
            self._staged.popleft()
        self._staged.append(staged)
        return handles

    def _send(self, tensors: list[Tensor]) -> None:
        if self._broadcast is not None:
            for tensor in tensors:
                self._broadcast(tensor)

    def _release(self) -> None:
        if self._staged and _many_ranks():
            import torch

            torch.distributed.barrier()  # rank 0 is here only when all engines have finished reading
        self._staged.clear()

    def _demand_equal(self, sent: dict[str, Any], loaded: list[dict[str, Any]]) -> None:
        for rank, got in enumerate(loaded):
            wrong = [f"{k}: sent {v}, loaded {got.get(k)}" for k, v in sent.items() if got.get(k) != v]
            if wrong:
                raise SyncError(f"rollout rank {rank} does not hold the weights sent to it: {'; '.join(wrong)}")

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._wait([getattr(e, method).remote(*args) for e in self.engines], method)

    def _wait(self, refs: list[ray.ObjectRef], what: str) -> list[Any]:
        """Results of one call on every engine; an error comes out naming the engine."""
        until = time.monotonic() + self.seconds
        results = []
        for rank, ref in enumerate(refs):
            where = f"rollout rank {rank}, {what}"
            try:
                results.append(ray.get(ref, timeout=max(0.0, until - time.monotonic())))
            except GetTimeoutError as e:
                raise WorkerError(f"{where}: no answer within {self.seconds:g} s") from e
            except RayTaskError as e:
                kind = type(e.cause) if isinstance(e.cause, RlcoreError) else WorkerError
                raise kind(f"{where}: {e.cause if kind is not WorkerError else e}") from e
            except RayActorError as e:
                raise WorkerError(f"{where}: the engine died: {e}") from e
            except RayError as e:
                raise WorkerError(f"{where}: {type(e).__name__}: {e}") from e
        return results


def _as_announced(info: WeightInfo, tensor: Tensor) -> Tensor:
    """The tensor, contiguous and in the announced dtype (the engine's); another shape is our own mistake or ZeRO's."""
    import torch

    if tuple(tensor.shape) != tuple(info.shape):
        raise SyncError(f"{info.name}: gathered with shape {tuple(tensor.shape)}, announced as {tuple(info.shape)}")
    return tensor.detach().to(getattr(torch, info.dtype)).contiguous()


def _bytes_of(tensor: Tensor) -> Any:
    """The tensor's memory as a numpy array of bytes: numpy has no bfloat16."""
    import torch

    return tensor.cpu().reshape(-1).view(torch.uint8).numpy()


def _many_ranks() -> bool:
    import torch

    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
