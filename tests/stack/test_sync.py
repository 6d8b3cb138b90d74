"""publish(version) into real engines: they then hold what was sent, or say which parameter is wrong."""

import functools
import itertools
import os
import signal
from contextlib import contextmanager

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlcore.cluster.deadlines import Watch, Worker
from rlcore.config import RolloutConfig
from rlcore.errors import SyncError, WorkerError
from rlcore.models.names import checkpoint_tensors
from rlcore.weights import WeightInfo, manifest
from rlcore.workers.sender import Sender
from rollout.engine import Engine, EngineSpec, SampleRequest
from tests.benchmarks.architectures import make_model
from tests.close import assert_close
from tests.tiny import make_tiny_model

KINDS = ("tied", "untied")
# By their names in tests/benchmarks/architectures.py: what else vLLM packs, fuses or shares in ways of its own.
OTHER_KINDS = ("Gemma 3", "Phi-3, longrope", "Qwen3-MoE")


def untied_with_biases(directory):
    """What the tied Llama does not have: biases, a head of its own, and a vocabulary vLLM pads."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """{kind: (model, engine)}; nothing has been published yet."""
    path = tmp_path_factory.mktemp("models")
    directories = {"tied": make_tiny_model(path / "tied"), "untied": untied_with_biases(path / "untied")}
    directories |= {kind: make_model(kind, path / kind / "model") for kind in OTHER_KINDS}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20)
    cfg = RolloutConfig(max_response_tokens=16, max_sequences=32, kv_cache_gib=0.0625)
    options = {"num_cpus": 0.25, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    made = ray.remote(Engine).options(**options)
    engines = {k: made.remote(EngineSpec(str(d), "float32", "cpu", 128, (1,)), cfg) for k, d in directories.items()}
    try:
        ray.get([e.start.remote() for e in engines.values()], timeout=400)
        load = AutoModelForCausalLM.from_pretrained
        yield {k: (load(directories[k], dtype=torch.float32).requires_grad_(False), e) for k, e in engines.items()}
    finally:
        ray.shutdown()


def send(model, engine, version, bucket_bytes=1 << 20, change=lambda name, tensor: (name, tensor)):
    """Publish `model` as an actor rank would; `change` tampers with a parameter, or drops it by returning None."""
    named = [changed for n, p in model.named_parameters() if (changed := change(n, p.detach())) is not None]
    infos = [WeightInfo(n, tuple(p.shape), "float32") for n, p in named]

    @contextmanager
    def gather(indices):
        yield [named[i][1] for i in indices]

    convert = functools.partial(checkpoint_tensors, model)
    return Sender("shm", [engine], 0, 60.0, bucket_bytes).publish(infos, gather, version, convert)


def perturb(model, amount=0.05, seed=0):
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=noise) * amount)


def log_probabilities(model, engine):
    """The engine's of fresh samples, and the model's of the same."""
    asked = {(i, 0): SampleRequest((i, 0), [2, *range(5, 40 + i)], i, 1.0) for i in range(8)}
    ray.get(engine.submit.remote(list(asked.values())))
    found, want = [], []
    while batch := ray.get(engine.advance.remote(30.0), timeout=120):
        for sample in batch:
            prompt = asked[sample.key].tokens
            logits = model(torch.tensor([prompt + sample.tokens])).logits[0, len(prompt) - 1 : -1]
            want.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.tokens)[:, None])[:, 0])
            found.append(torch.tensor(sample.logp))
    assert len(found) == len(asked)
    return torch.cat(found), torch.cat(want)


def assert_same(model, engine, name="log-probabilities"):
    assert_close(*log_probabilities(model, engine), 250, name)  # 21: the weights have been made large


def difference(model, engine):
    found, want = log_probabilities(model, engine)
    return float((found - want).abs().max())


def refuses(engine, why):
    with pytest.raises(SyncError, match=why):
        ray.get(engine.submit.remote([SampleRequest((0, 0), [2, 3], 0, 1.0)]))


def test_an_engine_does_not_sample_before_its_first_publish(stack):
    for kind in KINDS:
        refuses(stack[kind][1], "no weights have been published")


@pytest.mark.parametrize(
    ("kind", "bucket_bytes"), [*itertools.product(KINDS, [1, 64 << 10, 1 << 20]), *((k, 64 << 10) for k in OTHER_KINDS)]
)
def test_after_every_publish_the_engine_is_the_trainer_and_before_it_is_not(stack, kind, bucket_bytes):
    model, engine = stack[kind]
    sent = send(model, engine, 1, bucket_bytes)
    assert sent == {"sync/bytes": 4.0 * sum(p.numel() for p in model.parameters())}
    assert_same(model, engine)
    for version in (2, 3):
        perturb(model, seed=version)
        assert difference(model, engine) > 1e-2, "a stale engine must be seen"
        send(model, engine, version, bucket_bytes)
        assert_same(model, engine)


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_parameter_is_enough(stack, kind):
    """Each kind of parameter by itself: the embedding and the head are where a packed copy could stay old."""
    model, engine = stack[kind]
    send(model, engine, 1)
    last = ("embed_tokens.weight", "lm_head.weight", "1.self_attn.v_proj.weight", "1.mlp.up_proj.weight", "k_proj.bias")
    for name in (n for n, _ in model.named_parameters() if n.endswith(last)):
        model.get_parameter(name).mul_(1.5)
        send(model, engine, 2)
        assert_same(model, engine, name)


def test_weights_sent_in_bfloat16_are_rounded_to_it(stack):
    model, engine = stack["tied"]
    named = list(model.named_parameters())
    infos = [WeightInfo(n, tuple(p.shape), "bfloat16") for n, p in named]

    @contextmanager
    def gather(indices):
        yield [named[i][1] for i in indices]

    Sender("shm", [engine], 0, 60.0).publish(infos, gather, 4)
    assert difference(model, engine) > 1e-3
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    assert_same(model, engine)


def without(part):
    return lambda name, tensor: None if part in name else (name, tensor)


BAD = {
    "missing third of a fused matrix": (without("1.self_attn.k_proj"), "model.layers.1.self_attn.k_proj.weight"),
    "missing embedding": (without("embed_tokens"), "model.embed_tokens.weight"),
    "missing norm": (without("model.norm"), "model.norm.weight"),
    "another name": (
        lambda n, t: (n.replace("0.mlp.gate_proj", "0.mlp.gat_proj"), t),
        "0.mlp.gat_proj",
    ),
    "another shape": (
        lambda n, t: (n, t[:, :-1]) if "0.mlp.down_proj" in n else (n, t),
        "0.mlp.down_proj",
    ),
    "another vocabulary": (lambda n, t: (n, t[:-1]) if "embed_tokens" in n else (n, t), "embed_tokens"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_the_engines_is_refused_by_name_and_the_next_publish_mends_it(stack, kind, what):
    model, engine = stack[kind]
    change, named = BAD[what]
    with pytest.raises(SyncError, match=named) as error:
        send(model, engine, 7, change=change)
    assert "rollout rank 0" in str(error.value)
    refuses(engine, "half done")
    send(model, engine, 8)
    assert_same(model, engine)


def test_a_head_of_its_own_must_come_too(stack):
    model, engine = stack["untied"]
    with pytest.raises(SyncError, match="lm_head.weight"):
        send(model, engine, 7, change=without("lm_head"))
    send(model, engine, 8)


def test_a_missing_expert_is_named(stack):
    model, engine = stack["Qwen3-MoE"]
    with pytest.raises(SyncError, match=r"1.mlp.experts"):
        send(model, engine, 7, change=without("1.mlp.experts.down_proj"))
    send(model, engine, 8)
    assert_same(model, engine)


def test_an_interrupted_publish_leaves_the_engine_refusing(stack):
    model, engine = stack["tied"]
    named = list(model.named_parameters())
    infos = [WeightInfo(n, tuple(p.shape), "float32") for n, p in named]
    ray.get(engine.begin_weights.remote(9, infos))
    refuses(engine, "half done")
    with pytest.raises(SyncError, match="never arrived.*model.embed_tokens.weight"):
        ray.get(engine.end_weights.remote())
    refuses(engine, "half done")
    send(model, engine, 10)
    assert_same(model, engine)


def test_what_comes_out_of_turn_is_refused(stack):
    model, engine = stack["tied"]
    with pytest.raises(SyncError, match="without begin_weights"):
        ray.get(engine.load_bucket.remote([0], None))
    with pytest.raises(SyncError, match="without begin_weights"):
        ray.get(engine.end_weights.remote())
    info = WeightInfo("model.norm.weight", (64,), "float32")
    with pytest.raises(SyncError, match="announced twice: model.norm.weight"):
        ray.get(engine.begin_weights.remote(1, [info, info]))
    send(model, engine, 11)
    ray.get(engine.submit.remote([SampleRequest((0, 0), [2, 3], 0, 1.0)]))
    with pytest.raises(SyncError, match="1 samples are unfinished"):
        send(model, engine, 12)
    ray.get(engine.abort.remote())


def test_the_manifest_is_of_what_was_sent(stack):
    model, engine = stack["tied"]
    infos = [WeightInfo(n, tuple(p.shape), "float32") for n, p in model.named_parameters()]
    ray.get(engine.begin_weights.remote(13, infos))
    arrays = [p.reshape(-1).view(torch.uint8).numpy() for p in model.parameters()]
    ray.get(engine.load_bucket.remote(list(range(len(infos))), arrays))
    assert ray.get(engine.end_weights.remote()) == manifest(13, infos)


def test_a_hundred_publishes_leak_neither_engine_memory_nor_shared_memory(stack):
    model, engine = stack["tied"]

    def memory():
        """Bytes of the engine's own memory: without what it sees of the object store."""
        with open(f"/proc/{ray.get(engine.__ray_call__.remote(lambda _: os.getpid()))}/status") as f:
            (line,) = (line for line in f if line.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    for version in range(10):
        send(model, engine, version)
    before = memory()
    size = 4 * sum(p.numel() for p in model.parameters())
    for version in range(100):
        send(model, engine, version)
    assert memory() - before < 10 * size
    free = ray.available_resources()["object_store_memory"]
    assert free > 150 << 20, "the buckets stay in the object store"


@ray.remote(num_cpus=0)
class Peer:
    """Publishes to another as an actor rank does to an engine, which leaves as a SIGKILL does."""

    def begin_weights(self, version, infos):
        os.kill(os.getpid(), signal.SIGKILL)

    def publish(self, other):
        Sender("shm", [other], 0, 60.0).publish([], None, 0)

    def fail(self):
        raise SyncError("model.norm.weight")


def test_who_died_is_named_and_not_who_noticed(stack):
    """The killed engine's caller may raise before the driver has looked: the race that a SIGKILL in publish is."""
    watch = Watch()
    watch.phase = "publish"
    actor, engine = Worker("actor", 0, Peer.remote()), Worker("rollout", 0, Peer.remote())
    watch.workers += [actor, engine]
    with pytest.raises(SyncError, match="actor rank 0, phase publish: model.norm.weight"):
        watch.get(actor.handle.fail.remote(), actor)
    with pytest.raises(WorkerError, match="^rollout rank 0 died during phase publish: .*; actor rank 0 then raised"):
        watch.get(actor.handle.publish.remote(engine.handle), actor)
    ray.kill(actor.handle)
