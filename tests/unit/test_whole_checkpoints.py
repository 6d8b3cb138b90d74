"""A model's directory is whole and of its config, or refused: by the files' headers at start, and where it loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlcore.errors import ConfigError
from rlcore.models import load
from rlcore.models.checkpoint_files import Header, directory_of, require_engine_reads
from rlcore.models.load import load_path, load_value_path, proved, proved_value
from rlcore.models.whole import compare, to_disk, without_memory
from tests.tiny import give_head, make_tiny_model
from tests.unit.test_model import FAMILIES, SMALL

Tensors = dict[str, Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def changed(
    whole: Path, out: Path, change: Mapping[str, Tensor | None], config: Mapping[str, Any] | None = None
) -> Path:
    """A copy of a model with other tensors (None: without it) and other values in its config.json."""
    shutil.copytree(whole, out, dirs_exist_ok=True)
    tensors: dict[str, Any] = {**load_file(out / "model.safetensors"), **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, out / "model.safetensors", {"format": "pt"})
    said = json.loads((out / "config.json").read_text()) | (config or {})
    (out / "config.json").write_text(json.dumps(said))
    return out


def sharded(whole: Path, out: Path) -> tuple[Path, dict[str, str]]:
    """A copy in two files, and its weight_map."""
    model = AutoModelForCausalLM.from_pretrained(whole)
    shutil.copytree(whole, out)
    (out / "model.safetensors").unlink()
    model.save_pretrained(out, max_shard_size="200KB")
    return out, json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]


def write_index(at: Path, index: Mapping[str, str]) -> None:
    (at / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def refused_by_all(path: Path, why: str) -> None:
    """As policy and reference, at start and where rank 0 loads it, with the same tensor in the reason."""
    with pytest.raises(ConfigError, match=f"model.path: .*{why}"):
        proved(str(path), "model.path")
    with pytest.raises(ConfigError, match="model.path: "):
        load_path(str(path), torch.float32)


MLP = {f"model.layers.1.mlp.{name}_proj.weight": None for name in ("gate", "up", "down")}
SHAPED = torch.zeros(64, 100)


@pytest.mark.parametrize(
    ("change", "config", "why"),
    [
        (MLP, {}, r"it has no model\.layers\.1\.mlp\.down_proj\.weight, .*gate_proj.*up_proj.*3 missing, 0 too much"),
        ({EMBEDDING: None}, {}, f"it has no .*{EMBEDDING}"),
        ({"model.norm.weight": None, "model.final_norm.weight": torch.zeros(64)}, {},
         r"no model\.norm\.weight; it has model\.final_norm\.weight, of which"),
        ({"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}, {}, r"it has model\.layers\.2\.mlp\.up_proj\.weight"),
        ({"score.weight": torch.zeros(1, 64)}, {}, "it has score.weight"),
        ({"model.layers.1.mlp.up_proj.weight": SHAPED}, {},
         r"model\.layers\.1\.mlp\.up_proj\.weight has shape \(64, 100\), by config.json \(128, 64\)"),
        ({}, {"vocab_size": 130}, r"has shape \(128, 64\), by config.json \(130, 64\)"),
        ({}, {"num_hidden_layers": 3}, r"it has no model\.layers\.2\..* and 6 more"),
        ({}, {"tie_word_embeddings": False}, f"it has no {HEAD} .*tie_word_embeddings false"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, {}, "model.norm.weight holds I8"),
        ({"norm.weight": torch.zeros(64)}, {}, "norm.weight and .*norm.weight are the same"),
    ],
)  # fmt: skip
def test_a_policy_is_what_its_config_says(
    whole: Path, tmp_path: Path, change: Mapping[str, Tensor | None], config: dict[str, Any], why: str
) -> None:
    path = changed(whole, tmp_path / "changed", change, config)
    with pytest.raises(ConfigError, match=f"model.path: .*{why}"):
        proved(str(path), "model.path")


def test_rank_0_refuses_too_what_it_would_fill_with_random_numbers(whole: Path, tmp_path: Path) -> None:
    refused_by_all(changed(whole, tmp_path / "lacks", MLP), "it has no")
    refused_by_all(changed(whole, tmp_path / "more", {"model.more": torch.zeros(1)}), "it has model.more")
    refused_by_all(changed(whole, tmp_path / "shape", {"model.norm.weight": torch.zeros(5)}), "has shape")


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}, {}),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(1), "model.layers.2.eh_proj.weight": torch.ones(1)},
         {"num_nextn_predict_layers": 1}),
    ],
)  # fmt: skip
def test_what_published_checkpoints_hold_besides_is_left_out(
    whole: Path, tmp_path: Path, change: Mapping[str, Tensor], config: dict[str, Any]
) -> None:
    path = str(changed(whole, tmp_path / "changed", change, config))
    proved(path, "model.path")
    proved_value(path, "critic.path")
    load_path(path, torch.float32)
    load_value_path(path, "critic.path", torch.float32)


# -- tied or untied


def test_a_tied_head_that_the_file_holds_too_stays_tied_on_every_rank(whole: Path, tmp_path: Path) -> None:
    embedding = load_file(whole / "model.safetensors")[EMBEDDING]
    path = str(changed(whole, tmp_path / "both", {HEAD: embedding.clone()}))
    proved(path, "model.path")
    for model in (load_path(path, torch.float32), load_path(path, torch.float32, weights=False)):
        assert model.config.tie_word_embeddings and HEAD not in dict(model.named_parameters())


def test_two_different_heads_of_a_tied_config_are_refused_and_right_once_it_says_untied(
    whole: Path, tmp_path: Path
) -> None:
    path = changed(whole, tmp_path / "both", {HEAD: torch.ones(128, 64)})
    refused_by_all(path, f"tie_word_embeddings true in config.json, but {HEAD} and {EMBEDDING} differ")
    path = changed(path, tmp_path / "untied", {}, {"tie_word_embeddings": False})
    proved(str(path), "model.path")
    real, empty = load_path(str(path), torch.float32), load_path(str(path), torch.float32, weights=False)
    assert [n for n, _ in real.named_parameters()] == [n for n, _ in empty.named_parameters()]
    assert dict(real.named_parameters())[HEAD].eq(1).all() and not real.config.tie_word_embeddings


def test_a_tied_pair_of_which_the_file_holds_only_the_head_is_that_pair(whole: Path, tmp_path: Path) -> None:
    embedding = load_file(whole / "model.safetensors")[EMBEDDING]
    path = str(changed(whole, tmp_path / "head", {HEAD: embedding.clone(), EMBEDDING: None}))
    proved(path, "model.path")
    assert dict(load_path(path, torch.float32).named_parameters())[EMBEDDING].equal(embedding)


# -- critics and reward models


def test_a_critic_and_a_reward_model_are_whole_or_refused(whole: Path, tmp_path: Path) -> None:
    scoring = give_head(whole, tmp_path / "scoring")
    for path in (whole, scoring):
        proved_value(str(path), "critic.path")
    proved_value(str(scoring), "reward_model.path", new_head=False)
    with pytest.raises(ConfigError, match="reward_model.path: .* language model without a scoring head"):
        proved_value(str(whole), "reward_model.path", new_head=False)
    for change, why in [
        (MLP, "it has no model.layers.1.mlp.down_proj.weight"),
        ({"score.weight": torch.zeros(2, 64)}, r"by several labels, .* one: score.weight has shape \(2, 64\)"),
        ({"v_head.summary.weight": torch.zeros(1, 64)}, "it has v_head.summary.weight"),
    ]:
        path = changed(scoring, tmp_path / "broken", change)
        with pytest.raises(ConfigError, match=f"reward_model.path: .*{why}"):
            proved_value(str(path), "reward_model.path", new_head=False)
        with pytest.raises(ConfigError, match="critic.path: "):
            load_value_path(str(path), "critic.path", torch.float32)


def test_a_critic_may_be_made_of_a_language_model_with_a_head_of_its_own(tmp_path: Path) -> None:
    untied = make_tiny_model(tmp_path / "untied", tied=False)
    proved_value(str(untied), "critic.path")
    load_value_path(str(untied), "critic.path", torch.float32)
    with pytest.raises(ConfigError, match="without a scoring head"):
        proved_value(str(untied), "reward_model.path", new_head=False)


# -- architectures: what transformers renames and fuses is no difference


@pytest.mark.parametrize("family", [family for family, _ in FAMILIES])
def test_what_a_family_saves_is_whole(family: str, tmp_path: Path) -> None:
    model = small(family)
    model.save_pretrained(tmp_path)
    assert type(proved(str(tmp_path), "model.path")) is type(model)
    if family not in ("cohere", "granite"):
        proved_value(str(tmp_path), "critic.path")
    tensors: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in sorted(tensors) if "norm" in name or "ln_" in name)
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"it has no {lost}"):
        proved(str(tmp_path), "model.path")


def small(family: str) -> PreTrainedModel:
    options = dict(FAMILIES)[family]
    kept = {k: v for k, v in SMALL.items() if family != "gpt2" or "size" not in k or k == "vocab_size"}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(kept | options)))


@pytest.mark.parametrize("lost", ["gate_proj", "down_proj"])
def test_of_fused_experts_the_one_that_is_missing_is_named(tmp_path: Path, lost: str) -> None:
    small("qwen3_moe").save_pretrained(tmp_path)
    named = "model.layers.1.mlp.experts.{}." + lost + ".weight"
    tensors = load_file(tmp_path / "model.safetensors")
    taken = tensors.pop(named.format(2))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    refused_by_all(tmp_path, f"it has no {named.format(2)}")
    # As many as there should be, so the fused tensor has its shape, of other experts.
    save_file(tensors | {named.format(4): taken}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"no {named.format(2)}; it has {named.format(4)}"):
        proved(str(tmp_path), "model.path")


def test_experts_of_a_layer_that_is_declared_to_be_ignored_are(tmp_path: Path) -> None:
    """DeepSeek-V3's 62nd layer predicts one token more; transformers knows it by its number."""
    options: dict[str, Any] = dict(
        n_routed_experts=4, moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, n_group=2, topk_group=1, first_k_dense_replace=1,
    )  # fmt: skip
    config = AutoConfig.for_model("deepseek_v3", **(SMALL | options))
    model = without_memory(AutoModelForCausalLM.from_config, config)
    disk = {name: Header(tuple(t.shape), "BF16", tmp_path) for name, t in to_disk(model).items()}
    more = {name.replace("layers.1.", "layers.61."): header for name, header in disk.items() if "layers.1." in name}
    assert any(".experts.3." in name for name in more)
    assert not any(compare(without_memory(AutoModelForCausalLM.from_config, config), disk | more))


