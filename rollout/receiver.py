"""The engine's end of publish(version): vLLM weight-transfer backends that load buckets and prove the model complete.

vLLM loads in place, between `start_weight_update` and `finish_weight_update`. What it does not do is done here: refuse
a parameter that the model does not have or that did not come, re-pack a tied head and experts. `rlcore_shm` is ours,
`rlcore_ipc` and `rlcore_nccl` are vLLM's own with that proof. The sending half: rlcore/workers/sender.py.
"""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlcore.errors import SyncError
from rlcore.weights import Broadcast, WeightInfo, manifest

_UNLOADED = {"e_score_correction_bias"}  # vLLM does not count what is loaded into these


class Incoming:
    """One publish as an engine sees it: what was announced, what has arrived."""

    def __init__(self, version: int, infos: Sequence[WeightInfo]) -> None:
        self.version = version
        self.infos = [WeightInfo(*i) for i in infos]
        self.arrived: set[int] = set()
        names = [i.name for i in self.infos]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise SyncError(f"version {version}: announced twice: {', '.join(twice)}")

    def update(self, indices: Sequence[int], payload: Any) -> dict[str, Any]:
        """The `update_info` of vLLM's `update_weights` for one bucket. Raises SyncError on a repeated parameter."""
        for i in indices:
            if i in self.arrived:
                raise SyncError(f"{self.infos[i].name}: arrived twice in version {self.version}")
        self.arrived.update(indices)
        infos = [self.infos[i] for i in indices]
        update: dict[str, Any] = {
            "names": [i.name for i in infos],
            "dtype_names": [i.dtype for i in infos],
            "shapes": [list(i.shape) for i in infos],
        }
        if payload is not None:
            update["arrays" if isinstance(payload[0], np.ndarray) else "ipc_handles"] = list(payload)
        return update

    def manifest(self) -> dict[str, Any]:
        """What arrived. Raises SyncError naming an announced parameter that did not."""
        missing = [info.name for i, info in enumerate(self.infos) if i not in self.arrived]
        if missing:
            raise SyncError(f"version {self.version}: announced, but never arrived: {_some(missing)}")
        return manifest(self.version, self.infos)


class Proven:
    """Mixed in before a vLLM WeightTransferEngine: its load becomes one that is known to be complete."""

    model: torch.nn.Module
    vllm_config: Any
    device: torch.device

    def start_weight_update(self) -> None:
        self.names: set[str] = set()
        self.elements = 0
        # vLLM fills a layer on the side, and copies it over its old self once all its parts are there: what an
        # interrupted publish left half filled goes.
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        if self.device.type == "cpu":
            _unpad_experts(self.model)
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        except (KeyError, ValueError, AssertionError, RuntimeError, IndexError) as e:
            raise SyncError(f"the engine's model does not take {self._blame(update_info)}: {e!r}") from e
        self.names.update(update_info.names)
        self.elements += sum(int(np.prod(s, dtype=np.int64)) for s in update_info.shapes)

    def finish_weight_update(self) -> None:
        heads = self._require_complete()
        super().finish_weight_update()  # type: ignore[misc]
        for head in heads:
            _repack(head)
        if self.device.type == "cpu":
            _repack_experts(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.device.type == "cpu":  # vLLM's own waits for an accelerator there is none of
            self.receive_weights(self.parse_update_info(update_info))  # type: ignore[attr-defined]
        else:
            super().update_weights(update_info)  # type: ignore[misc]

    def _blame(self, update_info: Any) -> str:
        return _some(update_info.names)

    def _require_complete(self) -> list[VocabParallelEmbedding]:
        """Raise SyncError naming what is missing or unknown; returns the heads that share the embedding's weight.

        vLLM counts the elements its loaders copy into each layer, which also sees a missing third of a fused qkv.
        """
        tied, expected = [], 0
        for path, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            parameters = _parameters(layer)
            want = _elements(layer, parameters)
            if isinstance(layer, ParallelLMHead) and info.can_load() and info.load_numel == 0 and self._ties():
                tied.append(layer)
                continue
            expected += want
            loaded = info.load_numel + self._uncounted(path, layer)
            if info.can_load() and loaded < want:
                missing = self._missing(path, parameters)
                raise SyncError(
                    f"the engine's model needs more than was sent: {path} got {loaded} of {want} elements; "
                    f"missing: {_some(missing)}"
                )
        parallel = self.vllm_config.parallel_config
        if parallel.tensor_parallel_size * parallel.pipeline_parallel_size == 1 and self.elements != expected:
            raise SyncError(
                f"{self.elements} elements were sent, but the engine's model has {expected}: some parameter is unknown "
                f"to it and was ignored"
            )
        return tied

    def _uncounted(self, path: str, layer: torch.nn.Module) -> int:
        """Elements of an output layer's bias that came: vLLM's models of transformers (Phi-1, Phi-2) load it past the
        counter, into a bias made anew."""
        bias = layer._parameters.get("bias")
        if not isinstance(layer, ParallelLMHead) or bias is None or f"{path}.bias" not in self.names:
            return 0
        counted = getattr(bias, "weight_loader").__name__ == "online_process_loader"  # noqa: B009 - vLLM's attribute
        return 0 if counted else layer.shard_indices.num_org_elements

    def _ties(self) -> bool:
        return bool(getattr(self.vllm_config.model_config.hf_text_config, "tie_word_embeddings", False))

    def _missing(self, path: str, parameters: dict[str, torch.Tensor]) -> list[str]:
        """Hugging Face names of this layer's parameters that did not come: qkv_proj is q_proj, k_proj and v_proj."""
        base, _, leaf = path.rpartition(".")
        parts = getattr(self.model, "packed_modules_mapping", {}).get(leaf, [leaf])
        names = [f"{base}.{part}.{p}".lstrip(".") for part in parts for p in parameters]
        return [n for n in names if n not in self.names] or names


def _parameters(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This layer's parameters as a checkpoint fills them. vLLM keeps their shapes, except of biases, which stay put."""
    biases = {n: p for n, p in layer._parameters.items() if n == "bias" and p is not None}
    return {n: p for n, p in (get_layerwise_info(layer).restore_metadata[0] | biases).items() if n not in _UNLOADED}


def _elements(layer: torch.nn.Module, parameters: dict[str, torch.Tensor]) -> int:
    """Elements a checkpoint holds of this layer on this device: its parameters, without the vocabulary's padding."""
    total = sum(p.numel() for p in parameters.values())
    if isinstance(layer, VocabParallelEmbedding):
        rows = layer.num_embeddings_per_partition
        total = total // rows * layer.shard_indices.num_org_elements
    return total


def _repack(head: VocabParallelEmbedding) -> None:
    """On CPU a head that shares the embedding's weight multiplies with a packed copy, which a reload leaves old."""
    head.quant_method.process_weights_after_loading(head)


def _experts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, Any]]:
    """Layers of experts, with the kernel that computes each."""
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            yield layer, kernel


