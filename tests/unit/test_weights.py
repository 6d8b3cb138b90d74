"""Buckets and manifests: the part of publish(version) that needs no engine."""

import pytest
import torch

from rlcore.errors import ConfigError, SyncError
from rlcore.weights import Sender, WeightInfo, _as_announced, _bytes_of, manifest, plan_buckets


def layer(i: int, width: int = 8) -> list[WeightInfo]:
    block = f"model.layers.{i}"
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    return [WeightInfo(f"{block}.{n}.weight", (width, width), "float32") for n in names]


def test_every_parameter_is_in_one_bucket_in_order_and_no_bucket_is_too_large():
    infos = [WeightInfo("model.embed_tokens.weight", (100, 8), "float32"), *layer(0), *layer(1), *layer(2)]
    size = 4 * 8 * 8
    buckets = plan_buckets(infos, 5 * size)
    assert [i for b in buckets for i in b] == list(range(len(infos)))
    assert [sum(infos[i].bytes for i in b) for b in buckets[1:]] == [5 * size] * 3
    assert buckets[0] == [0], "a parameter larger than a bucket travels alone"


def test_parameters_an_engine_fuses_are_not_torn_apart():
    infos = [*layer(0), *layer(1)]
    for bucket_bytes in range(1, 4 * 8 * 8 * 12, 97):
        for bucket in plan_buckets(infos, bucket_bytes):
            blocks = {infos[i].name.rsplit(".", 2)[0] for i in bucket}
            for block in blocks:
                whole = [i for i, info in enumerate(infos) if info.name.startswith(block + ".")]
                assert set(whole) <= set(bucket)


def test_small_models_are_one_bucket():
    infos = [*layer(0), *layer(1)]
    assert plan_buckets(infos, 1 << 20) == [list(range(len(infos)))]
    assert plan_buckets([], 1 << 20) == []


def test_bytes_follow_the_dtype():
    assert WeightInfo("a", (3, 5), "bfloat16").bytes == 30
    assert WeightInfo("a", (), "float32").bytes == 4


def test_a_manifest_changes_with_version_name_shape_and_dtype_but_not_with_order():
    one = manifest(3, layer(0))
    assert manifest(3, layer(0)[::-1]) == one
    first, *rest = layer(0)
    others = [
        manifest(4, layer(0)),
        manifest(3, rest),
        manifest(3, [first._replace(name="other"), *rest]),
        manifest(3, [first._replace(shape=(4, 16)), *rest]),
        manifest(3, [first._replace(dtype="bfloat16"), *rest]),
    ]
    assert all(m != one for m in others)


def test_a_tensor_of_another_shape_than_announced_is_named():
    info = WeightInfo("model.norm.weight", (8,), "float32")
    with pytest.raises(SyncError, match=r"model.norm.weight.*\(0,\).*\(8,\)"):
        _as_announced(info, torch.zeros(0))


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_bytes_hold_the_tensor_in_the_announced_dtype(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sent = _bytes_of(_as_announced(WeightInfo("w", shape, "bfloat16"), tensor))
    back = torch.from_numpy(sent.copy()).view(torch.bfloat16).view(shape)
    assert torch.equal(back, tensor.bfloat16())


def test_a_transposed_view_travels_as_what_it_shows():
    tensor = torch.arange(6.0).view(2, 3).t()
    sent = _bytes_of(_as_announced(WeightInfo("w", (3, 2), "float32"), tensor))
    assert torch.equal(torch.from_numpy(sent.copy()).view(torch.float32).view(3, 2), tensor)


def test_an_engine_with_another_manifest_is_named():
    sender = Sender("shm", [], rank=0, seconds=1)
    sent = manifest(3, layer(0))
    sender._demand_equal(sent, [dict(sent), dict(sent)])
    with pytest.raises(SyncError, match="rollout rank 1 .*version: sent 3, loaded 2"):
        sender._demand_equal(sent, [dict(sent), sent | {"version": 2}])


def test_a_backend_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="sync.backend: carrier_pigeon"):
        Sender("carrier_pigeon", [], rank=0, seconds=1)
    with pytest.raises(ConfigError, match="nccl"):
        Sender("nccl", [], rank=0, seconds=1)
