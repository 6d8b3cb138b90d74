"""What an architecture cannot do here is said from its config alone, with the value that would fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rlcore.config import Config, ModelConfig, RolloutConfig
from rlcore.data.endings import Endings
from rlcore.errors import ConfigError
from rlcore.models.architecture import context_tokens, require_sampled, require_trainable
from rlcore.models.logp import token_logp
from rlcore.models.pack import pack
from rlcore.records import Prompt
from rlcore.train import reinforcement
from rlcore.train.dpo import DirectPreference
from rlcore.train.reward_model import RewardModelling
from rlcore.train.sampling import NoPrompts, Sampling
from rlcore.train.supervised import Supervised
from tests.close import assert_close
from tests.templates import CHATML, make_tokenizer
from tests.unit.test_model import LENGTHS, SMALL, one_by_one, rollouts

BEFORE = 16  # tokens of the context before it was made longer: some of LENGTHS are on either side of it
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 6.0, 8.0]}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": BEFORE, **FACTORS}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {"factor": 2.0, "original_max_position_embeddings": BEFORE, **BANDS},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": BEFORE},
    "proportional": {"partial_rotary_factor": 0.5},
    "longrope": LONGROPE,
    "dynamic": {"factor": 2.0},
}


def config(family: str = "llama", **changes: Any) -> Any:
    return AutoConfig.for_model(family, **(SMALL | changes))


def rope(kind: str, **changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}, **changes}


def saved(path: Path, *args: Any, **changes: Any) -> str:
    config(*args, **changes).save_pretrained(path)
    return str(path)


ENDS = Endings(1, (1,), ("</s>",))
STAGES = (Supervised, DirectPreference, RewardModelling, reinforcement.Reinforcement)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@pytest.mark.parametrize(("changes", "why"), [({"layer_types": ["linear_attention"] * 2}, "linear_attention"), (
    rope("longrope"), f"longrope .* at most {BEFORE} together")])  # fmt: skip
def test_every_stage_refuses_before_it_reads_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, changes: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(reinforcement, "make_rewards", lambda cfg: SimpleNamespace(close=lambda: None))
    cfg = Config(run_dir=str(tmp_path), model=ModelConfig(path=saved(tmp_path, **changes)))
    make_tokenizer(CHATML).save_pretrained(tmp_path)
    cfg.data.train = ["no such file.jsonl"]
    with pytest.raises(ConfigError, match=f"model.path: .*{why}"):
        stage(cfg, lambda text: None)


def test_whoever_samples_asks_whether_its_longest_prompt_fits(tmp_path: Path) -> None:
    cfg = Config(model=ModelConfig(path=saved(tmp_path)))
    cfg.reward.fns = []
    cfg.rollout.max_response_tokens = 100
    rewards, prompts = SimpleNamespace(), Prompt("", [1] * 29, "")
    with pytest.raises(ConfigError, match="made for 128 tokens, and the longest prompt of this run has 29"):
        Sampling(cfg, rewards, None, ENDS, NoPrompts(), {"held_out": [prompts]})  # type: ignore[arg-type]
    prompts.tokens.pop()
    Sampling(cfg, rewards, None, ENDS, NoPrompts(), {"held_out": [prompts]})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(ROPE_INIT_FUNCTIONS.keys() | {"default"}))
@pytest.mark.parametrize("longest", [min(LENGTHS), BEFORE, max(LENGTHS)])
def test_whatever_the_rope_a_rollout_is_the_same_alone_and_beside_others_or_refused(kind: str, longest: int) -> None:
    """Every type of transformers, on both sides of the context that a model had at first."""
    torch.manual_seed(0)
    shape = config(**rope(kind, max_position_embeddings=BEFORE if kind == "dynamic" else 128))
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="eager").eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    tokens, offsets, mask = rollouts([n for n in LENGTHS if n <= longest])
    with torch.no_grad():
        want, _ = one_by_one(model, 1.0, (tokens, offsets, mask))
        if kind in ("longrope", "dynamic") and longest > BEFORE:
            with pytest.raises(ConfigError, match=f"rope_type {kind} takes other angles .* at most {BEFORE} together"):
                token_logp(pack(model), tokens, offsets, mask, 1.0, 16)
        else:
            found, _ = token_logp(pack(model), tokens, offsets, mask, 1.0, 16)
            assert_close(found, want, 30, "log-probabilities")


def test_a_rope_that_is_not_known_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(config())
    model.config.rope_parameters = {"rope_type": "spiral"}
    with pytest.raises(ConfigError, match="model.path: rope_type spiral is unknown here; known are default, dynamic"):
        pack(model)
    model.config.rope_parameters = {"full_attention": {"rope_type": "default"}, "sliding_attention": LONGROPE}
    pack(model)


@pytest.mark.parametrize("scores", [False, True])
def test_the_longest_rollout_of_a_run_must_be_within_what_its_rope_takes_for_all(tmp_path: Path, scores: bool) -> None:
    path = saved(tmp_path, **rope("longrope"))
    require_trainable(path, "critic.path", BEFORE, scores)
    with pytest.raises(ConfigError, match=f"critic.path: llama .* longrope .* more than {BEFORE} tokens.* allows 17: "):
        require_trainable(path, "critic.path", BEFORE + 1, scores)


def test_an_engine_must_not_choose_the_angles_of_a_longer_context(tmp_path: Path) -> None:
    path = saved(tmp_path, **rope("longrope"))
    require_sampled(path, 8, RolloutConfig(max_response_tokens=8))
    with pytest.raises(ConfigError, match="longrope"):
        require_sampled(path, 8, RolloutConfig(max_response_tokens=8, vllm_args={"max_model_len": 100}))


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("mamba", {"state_size": 4}, "linear_attention|convolution"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("bloom", {"n_layer": 1, "n_head": 4}, "cannot be replaced|position_ids"),
        ("gptj", {"n_embd": 32, "n_head": 4, "n_layer": 1, "rotary_dim": 4}, "cannot be replaced"),
        ("bert", {"is_decoder": True}, r"makes more of its logits \(addmm, gelu, native_layer_norm\)"),
    ],
)
def test_architectures_that_cannot_be_packed_are_refused_before_anything_is_read(
    tmp_path: Path, family: str, options: dict[str, Any], why: str
) -> None:
    """There are no weights in the directory."""
    with pytest.raises(ConfigError, match=f"model.path: .*({why})"):
        require_trainable(saved(tmp_path, family, **options), "model.path", 8)


class Halved(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output


def test_logits_that_are_changed_in_a_way_not_known_here_are_refused() -> None:
    with torch.device("meta"):
        pack(LlamaForCausalLM(config()))
        with pytest.raises(ConfigError, match=r"model.path: Halved makes more of its logits \(div\)"):
            pack(Halved(config()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt_oss", "gpt_neox", "phi", "cohere", "granite"])
def test_others_are_not(tmp_path: Path, family: str) -> None:
    require_trainable(saved(tmp_path, family), "model.path", 8)


def test_a_context_that_is_too_short_is_refused_with_the_values_that_would_fit(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama")
    require_sampled(path, 100, RolloutConfig(max_response_tokens=28))
    with pytest.raises(ConfigError) as error:
        require_sampled(path, 100, RolloutConfig(max_response_tokens=48))
    assert str(error.value) == (
        f"model.path: {path} was made for 128 tokens, and the longest prompt of this run has 100, "
        "rollout.max_response_tokens is 48: 148 together; set rollout.max_response_tokens to at most 28, or set "
        "data.max_prompt_tokens to at most 80"
    )
    with pytest.raises(ConfigError, match="lower both"):
        require_sampled(path, 200, RolloutConfig(max_response_tokens=200))


@pytest.mark.parametrize(
    ("family", "changes", "want"),
    [
        ("llama", {}, 128),
        ("gpt2", {"n_positions": 64}, 64),
        ("llama", rope("linear"), 256),
        ("llama", rope("yarn"), 128),
        ("gemma3_text", {}, 128),
    ],
)
def test_the_context_is_what_vllm_takes_it_for(family: str, changes: dict[str, Any], want: int) -> None:
    shape = config(family, **changes) if family != "gpt2" else AutoConfig.for_model(family, **changes)
    assert context_tokens(shape) == want


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [("gpt_oss", {}, "sinks and experts again"), ("deepseek_v3", {"num_key_value_heads": 4}, "latent attention")],
)
def test_what_vllm_does_not_sample_right_is_not_sampled(
    tmp_path: Path, family: str, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=f"model.path: .* {family} model, and .*{why}.*rlcore sft"):
        require_sampled(saved(tmp_path, family, **changes), 8, RolloutConfig(max_response_tokens=8))


def test_heads_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama")
    require_sampled(path, 8, RolloutConfig(tensor_parallel=2, max_response_tokens=8))
    with pytest.raises(ConfigError, match="rollout.tensor_parallel is 3, and the 4 attention heads .* use one of 1, 2"):
        require_sampled(path, 8, RolloutConfig(tensor_parallel=3, max_response_tokens=8))