def test_the_backbone_alone_is_no_policy_but_a_critic(whole: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(whole, tie_word_embeddings=False)
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(tmp_path)
    proved_value(str(tmp_path), "critic.path")
    with pytest.raises(ConfigError, match=f"it has no {HEAD}"):
        proved(str(tmp_path), "model.path")


# -- files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 269060552\n")


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("model.safetensors", cut, "model.safetensors is cut short"),
        ("model.safetensors", empty, "model.safetensors is empty"),
        ("model.safetensors", pointer, "model.safetensors is a Git LFS pointer of .. bytes.*git lfs pull"),
        ("model.safetensors", Path.unlink, "has neither model.safetensors nor model.safetensors.index.json"),
        ("tokenizer.json", pointer, "tokenizer.json is a Git LFS pointer"),
        ("config.json", pointer, "config.json is a Git LFS pointer"),
        ("config.json", empty, "config.json is empty"),
        ("config.json", lambda path: path.write_text("{"), "config.json: Expecting"),
        ("config.json", Path.unlink, "has no config.json"),
    ],
)
def test_a_damaged_file_is_named(
    whole: Path, tmp_path: Path, file: str, damage: Callable[[Path], Any], why: str
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "damaged"))
    damage(path / file)
    with pytest.raises(ConfigError, match=f"model.path: .*{why}"):
        proved(str(path), "model.path")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda index: index | {EMBEDDING: "../evil.safetensors"}, "names ../evil.safetensors, which is not in"),
        (lambda index: index | {EMBEDDING: "/etc/evil.safetensors"}, "names /etc/evil.safetensors, which is not in"),
        (lambda index: index | {EMBEDDING: "a/evil.safetensors"}, "names a/evil.safetensors, which is not in"),
        (lambda index: index | {EMBEDDING: "none.safetensors"}, "names none.safetensors, and there is no such file"),
        (lambda index: index | {"model.more": index[EMBEDDING]}, "says model.more in .*, which does not have it"),
        (lambda index: {name: min(index.values()) for name in index}, "says .* in model-00001.*does not have it"),
        (lambda index: {}, "has no weight_map"),
        (lambda index: [], "has no weight_map"),
    ],
)
def test_an_index_names_files_of_its_directory_that_have_what_it_says(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, str]], Any], why: str
) -> None:
    path, index = sharded(whole, tmp_path / "sharded")
    assert len(set(index.values())) > 1
    proved(str(path), "model.path")
    save_file({EMBEDDING: torch.zeros(128, 64)}, tmp_path / "evil.safetensors")
    write_index(path, change(index))
    with pytest.raises(ConfigError, match=f"model.path: .*{why}"):
        proved(str(path), "model.path")


