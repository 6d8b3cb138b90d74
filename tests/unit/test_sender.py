"""What a publish sends, to engines that are not there; into real ones: tests/stack/test_sync.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from rlcore.errors import ConfigError, SyncError
from rlcore.weights import WeightInfo, manifest
from rlcore.workers.sender import Sender


@dataclass(eq=False)
class Ref:
    value: Any


class Engine:
    """Loads what comes; `wrong` is what it then says of itself that is not so."""

    def __init__(self, **wrong: Any) -> None:
        self.wrong, self.calls = wrong, list[str]()
        self.loaded: dict[int, Tensor] = {}

    def __getattr__(self, method: str) -> SimpleNamespace:
        def remote(*args: Any) -> Ref:
            self.calls.append(method)
            return Ref(getattr(self, f"on_{method}")(*args))

        return SimpleNamespace(remote=remote)

    def on_begin_weights(self, version: int, infos: list[WeightInfo]) -> None:
        self.version, self.infos = version, infos

    def on_load_bucket(self, indices: list[int], arrays: list[Any]) -> None:
        for i, array in zip(indices, arrays, strict=True):
            dtype = getattr(torch, self.infos[i].dtype)
            self.loaded[i] = torch.from_numpy(array.copy()).view(dtype).view(self.infos[i].shape)

    def on_end_weights(self) -> dict[str, Any]:
        return manifest(self.version, self.infos) | self.wrong


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda ref, timeout: ref.value)
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))


def publish(named: dict[str, Tensor], engines: list[Engine], dtype: str = "float32", **announced: Any) -> None:
    tensors = list(named.values())
    infos = [WeightInfo(n, announced.get("shape", tuple(t.shape)), dtype) for n, t in named.items()]

    @contextmanager
    def gather(indices: Sequence[int]) -> Iterator[list[Tensor]]:
        yield [tensors[i] for i in indices]

    Sender("shm", engines, rank=0, seconds=1, bucket_bytes=64).publish(infos, gather, 3)


def test_every_engine_gets_every_tensor_between_begin_and_end() -> None:
    named = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((8,), float(i)) for i in range(7)}
    engines = [Engine(), Engine()]
    publish(named, engines)
    for engine in engines:
        assert engine.calls == ["begin_weights", *["load_bucket"] * 4, "end_weights"]
        assert all(torch.equal(engine.loaded[i], t) for i, t in enumerate(named.values()))


def test_what_is_one_tensor_here_and_several_in_a_checkpoint_travels_as_several() -> None:
    named = {f"layers.{i}.experts.up": torch.arange(12.0).view(3, 2, 2) + 100 * i for i in range(4)}
    tensors = list(named.values())

    def split(some: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{n}.{i}": each for n, t in some.items() for i, each in enumerate(t.unbind(0))}

    @contextmanager
    def gather(indices: Sequence[int]) -> Iterator[list[Tensor]]:
        yield [tensors[i] for i in indices]

    engine, infos = Engine(), [WeightInfo(n, tuple(t.shape), "float32") for n, t in named.items()]
    Sender("shm", [engine], rank=0, seconds=1, bucket_bytes=100).publish(infos, gather, 3, split)  # type: ignore[list-item]
    assert [i.name for i in engine.infos][:4] == [
        *(f"layers.0.experts.up.{i}" for i in range(3)),
        "layers.1.experts.up.0",
    ]
    assert all(torch.equal(engine.loaded[i], t) for i, t in enumerate(split(named).values()))


@pytest.mark.parametrize("tensor", [torch.randn(()), torch.randn(3), torch.arange(6.0).view(2, 3).t()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_arrives_is_the_tensor_in_the_announced_dtype(tensor: Tensor, dtype: str) -> None:
    engine = Engine()
    publish({"a.w.weight": tensor}, [engine], dtype)
    assert torch.equal(engine.loaded[0], tensor.to(getattr(torch, dtype)))


def test_a_tensor_of_another_shape_than_announced_is_named() -> None:
    with pytest.raises(SyncError, match=r"model.norm.weight.*\(0,\).*\(8,\)"):
        publish({"model.norm.weight": torch.zeros(0)}, [Engine()], shape=(8,))


def test_an_engine_with_another_manifest_is_named() -> None:
    with pytest.raises(SyncError, match="rollout rank 1 does not hold .*version: sent 3, loaded 2"):
        publish({"a.w.weight": torch.zeros(1)}, [Engine(), Engine(version=2)])


def test_a_backend_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="sync.backend: carrier_pigeon"):
        Sender("carrier_pigeon", [], rank=0, seconds=1)
    with pytest.raises(ConfigError, match="nccl"):
        Sender("nccl", [], rank=0, seconds=1)
