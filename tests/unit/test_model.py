"""token_logp on packed rollouts: equal to one rollout at a time through the untouched Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rlcore.config import Dtype, ModelConfig
from rlcore.errors import CheckpointError, ConfigError
from rlcore.models.heads import LogpHead
from rlcore.models.load import (
    load_path,
    load_tokenizer,
    load_value_path,
    model_dtype,
    to_directory,
)
from rlcore.models.logp import token_logp, token_value
from rlcore.models.pack import pack
from rlcore.records import Allowed, Kept
from rlcore.workers.shards import ShardWriter, read_shards
from tests.close import assert_all_close, assert_close
from tests.tiny import give_head, make_tiny_model

LENGTHS = [5, 1, 9, 7, 9, 30, 2]
SMALL: dict[str, Any] = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tied=request.param)


def rollouts(lengths: Sequence[int] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    g = torch.Generator().manual_seed(0)
    return torch.randint(4, 100, (n,), generator=g, dtype=torch.int32), offsets, torch.rand(n, generator=g) > 0.3


def one_by_one(
    model: PreTrainedModel, temperature: float, given: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What token_logp should give: each rollout alone, logits of all its tokens."""
    tokens, offsets, mask = given or rollouts()
    logp, entropy = [], []
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        log_p = (model(tokens[None, a:b].long(), use_cache=False).logits[0].float() / temperature).log_softmax(-1)
        shifted = log_p[:-1].gather(-1, tokens[a + 1 : b, None].long())[:, 0]
        ones = torch.cat([torch.zeros(1), shifted]), torch.cat([torch.zeros(1), -(log_p.exp() * log_p).sum(-1)[:-1]])
        logp.append(ones[0])
        entropy.append(ones[1])
    return torch.cat(logp) * mask, torch.cat(entropy) * mask