def _repack_experts(model: torch.nn.Module) -> None:
    """On CPU experts multiply with weights packed at the first load, a step that vLLM leaves out on a reload."""
    for layer, kernel in _experts(model):
        kernel.fused_experts.process_weights_after_loading(layer)


def _unpad_experts(model: torch.nn.Module) -> None:
    """That step also pads experts of a width its kernel does not take; vLLM loads into the shape of a checkpoint."""
    for layer, _ in _experts(model):
        for name, meta in get_layerwise_info(layer).restore_metadata[0].items():
            held = layer._parameters.get(name)
            if held is not None and held.shape != meta.shape:
                held.data = torch.empty(meta.shape, dtype=held.dtype)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket: `arrays[i]` is the memory of parameter i as read-only bytes, a view into Ray's object store."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    arrays: list[np.ndarray]


class ShmTransfer(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Weights from shared memory. Nothing is copied before the layer's own copy; views keep the bucket alive."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        return None

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        self.model.load_weights(self._tensors(update_info))  # type: ignore[operator]

    def _tensors(self, bucket: ShmUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the views are read-only, and nobody writes to them
            raw = [torch.from_numpy(a) for a in bucket.arrays]
        for name, dtype, shape, memory in zip(bucket.names, bucket.dtype_names, bucket.shapes, raw, strict=True):
            self.loading = name
            yield name, memory.view(getattr(torch, dtype)).view(shape)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        return None


class ShmReceiver(Proven, ShmTransfer):
    loading = ""

    def _blame(self, update_info: Any) -> str:
        return self.loading or _some(update_info.names)


class IpcReceiver(Proven, IPCWeightTransferEngine):
    pass


class NcclReceiver(Proven, NCCLWeightTransferEngine):
    pass


_RECEIVERS = {"rlcore_shm": "ShmReceiver", "rlcore_ipc": "IpcReceiver", "rlcore_nccl": "NcclReceiver"}


def register() -> None:
    """Make the three backends known to vLLM, once a process. By name, so that vLLM's own workers import them too."""
    for name, cls in _RECEIVERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, __name__, cls)


def forget(worker: Any) -> None:
    """Run on each vLLM worker: an update that was begun and not finished no longer counts as under way."""
    getattr(worker, "worker", worker)._weight_update_active = False


class WorkerExtension:
    """vLLM imports this class's module in each of its worker processes, which is how they learn the backends."""


register()


def join_nccl(tensor_parallel: int, engines: list[Any], seconds: float) -> Broadcast:
    """Open the NCCL group of the calling trainer (rank 0) and every engine's GPUs; returns the sender's broadcast."""
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    until = time.monotonic() + seconds
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    group = {
        "master_address": ray.util.get_node_ip_address(),
        "master_port": port,
        "world_size": 1 + len(engines) * tensor_parallel,
    }
    joining = [
        e.connect_weights.remote(group | {"rank_offset": 1 + i * tensor_parallel, "packed": False})
        for i, e in enumerate(engines)
    ]
    communicator = trainer_init(group)  # both sides wait for each other here
    ray.get(joining, timeout=max(1.0, until - time.monotonic()))

    def broadcast(tensor: torch.Tensor) -> None:
        communicator.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
        torch.cuda.current_stream().synchronize()  # the gathered memory is released right after

    return broadcast