def test_one_checkpoint_in_a_directory_and_each_tensor_once(whole: Path, tmp_path: Path) -> None:
    path, index = sharded(whole, tmp_path / "sharded")
    first, *_, last = sorted(set(index.values()))
    both = load_file(path / last) | load_file(path / first)
    save_file(both, path / last, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"is in .*{first} and in .*{last}"):
        proved(str(path), "model.path")
    shutil.copy(whole / "model.safetensors", path)
    with pytest.raises(ConfigError, match="two checkpoints"):
        proved(str(path), "model.path")


def test_a_links_target_may_lie_anywhere_as_in_the_hubs_cache(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for file in whole.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    proved(str(tmp_path / "snapshot"), "model.path")


def test_a_hub_id_is_its_files_in_the_cache(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "models--own--tiny"
    shutil.copytree(whole, cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert directory_of("own/tiny", "model.path") == cache / "snapshots" / ("a" * 40)
    proved("own/tiny", "model.path")
    with pytest.raises(ConfigError, match="critic.path: no directory own/other, and the hub gives none"):
        proved_value("own/other", "critic.path")


# -- kinds of models


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"quantization_config": {"quant_method": "mxfp4"}}, r"is quantised \(mxfp4\)"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, "needs its own code .*auto_map"),
        ({"model_type": "mine"}, "model_type mine in config.json, which the installed transformers does not know"),
        ({"model_type": "gemma3"}, "is a gemma3 model, which reads more than text"),
        ({"vision_config": {"hidden_size": 8}}, "reads more than text"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "encoder and decoder"),
        ({"hidden_size": "64"}, "config.json: .*'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "config.json: .*not a multiple of the number of attention heads"),
        ({"pad_token_id": 500}, "config.json: Padding_idx must be within"),
        ({"hidden_act": "nope"}, "config.json: 'nope'"),
        ({"transformers_weights": "other.safetensors"}, "takes its weights from other.safetensors"),
    ],
)
def test_what_is_not_taken_says_so_by_name(whole: Path, tmp_path: Path, config: dict[str, Any], why: str) -> None:
    path = str(changed(whole, tmp_path / "changed", {}, config))
    for prove in (proved, proved_value):
        with pytest.raises(ConfigError, match=f"some.path: {path}.*{why}"):
            prove(path, "some.path")


