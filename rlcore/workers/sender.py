"""publish(version): the trainer's weights to every engine, in buckets, verified at the other end.

Every actor rank calls `Sender.publish` in step, because gathering a ZeRO-3 parameter is collective; only rank 0 talks
to the engines. The loads of one bucket run while the next is gathered; no more than two buckets exist at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rlcore.cluster.deadlines import Calls, Worker
from rlcore.errors import ConfigError, SyncError
from rlcore.weights import Broadcast, WeightInfo, manifest, plan_buckets

Gather = Callable[[list[int]], AbstractContextManager[Sequence[Tensor]]]
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Join = Callable[[list[Any], float], Broadcast]

# What travels. shm: arrays in Ray's object store (shared memory on one machine, a copy between machines, gone with its
# last user). ipc: CUDA IPC handles of tensors on the GPUs that trainer and engine share. nccl: a broadcast from rank 0.
BACKENDS = ("shm", "ipc", "nccl")
_BUCKETS_AT_ONCE = 2


class Sender:
    """One actor rank's end of the way to the engines. Every rank has one and calls `publish` in step.

    `engines` are handles of `rollout.engine.Engine` actors, `seconds` the deadline of each call to them. `join`, for
    nccl only, opens the group of rank 0 and all engines: `rollout.receiver.join_nccl`.
    Raises ConfigError for an unknown backend, or for nccl without `join`.
    """

    def __init__(
        self,
        backend: str,
        engines: list[Any],
        rank: int,
        seconds: float,
        bucket_bytes: int = 64 << 20,
        join: Join | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"sync.backend: {backend} is unknown; use one of {', '.join(BACKENDS)}")
        if backend == "nccl" and join is None:
            raise ConfigError("sync.backend nccl needs a way to join the engines' group, and was given none")
        self.backend, self.rank, self.seconds, self.bucket_bytes = backend, rank, seconds, bucket_bytes
        self.engines = [Worker("rollout", i, engine) for i, engine in enumerate(engines)]
        self._join = join
        self._broadcast: Broadcast | None = None
        self._staged: deque[list[Tensor]] = deque()  # ipc: what the engines may still be reading
        self._connected = False

    def publish(
        self, infos: Sequence[WeightInfo], gather: Gather, version: int, convert: Convert = lambda tensors: tensors
    ) -> dict[str, float]:
        """Send every parameter of `infos` as `version`; returns {"sync/bytes": bytes of one copy of the model}.

        `gather(indices)` is a context manager giving the full tensors of those parameters, on every rank in step;
        `convert` gives some of them the names and shapes they travel by. Raises SyncError naming the parameter that
        the engine did not load as it was sent, WorkerError naming an engine that fails; then none of them samples.
        """
        sends = self.rank == 0
        sent = _converted(infos, convert)
        numbers = {info.name: i for i, info in enumerate(sent)}
        if sends:
            self._connect()
            self._all("begin_weights", version, sent)
        loads: deque[list[ray.ObjectRef]] = deque()
        for bucket in plan_buckets(infos, self.bucket_bytes):
            with gather(bucket) as tensors:
                named = convert({infos[i].name: t for i, t in zip(bucket, tensors, strict=True)})
                indices = [numbers[name] for name in named]
                ready = [_as_announced(sent[i], t) for i, t in zip(indices, named.values(), strict=True)]
                while len(loads) >= _BUCKETS_AT_ONCE:
                    self._wait(loads.popleft(), "load_bucket")
                payload = self._payload(ready)
                if sends:
                    loads.append([e.handle.load_bucket.remote(indices, payload) for e in self.engines])
                    self._send(ready)
            del named, ready, payload
        while loads:
            self._wait(loads.popleft(), "load_bucket")
        if sends:
            self._require_equal(manifest(version, sent), self._all("end_weights"))
        self._release()
        return {"sync/bytes": float(sum(i.bytes for i in sent))}

    def _connect(self) -> None:
        """Once: what the engines must know of the transport before the first bucket."""
        if self._connected:
            return
        if self.backend == "ipc":
            self._all("connect_weights", {"packed": False})
        if self._join is not None and self.backend == "nccl":
            self._broadcast = self._join([e.handle for e in self.engines], self.seconds)
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
            torch.distributed.barrier()  # rank 0 is here only when all engines have finished reading
        self._staged.clear()

    def _require_equal(self, sent: dict[str, Any], loaded: list[dict[str, Any]]) -> None:
        for engine, got in zip(self.engines, loaded, strict=True):
            wrong = [f"{k}: sent {v}, loaded {got.get(k)}" for k, v in sent.items() if got.get(k) != v]
            if wrong:
                raise SyncError(f"{engine} does not hold the weights sent to it: {'; '.join(wrong)}")

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._wait([getattr(e.handle, method).remote(*args) for e in self.engines], method)

    def _wait(self, refs: list[ray.ObjectRef], method: str) -> list[Any]:
        """Results of one call on every engine; an error comes out naming the engine and the method."""
        return Calls(method).gather(self.engines, refs, "publish", self.seconds)


def _converted(infos: Sequence[WeightInfo], convert: Convert) -> list[WeightInfo]:
    """What travels of these parameters: names and shapes, of tensors without memory."""
    dtypes = {info.dtype for info in infos}
    assert len(dtypes) <= 1, f"parameters of several dtypes: {dtypes}"
    with torch.device("meta"):
        named = convert({info.name: torch.empty(info.shape) for info in infos})
    return [WeightInfo(name, tuple(t.shape), dtypes.copy().pop()) for name, t in named.items()]


def _as_announced(info: WeightInfo, tensor: Tensor) -> Tensor:
    """The tensor, contiguous and in the announced dtype (the engine's); another shape is our own mistake or ZeRO's."""
    if tuple(tensor.shape) != tuple(info.shape):
        raise SyncError(f"{info.name}: gathered with shape {tuple(tensor.shape)}, announced as {tuple(info.shape)}")
    return tensor.detach().to(getattr(torch, info.dtype)).contiguous()


def _bytes_of(tensor: Tensor) -> Any:
    """The tensor's memory as a numpy array of bytes: numpy has no bfloat16."""
    return tensor.cpu().reshape(-1).view(torch.uint8).numpy()


def _many_ranks() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