def gradients(model: PreTrainedModel, logp: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every token differently."""
    model.zero_grad()
    (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_packed_equals_one_by_one(directory: Path, chunk_tokens: int, checkpointing: bool) -> None:
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = load_path(str(directory), torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    logp, entropy = token_logp(model, *rollouts(), 0.7, chunk_tokens, entropy=True)
    want, want_entropy = one_by_one(plain, 0.7)
    assert_close(logp, want, 30, "log-probabilities")  # 1.5
    assert_close(entropy, want_entropy, 60, "entropies")  # 3.3
    found, expected = gradients(model, logp + 3 * entropy), gradients(plain, want + 3 * want_entropy)
    assert_all_close(found, expected, 120)  # 6.8


def test_no_token_sees_another_rollout(directory: Path) -> None:
    model = load_path(str(directory), torch.float32)
    tokens, offsets, _ = rollouts()
    everywhere = torch.ones(len(tokens), dtype=torch.bool)
    before, _ = token_logp(model, tokens, offsets, everywhere, 1.0, 64)
    others = tokens.clone()
    others[: offsets[3]] = 50
    others[offsets[4] :] = 60
    after, _ = token_logp(model, others, offsets, everywhere, 1.0, 64)
    mine = slice(int(offsets[3]), int(offsets[4]))
    assert after[mine].equal(before[mine])
    assert not after[: offsets[3]].equal(before[: offsets[3]])


def test_only_masked_tokens_pass_the_head_and_none_of_them_is_fine(directory: Path) -> None:
    model = load_path(str(directory), torch.float32)
    tokens, offsets, mask = rollouts()
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    token_logp(model, tokens, offsets, mask, 1.0, 64)
    first = torch.zeros_like(mask)
    first[offsets[:-1]] = True
    logp, _ = token_logp(model, tokens, offsets, torch.zeros_like(mask), 1.0, 64)
    assert rows == [int((mask & ~first).sum()), 0]
    logp.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_temperature_zero_counts_as_one(directory: Path) -> None:
    model = load_path(str(directory), torch.float32)
    assert token_logp(model, *rollouts(), 0.0, 64)[0].equal(token_logp(model, *rollouts(), 1.0, 64)[0])


@pytest.mark.parametrize("outputs", ["logp", "entropy", "both"])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
@pytest.mark.parametrize(
    ("family", "options", "bias"),
    [("llama", {}, False), ("cohere", {"logit_scale": 0.5}, True), ("gemma2", {"final_logit_softcapping": 3.0}, True)],
)
def test_the_head_equals_dense_logits_in_float64(
    family: str, options: dict[str, Any], bias: bool, chunk_tokens: int, outputs: str
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=bias)
    head = LogpHead(layer, AutoConfig.for_model(family, **(SMALL | options)))
    hidden, targets = 2 * torch.randn(40, 8), torch.randint(50, (40,))
    weigh_logp, weigh_entropy = torch.randn(40) * (outputs != "entropy"), torch.randn(40) * (outputs != "logp")

    inputs = [hidden.clone().requires_grad_(), *head.parameters()]
    logp, entropy = head(inputs[0], targets, 0.7, chunk_tokens, True)
    loss = {"logp": logp * weigh_logp, "entropy": entropy * weigh_entropy}
    found = torch.autograd.grad(loss.get(outputs, sum(loss.values())).sum(), inputs)

    dense = [x.detach().double().requires_grad_() for x in inputs]
    z = torch.nn.functional.linear(*dense) * options.get("logit_scale", 1.0)
    cap = options.get("final_logit_softcapping")
    log_p = ((cap * torch.tanh(z / cap) if cap else z) / 0.7).log_softmax(-1)
    want_logp, want_entropy = log_p[torch.arange(40), targets], -(log_p.exp() * log_p).sum(-1)
    want = torch.autograd.grad((want_logp * weigh_logp + want_entropy * weigh_entropy).sum(), dense)
    assert_close(logp, want_logp, 20, "log-probabilities")  # 0.9
    assert_close(entropy, want_entropy, 100, "entropies")  # 5.3
    for name, one, other in zip(("hidden", "weight", "bias"), found, want, strict=False):
        assert_close(one, other, 200, f"gradient in {name}")  # 11


@pytest.mark.parametrize("chunk_tokens", [1, 16, 512])
def test_bfloat16_gradients_of_the_head_are_rounded_once_whatever_the_chunks(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    head = LogpHead(torch.nn.Linear(64, 300).bfloat16(), AutoConfig.for_model("llama", **SMALL))
    hidden, targets, weigh = torch.randn(1024, 64).bfloat16(), torch.randint(300, (1024,)), torch.randn(1024)

    def gradients_in(chunk_tokens: int) -> list[Tensor]:
        logp, _ = head(hidden, targets, 1.0, chunk_tokens, False)
        return [g.double() for g in torch.autograd.grad((logp * weigh).sum(), list(head.parameters()))]

    dense = [p.detach().double().requires_grad_() for p in head.parameters()]
    log_p = torch.nn.functional.linear(hidden.double(), *dense).log_softmax(-1)
    want = torch.autograd.grad((log_p[torch.arange(1024), targets] * weigh).sum(), dense)
    for one, whole, exact in zip(gradients_in(chunk_tokens), gradients_in(1024), want, strict=True):
        assert float((one - exact).norm() / exact.norm()) < 0.004  # 0.0025; added up in bfloat16 0.02 in chunks of 1
        assert float((one - whole).norm() / whole.norm()) < 2e-4  # 3e-5, of sums that fall on the other side; 0.02


def sets(tokens: Tensor, vocabulary: int, seed: int = 0) -> Allowed:
    """For each token some others that could have been sampled: from none to all of the vocabulary."""
    g = torch.Generator().manual_seed(seed)
    each = []
    for i, token in enumerate(tokens.tolist()):
        others = torch.randperm(vocabulary, generator=g)[: (0, 3, vocabulary)[i % 3]]
        each.append(Kept.of([torch.cat([others[others != token], torch.tensor([token])]).tolist()]))
    return Allowed.of(each)


def banned(allowed: Allowed, vocabulary: int) -> Tensor:
    """(n, V): 0, and -inf where a token is not allowed."""
    row = torch.repeat_interleave(allowed.offsets.diff())
    return torch.full((len(allowed.offsets) - 1, vocabulary), -torch.inf).index_put(
        (row, allowed.ids.long()), torch.zeros(())
    )


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
@pytest.mark.parametrize("options", [{}, {"final_logit_softcapping": 3.0}], ids=["plain", "softcap"])
def test_the_head_over_the_allowed_tokens_equals_dense_logits_in_float64(
    options: dict[str, Any], chunk_tokens: int
) -> None:
    torch.manual_seed(0)
    head = LogpHead(torch.nn.Linear(8, 50), AutoConfig.for_model("gemma2", **(SMALL | options)))
    targets, weigh_logp, weigh_entropy = torch.randint(50, (40,)), torch.randn(40), torch.randn(40)
    inputs, allowed = [(2 * torch.randn(40, 8)).requires_grad_(), *head.parameters()], sets(targets, 50)
    logp, entropy = head(inputs[0], targets, 0.7, chunk_tokens, True, allowed)
    found = torch.autograd.grad((logp * weigh_logp + entropy * weigh_entropy).sum(), inputs)

    dense = [x.detach().double().requires_grad_() for x in inputs]
    z, cap = torch.nn.functional.linear(*dense), options.get("final_logit_softcapping", 30.0)
    log_p = (cap * torch.tanh(z / cap) / 0.7 + banned(allowed, 50)).log_softmax(-1)
    want_logp, want_entropy = log_p[torch.arange(40), targets], -(log_p.exp() * log_p.clamp(min=-1e9)).sum(-1)
    want = torch.autograd.grad((want_logp * weigh_logp + want_entropy * weigh_entropy).sum(), dense)
    assert not logp[0::3].any() and not entropy[0::3].any(), "where one token is allowed it is certain"
    assert_close(logp, want_logp, 20, "log-probabilities")  # 0.8
    assert_close(entropy, want_entropy, 50, "entropies")  # 2.4
    for name, one, other in zip(("hidden", "weight", "bias"), found, want, strict=True):
        assert_close(one, other, 40, f"gradient in {name}")  # 1.7


def test_allowed_tokens_go_with_their_token(directory: Path) -> None:
    """Packed equals one by one, each with its own set; the prompts' tokens and first ones have none."""
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = load_path(str(directory), torch.float32)
    tokens, offsets, mask = rollouts()
    some = sets(tokens, 128)
    counts = some.offsets.diff() * mask
    allowed = Allowed(
        some.ids[torch.repeat_interleave(mask, some.offsets.diff())],
        torch.cat([torch.zeros(1).long(), counts.cumsum(0)]),
    )
    with torch.no_grad():
        free, _ = token_logp(model, tokens, offsets, mask, 0.7, 16)
        logp, _ = token_logp(model, tokens, offsets, mask, 0.7, 16, allowed=allowed)
    want, forbidden = torch.zeros(len(tokens)), banned(some, 128)
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        z = plain(tokens[None, a:b].long(), use_cache=False).logits[0].float() / 0.7
        log_p = (z[:-1] + forbidden[a + 1 : b]).log_softmax(-1)
        want[a + 1 : b] = log_p.gather(-1, tokens[a + 1 : b, None].long())[:, 0].detach()
    assert_close(logp, want * mask, 20, "log-probabilities")  # 0.7
    assert float((logp - free).abs().max()) > 1.0


class Operations(TorchDispatchMode):
    """What is computed inside: a name and the most elements of a result, of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.seen.append((str(func), max(sizes, default=0)))
        return out


def test_the_logits_of_all_tokens_never_exist_at_once() -> None:
    """Neither what a chunk needs nor what autograd keeps has (n, V) elements, the entropy's gradient included."""
    torch.manual_seed(0)
    head = LogpHead(torch.nn.Linear(8, 5000, bias=False), AutoConfig.for_model("llama", **SMALL))
    kept: list[int] = []
    with (
        Operations() as operations,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        logp, entropy = head(torch.randn(640, 8, requires_grad=True), torch.randint(5000, (640,)), 1.0, 32, True)
        (logp + entropy).sum().backward()
    assert max(size for _, size in operations.seen) == 32 * 5000
    assert max(kept) == 5000 * 8 < 640 * 5000


def test_an_entropy_that_is_only_logged_costs_nothing_backwards() -> None:
    torch.manual_seed(0)
    head = LogpHead(torch.nn.Linear(8, 500, bias=False), AutoConfig.for_model("llama", **SMALL))

    def backward(asked: bool, used: float) -> list[tuple[str, int]]:
        logp, entropy = head(torch.randn(64, 8, requires_grad=True), torch.randint(500, (64,)), 1.0, 32, asked)
        loss = logp.sum() + used * entropy.sum() if used else logp.sum()
        with Operations() as operations:
            loss.backward()
        return [(name, size) for name, size in operations.seen if size >= 32 * 500]  # a chunk's logits

    assert backward(asked=True, used=0.0) == backward(asked=False, used=0.0)
    assert len(backward(asked=True, used=1.0)) > len(backward(asked=True, used=0.0))


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}), ("qwen3", {}), ("mistral", {"sliding_window": 8}), ("gemma", {}), ("olmo2", {}), ("phi3", {}),
    ("gemma3_text", {"sliding_window": 8, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    ("cohere", {"logit_scale": 0.5}), ("granite", {"logits_scaling": 3.0}), ("smollm3", {}), ("starcoder2", {}),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    ("gpt_neox", {"intermediate_size": 64}),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ("phi", {"num_key_value_heads": 4}), ("glm4", {}),
    ("gemma2", {"sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[f for f, _ in FAMILIES])
def test_families_of_models(family: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kept = {k: v for k, v in SMALL.items() if family != "gpt2" or "size" not in k or k == "vocab_size"}
    config = AutoConfig.for_model(family, **(kept | options))
    # Other attentions of transformers leave out the limits of scores (softcap).
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for p in model.parameters():  # some families start too small to tell right from wrong
        torch.nn.init.normal_(p, std=0.2)
    want, _ = one_by_one(model, 1.3)
    expected = gradients(model, want)
    logp, _ = token_logp(pack(model), *rollouts(), 1.3, 16)
    assert_close(logp, want, 30, "log-probabilities")  # 1.6
    assert_all_close(gradients(model, logp), expected, 120)
    assert float(want.detach().std()) > 0.3


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("mamba", {"state_size": 4}, "linear_attention|convolution"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("bloom", {"n_layer": 1, "n_head": 4}, "cannot be replaced|position_ids"),
    ],
)
def test_architectures_that_cannot_be_packed_are_refused(family: str, options: dict[str, Any], why: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | options)))
    with pytest.raises(ConfigError, match=f"model.path: .*({why})"):
        token_logp(pack(model), *rollouts(), 1.0, 16)


def test_empty_weights_have_the_names_shapes_and_buffers_of_the_real_ones(directory: Path) -> None:
    real = load_path(str(directory), torch.float32)
    empty = load_path(str(directory), torch.float32, weights=False)
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in empty.named_parameters()}
    buffers = dict(empty.named_buffers())
    assert buffers and all(b.equal(buffers[n]) for n, b in real.named_buffers())


def test_what_cannot_be_loaded_is_a_config_error(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(ConfigError, match="model.path: cannot load"):
        load_path(str(tmp_path), torch.float32)
    with pytest.raises(ConfigError, match="model.path: no file .*none.gguf"):
        load_path(str(tmp_path / "none.gguf"), torch.float32)
    with pytest.raises(ConfigError, match="model.tokenizer: no tokenizer"):
        load_tokenizer(ModelConfig(path=str(directory), tokenizer=str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle would be executed")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(ConfigError, match="model.path: cannot load"):
        load_path(str(tmp_path), torch.float32)


def test_a_directory_stays_where_it_is(directory: Path, tmp_path: Path) -> None:
    assert to_directory(ModelConfig(path=str(directory)), tmp_path / "out") == str(directory)
    assert not (tmp_path / "out").exists()


def test_experts_are_saved_under_the_names_of_hugging_face_checkpoints(tmp_path: Path) -> None:
    """transformers fuses experts into one tensor in memory; what is on disk has one each, and vLLM reads that."""
    from transformers.core_model_loading import revert_weight_conversion

    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **(SMALL | options)))
    model.config.save_pretrained(tmp_path)
    writer = ShardWriter(tmp_path, "model", lambda t: revert_weight_conversion(model, t), shard_bytes=10_000)
    for name, p in model.named_parameters():
        writer.add(name, p)
    writer.close()
    assert any(".experts.3." in name for name, _ in read_shards(tmp_path, "model"))
    again = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert all(p.equal(again[n]) for n, p in model.named_parameters())


def test_dtype_follows_the_device_unless_it_is_given() -> None:
    assert model_dtype(ModelConfig(), "cpu") is torch.float32
    assert model_dtype(ModelConfig(), "gpu") is torch.bfloat16
    assert model_dtype(ModelConfig(dtype=Dtype.float32), "gpu") is torch.float32


def test_shards_come_back_and_torn_ones_are_refused(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((5,), float(i)) for i in range(5)}
    writer = ShardWriter(tmp_path, "model", shard_bytes=45)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert all(t.equal(tensors[n]) for n, t in read_shards(tmp_path, "model"))
    torn = tmp_path / "model-00002-of-00003.safetensors"
    torn.write_bytes(torn.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="model-00002"):
        list(read_shards(tmp_path, "model"))
    with pytest.raises(CheckpointError, match="missing"):
        list(read_shards(tmp_path, "optimizer"))


# -- values


def values_one_by_one(model: PreTrainedModel) -> Tensor:
    """What token_value should give: each rollout alone, the scoring layer on the hidden state before each token."""
    tokens, offsets, mask = rollouts()
    values = []
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        hidden = model.base_model(tokens[None, a:b].long(), use_cache=False).last_hidden_state[0]
        values += [torch.zeros(1), model.get_submodule("score")(hidden)[:-1, 0]]
    return torch.cat(values) * mask


def reward_model(directory: Path, labels: int = 1) -> Path:
    return give_head(directory, directory.with_name(f"{directory.name}-reward-{labels}"), labels=labels)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_are_those_of_the_reward_model_on_one_rollout_at_a_time(directory: Path, checkpointing: bool) -> None:
    path = reward_model(directory)
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    model = load_value_path(str(path), "critic.path", torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    value, want = token_value(model, *rollouts()), values_one_by_one(plain)
    assert float(want.detach().std()) > 0.3
    assert_close(value, want, 60, "values")  # 3.2
    found, expected = gradients(model, value), gradients(plain, want)
    assert "score.weight" in found
    assert_all_close(found, expected, 100)  # 4.9


def test_a_language_model_gets_a_head_of_zeros_on_its_own_backbone(directory: Path) -> None:
    model = load_value_path(str(directory), "model.path", torch.float32)
    tokens, offsets, mask = rollouts()
    value = token_value(model, tokens, offsets, mask)
    assert not value.any()
    value.sum().backward()
    grad = model.get_submodule("score").get_parameter("weight").grad
    assert grad is not None and grad.any()
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    want = dict(plain.base_model.named_parameters())
    assert all(p.equal(want[n]) for n, p in model.base_model.named_parameters())
    empty = load_value_path(str(directory), "model.path", torch.float32, weights=False)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in empty.named_parameters()}


VALUE_FAMILIES = [f for f, _ in FAMILIES if f not in ("cohere", "granite")]


@pytest.mark.parametrize("family", VALUE_FAMILIES)
def test_families_of_value_models(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kept = {k: v for k, v in SMALL.items() if family != "gpt2" or "size" not in k or k == "vocab_size"}
    config = AutoConfig.for_model(family, **(kept | dict(FAMILIES)[family]), num_labels=1)
    plain = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    for p in plain.parameters():
        torch.nn.init.normal_(p, std=0.2)
    plain.save_pretrained(tmp_path)
    with torch.no_grad():
        want = values_one_by_one(plain)
        value = token_value(load_value_path(str(tmp_path), "critic.path", torch.float32).eval(), *rollouts())
    assert_close(value, want, 120, "values")  # 6.4
    assert float(want.std()) > 0.05


def test_bfloat16_values_are_computed_by_the_head_in_float32(directory: Path) -> None:
    value = token_value(load_value_path(str(reward_model(directory)), "critic.path", torch.bfloat16), *rollouts())
    assert value.dtype is torch.float32 and not value.equal(value.bfloat16().float())


def test_what_cannot_be_a_critic_is_a_config_error(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="critic.path: cannot make a critic of"):
        load_value_path(str(tmp_path), "critic.path", torch.float32)
    with pytest.raises(ConfigError, match="critic.path: cannot make a critic of .*"):
        load_value_path(str(reward_model(directory, labels=2)), "critic.path", torch.float32)
    AutoConfig.for_model("granite", **SMALL).save_pretrained(tmp_path)
    for weights in (True, False):
        with pytest.raises(ConfigError, match="model.path: cannot make a critic of"):
            load_value_path(str(tmp_path), "model.path", torch.float32, weights)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle would be executed")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(ConfigError, match="critic.path: cannot make a critic of"):
        load_value_path(str(tmp_path), "critic.path", torch.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"v_head.summary.weight": torch.zeros(1, 64)}, "it has v_head.summary.weight"),
     ({"model.norm.weight": None}, "it has no model.norm.weight"),
     ({"score.bias": torch.zeros(1)}, "it has score.bias")],
)  # fmt: skip
def test_a_head_or_a_layer_is_never_lost_in_silence(
    directory: Path, tmp_path: Path, change: dict[str, Tensor | None], why: str
) -> None:
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = load_file(directory / "model.safetensors") | change
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(ConfigError, match=f"critic.path: .*{why}"):
        load_value_path(str(tmp_path), "critic.path", torch.float32)