def test_no_one_is_asked_whether_to_run_a_models_code(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    auto = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M", "AutoTokenizer": ["mine.T", None]}
    path = str(changed(whole, tmp_path / "changed", {}, {"model_type": "mine", "auto_map": auto}))
    said = json.loads((Path(path) / "tokenizer_config.json").read_text())
    said |= {"auto_map": {"AutoTokenizer": ["mine.T", None]}, "tokenizer_class": "T"}
    (Path(path) / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError):
        load_path(path, torch.float32)
    with pytest.raises(ConfigError):
        load_value_path(path, "critic.path", torch.float32)
    with pytest.raises(ConfigError):
        load.load_tokenizer_path(path, "model.path")


def test_pickles_and_adapters_are_refused_with_what_to_do(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "changed"))
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as pytorch_model.bin only.*run code; convert it to safetensors"):
        proved(str(path), "model.path")
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "own/base"}')
    with pytest.raises(ConfigError, match=r"adapter \(LoRA\) of own/base: merge it"):
        proved(str(path), "model.path")


def test_vllm_reads_the_same_model(whole: Path, tmp_path: Path) -> None:
    require = lambda named, path: require_engine_reads(named, "LlamaForCausalLM", str(path), "model.path")  # noqa: E731
    require(["LlamaForCausalLM"], whole)
    for named in (None, [], ["LlamaModel"]):
        with pytest.raises(ConfigError, match=r"has architectures .*set architectures to \[LlamaForCausalLM\]"):
            require(named, whole)
    path = Path(shutil.copytree(whole, tmp_path / "more"))
    (path / "consolidated.safetensors").write_bytes(b"")
    require(["LlamaForCausalLM"], path)
    (path / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="has ema.safetensors beside model.safetensors, which vLLM would load"):
        require(["LlamaForCausalLM"], path)


# -- numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused_where_it_is_loaded(whole: Path, tmp_path: Path, bad: float) -> None:
    weight = load_file(whole / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    weight[3, 5] = bad
    path = str(changed(whole, tmp_path / "bad", {"model.layers.1.mlp.up_proj.weight": weight}))
    with pytest.raises(ConfigError, match="model.path: .*layers.1.mlp.up_proj.weight holds 1 numbers that are NaN or"):
        load_path(path, torch.bfloat16)
    with pytest.raises(ConfigError, match="critic.path: .*layers.1.mlp.up_proj.weight holds 1 numbers"):
        load_value_path(path, "critic.path", torch.float32)
    load_path(path, torch.float32, weights=False)
