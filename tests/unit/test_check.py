"""What config values are refused, with which words, and that what the words advise is then accepted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import rewards
from rlcore.algo import ADVANTAGES, LOSSES
from rlcore.algo.advantage import advantage_fn
from rlcore.algo.correction import correct
from rlcore.algo.loss import policy_loss
from rlcore.compose.check import check
from rlcore.compose.compose import as_config, compose
from rlcore.compose.stages import STAGES
from rlcore.compose.unused_keys import DECIDING, idle
from rlcore.config import AdvantageConfig, Correction, CorrectionConfig, LossConfig, all_keys, fields_read, forget_reads
from tests.unit.ragged import as_batch, roll

USER_FILE = "def mine(*args): ...\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    home = tmp_path_factory.mktemp("check")
    path = home / "mine.yaml"
    path.write_text(
        'steps: 3\nmodel: {path: some/model}\ndata: {train: "generate:arithmetic?size=10&seed=1"}\n'
        "reward: {fns: [gsm8k]}\n"
    )
    (home / "f.py").write_text(USER_FILE)
    return compose(str(path), [f"run_dir={home}/run"])[0].config


def errors(base: DictConfig, settings: str) -> list[str]:
    """check()'s errors of the base with `a.b=1 c.d=[x]`."""
    return check(as_config(changed(base, settings)))


def changed(base: DictConfig, settings: str) -> DictConfig:
    lines = [s.replace("USER", str(Path(base.run_dir).parent / "f.py") + ":mine") for s in settings.split()]
    config = base.copy()
    for line in lines:
        key, _, value = line.partition("=")
        value = value.replace(":", ": ").replace(",", ", ") if "{" in value else value
        OmegaConf.update(config, key, OmegaConf.create(f"x: {value}").x, merge=False)
    return config


# what is set, what the one error names (in this order), what is set besides to make it right
REFUSED = [
    ("advantage.name=gae", "advantage.name gae critic.ranks 0", "critic.ranks=1"),
    ("critic.ranks=1", "critic.ranks 1 advantage.name grpo", "advantage.name=gae"),
    ("critic.ranks=1", "critic.ranks 1 advantage.name grpo", "advantage.name=USER"),
    ("loss.name=gspo", "loss.name gspo loss.aggregation token_mean", "loss.aggregation=sequence_mean"),
    *(
        (
            f"loss.name=gspo loss.aggregation=sequence_mean correction.name={name}",
            f"loss.name gspo correction.name {name}",
            f"correction.name={instead}",
        )
        for name, instead in (("truncate_token", "truncate_sequence"), ("mask_token", "reject_sequence"))
    ),
    (
        "rollouts_per_prompt=1 advantage.name=USER rollout.dynamic_draws=2",
        "rollout.dynamic_draws rollouts_per_prompt 1",
        "rollouts_per_prompt=2",
    ),
    *(
        (f"{settings} rollout.dynamic_draws=2", f"rollout.dynamic_draws is 2 advantage.name {name}", instead)
        for settings, name, instead in (
            ("advantage.name=gae critic.ranks=1", "gae", "rollout.dynamic_draws=0"),
            ("advantage.name=gae critic.ranks=1", "gae", "advantage.name=USER"),
            ("advantage.name=remax rollout.greedy_baseline=true", "remax", "rollout.dynamic_draws=0"),
            ("advantage.name=reinforce_plus_plus", "reinforce_plus_plus", "advantage.name=rloo"),
        )
    ),
    (
        "rollout.train_truncated=false kl.coef=0.1 kl.place=reward advantage.name=rloo",
        "rollout.train_truncated kl.place reward",
        "rollout.train_truncated=true",
    ),
    (
        "rollout.train_truncated=false kl.coef=0.1 kl.place=reward advantage.name=rloo",
        "rollout.train_truncated kl.place reward",
        "kl.place=loss",
    ),
    (
        "rollout.train_truncated=false kl.coef=0.1 kl.place=reward advantage.name=rloo",
        "rollout.train_truncated kl.place reward",
        "kl.coef=0",
    ),
    *(
        (f"rollouts_per_prompt=1 advantage.name={name}", f"rollouts_per_prompt 1 advantage.name {name}", instead)
        for name, instead in (
            ("grpo", "advantage.name=reinforce_plus_plus"),
            ("rloo", "rollouts_per_prompt=2"),
            ("opo", "rollouts_per_prompt=2"),
            ("gpg", "advantage.name=USER"),
            ("reinforce_plus_plus_baseline", "rollouts_per_prompt=2"),
        )
    ),
    ("kl.target=0.1", "kl.target is 0.1 kl.coef 0", "kl.coef=0.1"),
    ("kl.target=0.1", "kl.target is 0.1 kl.coef 0", "kl.target=null"),
    ("kl.place=reward kl.target=0.1", "kl.place is reward kl.target is 0.1 kl.coef 0", "kl.target=null"),
    (
        "kl.place=reward kl.target=0.1 advantage.name=rloo",
        "kl.place is reward kl.target is 0.1 kl.coef 0",
        "kl.coef=0.1",
    ),
    *(
        ("kl.coef=0.1 kl.place=reward", "kl.place is reward advantage.name grpo advantage.std_normalize", instead)
        for instead in ("kl.place=loss", "advantage.std_normalize=false", "kl.coef=0", "advantage.name=rloo")
    ),
    *(
        (f"rollout.{key}={value} placement.device=cpu", f"rollout.{key} {value} on CPU {remedy}", remedy)
        for key, value, remedy in (
            ("top_p", 0.9, "rollout.top_p=1"),
            ("top_k", 40, "rollout.top_k=0"),
            ("min_response_tokens", 5, "rollout.min_response_tokens=0"),
        )
    ),
    (
        "rollout.top_p=0.9 rollout.temperature=0.7 placement.device=gpu",
        "rollout.top_p 0.9 rollout.top_k 0 set rollout.top_k",
        "rollout.top_k=512",
    ),
    *(
        (
            "rollout.top_k=512 placement.device=gpu data.eval=[a/b] eval.temperature=0.5",
            "eval.top_k is 0 rollout.top_k 512 eval.temperature 0.5",
            instead,
        )
        for instead in ("eval.top_k=50", "eval.temperature=0", "rollout.top_k=0")
    ),
    *(
        (f"rollout.vllm_args={{{name}:x}}", f"rollout.vllm_args.{name} {why}", "rollout.vllm_args={}")
        for name, why in (
            ("logits_processors", "another distribution"),
            ("logprobs_mode", "the probabilities that were sampled from"),
            ("return_sampling_mask", "rollout.top_p"),
        )
    ),
    ("reference.refresh_steps=5", "reference.refresh_steps kl.coef 0", "kl.coef=0.1"),
    ("kl.coef=0.1 kl.estimator=k1", "kl.estimator k1 kl.place loss", "kl.unbiased_gradient=true"),
    ("kl.coef=0.1 kl.estimator=k1 advantage.name=rloo", "kl.estimator k1 kl.place loss", "kl.place=reward"),
    (
        "kl.coef=0.1 kl.place=reward kl.unbiased_gradient=true advantage.name=rloo",
        "kl.unbiased_gradient kl.place reward",
        "kl.unbiased_gradient=false",
    ),
    (
        "kl.coef=0.1 kl.estimator=k2 kl.unbiased_gradient=true",
        "kl.unbiased_gradient kl.estimator k2",
        "kl.estimator=k3",
    ),
    ("advantage.name=remax", "advantage.name remax rollout.greedy_baseline", "rollout.greedy_baseline=true"),
    ("rollout.greedy_baseline=true", "rollout.greedy_baseline advantage.name grpo", "advantage.name=remax"),
    ("rollout.greedy_baseline=true", "rollout.greedy_baseline advantage.name grpo", "advantage.name=USER"),
    ("loss.length_constant=9", "loss.length_constant loss.aggregation token_mean", "loss.aggregation=constant_length"),
    ("loss.name=cispo loss.dual_clip=3", "loss.dual_clip loss.name cispo", "loss.name=ppo_clip"),
    ("loss.name=cispo loss.dual_clip=3", "loss.dual_clip loss.name cispo", "loss.name=USER"),
    (
        "loss.name=policy_gradient actor.minibatches_per_step=2",
        "loss.name policy_gradient actor.minibatches_per_step 2 actor.epochs_per_step 1",
        "loss.name=ppo_clip",
    ),
    (
        "loss.name=policy_gradient actor.epochs_per_step=2",
        "loss.name policy_gradient actor.minibatches_per_step 1 actor.epochs_per_step 2",
        "actor.epochs_per_step=1",
    ),
    (
        "advantage.name=gae critic.ranks=1 critic.warmup_steps=3",
        "critic.warmup_steps 3 steps 3",
        "critic.warmup_steps=2",
    ),
    *(
        (f"advantage.name=gae critic.ranks=1 critic.path={path}", f"critic.path {words}", instead)
        for path, words, instead in (
            ("./gone", "nothing at ./gone", "critic.path=null"),
            ("~/gone", "nothing at ~/gone", "critic.path=."),
            ("gone", "no directory gone owner/name", "critic.path=owner/name"),
            ("demo", "no directory demo owner/name", "critic.path=owner/name"),
            ("USER.gguf", "GGUF model.path", "critic.path=null"),
        )
    ),
    ("model.path=./gone.gguf", "model.path nothing at ./gone.gguf GGUF", "model.path=demo"),
    ("loss.name=sft critic.ranks=1", "critic.ranks is 1 rlcore sft critic.ranks=0", "critic.ranks=0"),
    ("loss.name=sft kl.coef=1", "kl.coef is 1 rlcore sft kl.coef=0", "kl.coef=0"),
    ("loss.name=dpo", "loss.aggregation is token_mean rlcore dpo needs", "loss.aggregation=sequence_sum"),
    (
        "keep_best=eval/x/failed_fraction data.eval=[owner/x]",
        "keep_best is eval/x/failed_fraction how good a model is",
        "keep_best=eval/x/accuracy",
    ),
    ("keep_best=eval/x/accuracy", "keep_best data.eval []", "data.eval=[owner/x]"),
    (
        "keep_best=accuracy data.eval=[owner/x]",
        "keep_best is accuracy eval/NAME/... of x",
        "keep_best=eval/x/accuracy",
    ),
    ("ray.object_store_mib=100", "sync.bucket_mib 64 ray.object_store_mib 100", "loss.name=bradley_terry"),
    (
        "advantage.name=gae critic.ranks=300",
        "256 rollouts prompts_per_step actor.minibatches_per_step 1 critic.ranks 300",
        "critic.ranks=256",
    ),
    ("reward.fns=[gsm8k,gsm8k]", "reward.fns gsm8k twice", "reward.fns=[gsm8k,gsm8k_strict]"),
    ("reward.gate=[gsm8x]", "reward.gate no gsm8x did you mean gsm8k?", "reward.gate=[]"),
    ("reward.gate=[gsm8k]", "reward.gate nothing is behind it", "reward.fns=[gsm8k,format]"),
    ("reward.args={gsm8kk:{x:1}}", "reward.args no gsm8kk did you mean gsm8k?", "reward.args={}"),
    ("reward.args={gsm8k:1}", "reward.args.gsm8k is 1 must be a mapping", "reward.args={gsm8k:{}}"),
    ("reward.sources={math:[boxed]}", "reward.sources.math no boxed", "reward.sources={math:[gsm8k]}"),
    ("reward.sources={math:gsm8k}", "reward.sources.math is 'gsm8k' must be a list", "reward.sources={math:[gsm8k]}"),
    (
        "reward.fns=[code] reward.args={code:{timeout_seconds:12}}",
        "reward.args.code.timeout_seconds is 12 reward.timeout_seconds 10",
        "reward.timeout_seconds=20",
    ),
    ("reward.fns=[judge]", "request_timeout_seconds is 60 reward.timeout_seconds 10", "reward.timeout_seconds=61"),
    ("reward.clip=[1.0]", "reward.clip is [1.0] write [low, high]", "reward.clip=[0.0,1.0]"),
    ("reward.clip=[1.0,0.0]", "reward.clip is [1.0, 0.0] with low below high", "reward.clip=[]"),
    ("reward.fns=[reward_model]", "reward_model reward_model.path null", "reward_model.path=owner/name"),
    (
        "reward.fns=[reward_model] reward_model.path=./gone",
        "reward_model.path nothing at ./gone",
        "reward_model.path=a/b",
    ),
    ("reward.fns=[gsm8k,gsm8k]", "reward.fns gsm8k twice", "reward.fns=[gsm8k]"),
]


@pytest.mark.parametrize(("settings", "names", "remedy"), REFUSED, ids=[f"{s} | {r}" for s, _, r in REFUSED])
def test_a_combination_that_makes_no_sense_is_refused(base: DictConfig, settings: str, names: str, remedy: str) -> None:
    found = errors(base, settings)
    assert len(found) == 1, found
    at = 0
    for word in names.split():
        at = found[0].find(word, at)
        assert at >= 0, f"{word!r} is not where it should be in: {found[0]}"
    assert errors(base, f"{settings} {remedy}") == []


@pytest.mark.parametrize(
    ("fns", "called"),
    [
        (["gsm8k", "a.py:score", "pkg.mod.other"], ["gsm8k", "score", "other"]),
        (["a.py:score", "x/b.py:score", "pkg.mod.score"], ["a.score", "b.score", "pkg.mod.score"]),
        (["gsm8k", "mine.py:gsm8k"], ["rewards.gsm8k.gsm8k", "mine.gsm8k"]),
        (["reward_model", "mine.py:reward_model"], ["reward_model", "mine.reward_model"]),
        (["f.py:ok", "sub/f.py:ok"], ["f.ok", "sub.f.ok"]),
        (["sub/f.py:ok", "f.py:ok", "f.py:other"], ["sub.f.ok", "f.ok", "other"]),
        (["/x/a/f.py:ok", "/y/a/f.py:ok", "z/f.py:ok"], ["x.a.f.ok", "y.a.f.ok", "z.f.ok"]),
        (["f.py:ok", "sub/f.py:ok", "f.py:ok"], ["f.ok", "sub.f.ok", "f.ok"]),
        (["f.py:ok", "./f.py:ok", "sub/../f.py:ok", str(Path("f.py").absolute()) + ":ok"], ["f.ok"] * 4),
        ([], []),
        (["f.py:gated", "g.py:score"], ["f.gated", "score"]),
    ],
)
def test_every_function_has_a_name_of_its_own(fns: list[str], called: list[str]) -> None:
    assert rewards.names(fns) == called


def test_two_files_of_one_name_are_two_functions(base: DictConfig, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = [tmp_path / "f.py", tmp_path / "sub" / "f.py"]
    for path in files:
        path.write_text("def ok(prompt, response): ...\n")
    one, other = (f"{path}:ok" for path in files)
    assert errors(base, f"reward.fns=[{one},{other}] reward.gate=[sub.f.ok]") == []
    (error,) = errors(base, f"reward.fns=[{one},{other},{one}]")
    assert "names " in error and "f.ok twice; name it once and set its reward.weights" in error


@pytest.mark.parametrize(
    ("wrong", "says", "right"),
    [
        ("loss.dual_clip=1", "it must be 0 (no limit) or above 1", "1.1"),
        ("rollout.dynamic_draws=0.5", "it must be 0 (no filter) or at least 1", "1"),
        ("advantage.gamma=1.1", "at most 1", "0.9"),
        ("advantage.gae_lambda=-0.1", "at least 0", "0"),
        ("reward.overlong_fraction=1.5", "at most 1", "1"),
        ("reward.overlong_penalty=-1", "at least 0", "2"),
        ("correction.low=1.1", "at most 1", "1"),
        ("correction.low=-1", "at least 0", "0"),
        ("correction.high=0.9", "at least 1", "1"),
        ("kl.horizon=0", "at least 1", "1"),
        ("loss.length_constant=0", "at least 1", None),
        ("kl.target=0", "above 0", None),
        ("loss.tau_positive=0", "above 0", "0.1"),
        ("loss.beta=0", "above 0", "0.1"),
        ("loss.tau_negative=-1", "above 0", "2"),
        ("loss.clip_low=1.1", "at most 1", "1"),
        ("loss.clip_high=-0.1", "at least 0", "4"),
        ("loss.entropy_coef=-1", "at least 0", "0.1"),
        ("critic.ranks=-1", "at least 0", "0"),
        ("critic.clip=-1", "at least 0", "0"),
        ("reference.refresh_steps=-1", "at least 0", "0"),
        ("reward.weights=[.nan]", "it must be a finite number", "[2]"),
        ("kl.target=.inf", "it must be a finite number", None),
        *(("rollout.temperature=" + t, "at least 0.01 (vLLM samples at that", "0.01") for t in ("0", "0.005", "-1")),
        ("eval.temperature=0.005", "0 (greedy) or at least 0.01 (vLLM samples at that", "0.01"),
        ("eval.temperature=-1", "0 (greedy) or at least 0.01", "0"),
        ("eval.top_p=0", "above 0", "0.1"),
        ("eval.top_p=1.5", "at most 1", "1"),
        ("eval.top_k=-1", "at least 0", "0"),
        ("actor.beta1=1", "below 1", "0"),
    ],
)
def test_a_value_outside_its_range_is_refused(base: DictConfig, wrong: str, says: str, right: str | None) -> None:
    key = wrong.partition("=")[0]
    assert any(e.startswith(f"{key} is ") and says in e for e in errors(base, wrong)), errors(base, wrong)
    if right is not None:
        assert errors(base, f"{key}={right}") == []


def test_a_name_that_is_not_built_in_is_answered_with_the_nearest(base: DictConfig) -> None:
    assert "advantage.name: no built-in 'rlo'; did you mean rloo?" in errors(base, "advantage.name=rlo")[0]
    assert "loss.name: no built-in 'gpso'; did you mean gspo?" in errors(base, "loss.name=gpso")[0]
    assert errors(base, "advantage.name=USER loss.name=USER") == []


@pytest.mark.parametrize("key", ["advantage.name", "loss.name"])
@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("dapo", "no built-in 'dapo'; it is an algorithm: algorithm=dapo. Built in: "),
        ("PPO", "no built-in 'PPO'; it is an algorithm: algorithm=ppo. Built in: "),
        ("xxxxx", "no built-in 'xxxxx'. Built in: "),
    ],
)
def test_a_name_of_something_else_is_told_apart(base: DictConfig, key: str, word: str, answer: str) -> None:
    (error,) = errors(base, f"{key}={word}")
    assert error.startswith(f"{key}: {answer}"), error


def test_the_loss_of_sft_is_not_offered_and_case_is_no_distance(base: DictConfig) -> None:
    (error,) = errors(base, "loss.name=sftt")
    assert error.endswith("Built in: ppo_clip, gspo, cispo, policy_gradient, sapo; or FILE.py:function")
    assert "did you mean sft" not in error
    assert "did you mean ppo_clip?" in errors(base, "loss.name=PPO_CLIP")[0]
    assert "reward.fns: no built-in 'ppo'" in errors(base, "reward.fns=[ppo]")[0]
    assert "algorithm" not in errors(base, "reward.fns=[ppo]")[0]


def test_a_kl_of_coefficient_0_is_none_wherever_it_would_be(base: DictConfig) -> None:
    assert errors(base, "kl.place=reward kl.estimator=k1 rollout.train_truncated=false") == []


def test_a_machine_without_a_gpu_is_known_to_have_none_before_ray(
    base: DictConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = "rollout.top_p=0.9 rollout.top_k=40"
    for files, address, on_cpu in ((False, "null", True), (True, "null", False), (False, "auto", False)):
        monkeypatch.setattr("rlcore.compose.check._GPU_FILES", [str(tmp_path)] if files else [])
        assert bool(errors(base, f"{settings} ray.address={address}")) == on_cpu
    assert errors(base, "rollout.top_p=0.9 loss.name=sft data.eval=[a/b] eval.temperature=1 eval.top_p=0.9") == []
    assert errors(base, "data.eval=[a/b] eval.temperature=1 eval.top_p=0.9 placement.device=cpu") == []


def test_what_is_set_of_a_critic_that_is_not_there_is_not_looked_at(base: DictConfig) -> None:
    """It may be a recipe's, under another algorithm than the recipe's."""
    assert errors(base, "critic.path=./gone critic.warmup_steps=100 critic.whiten_returns=true") == []


# the key, the rest of what is set, what the error says, what makes it count
IDLE = [
    ("advantage.gae_lambda", "", "advantage.name grpo; remove it or choose gae", "advantage.name=gae critic.ranks=1"),
    ("advantage.gamma", "", "choose gae or reinforce_plus_plus", "advantage.name=reinforce_plus_plus"),
    ("advantage.gamma", "advantage.name=rloo", "advantage.name rloo; remove it", "advantage.name=USER"),
    ("advantage.std_normalize", "advantage.name=rloo", "choose grpo", "advantage.name=grpo"),
    ("advantage.epsilon", "advantage.std_normalize=false", "set advantage.std_normalize=true", "advantage.name=USER"),
    ("loss.clip_low", "loss.name=sapo", "loss.name sapo; remove it", "loss.name=cispo"),
    ("loss.clip_high", "loss.name=policy_gradient", "choose ppo_clip, gspo or cispo", "loss.name=USER"),
    ("loss.dual_clip", "loss.name=cispo", "choose ppo_clip", "loss.name=ppo_clip"),
    ("loss.tau_positive", "", "choose sapo", "loss.name=sapo"),
    ("loss.tau_negative", "", "choose sapo", "loss.name=USER"),
    ("loss.length_constant", "", "loss.aggregation token_mean; remove it", "loss.aggregation=constant_length"),
    ("correction.low", "correction.name=truncate_token", "mask_token or reject_seq", "correction.name=mask_token"),
    ("correction.high", "", "correction.name none; remove it or choose", "correction.name=truncate_token"),
    ("kl.place", "kl.place=reward", "kl.coef 0; remove it or set kl.coef above 0", "kl.coef=0.1"),
    ("kl.estimator", "", "kl.coef 0; remove it", "kl.coef=0.1"),
    ("kl.unbiased_gradient", "kl.coef=0.1 kl.place=reward", "kl.place reward; remove it", "kl.place=loss"),
    ("kl.horizon", "kl.coef=0.1", "kl.target null; remove it or set kl.target", "kl.target=0.1"),
    ("reference.ranks", "", "kl.coef 0; remove it", "kl.coef=0.1"),
    ("critic.path", "", "critic.ranks 0; remove it or set critic.ranks above 0", "critic.ranks=1"),
    ("critic.learning_rate", "", "critic.ranks 0; remove it", "critic.ranks=1"),
    ("reward.overlong_penalty", "", "reward.overlong_fraction 0; remove it", "reward.overlong_fraction=0.1"),
    # What only one command reads.
    ("data.response_column", "", "in `rlcore train`; remove it", "loss.name=sft"),
    ("data.response_column", "loss.name=USER", "in `rlcore train`; remove it", "loss.name=sft"),
    ("data.response_column", "loss.name=bradley_terry", "in `rlcore train-rm`; remove it", "loss.name=sft"),
    ("data.curriculum", "loss.name=sft reward.fns=[]", "in `rlcore sft`; remove it", "loss.name=ppo_clip"),
    (
        "rollout.engines",
        "loss.name=sft reward.fns=[]",
        "with reward.fns []; remove it",
        "reward.fns=[gsm8k] data.eval=[a/b]",
    ),
    ("rollout.vllm_args", "loss.name=bradley_terry", "which samples nothing; remove it", "loss.name=USER"),
    ("rollouts_per_prompt", "loss.name=sft", "in `rlcore sft`; remove it", "loss.name=ppo_clip"),
    ("reward.fns", "loss.name=bradley_terry", "which samples nothing; remove it", "loss.name=sft data.eval=[a/b]"),
    ("reward.fns", "loss.name=sft", "with data.eval []; remove it or set data.eval", "data.eval=[a/b]"),
    ("actor.logits_chunk_tokens", "loss.name=bradley_terry", "in `rlcore train-rm`; remove it", "loss.name=sft"),
    ("deadline.publish_seconds", "loss.name=dpo", "with data.eval []; remove it", "data.eval=[a/b]"),
    ("advantage.name", "loss.name=sft advantage.name=USER", "in `rlcore sft`; remove it", "loss.name=ppo_clip"),
    ("kl.estimator", "loss.name=dpo", "in `rlcore dpo`; remove it", "loss.name=ppo_clip kl.coef=0.1"),
    ("loss.clip_low", "loss.name=bradley_terry", "in `rlcore train-rm`; remove it", "loss.name=ppo_clip"),
    ("loss.aggregation", "loss.name=bradley_terry", "in `rlcore train-rm`; remove it", "loss.name=sft"),
    ("loss.beta", "loss.name=sft", "loss.name sft; remove it or choose dpo", "loss.name=dpo"),
    ("sync.bucket_mib", "loss.name=bradley_terry", "which samples nothing; remove it", "loss.name=ppo_clip"),
    # What needs something to be there.
    ("eval.prompts", "", "data.eval []; remove it or set data.eval", "data.eval=[a/b]"),
    ("eval.every_steps", "", "data.eval []; remove it or set data.eval", "data.eval=[a/b]"),
    (
        "eval.top_p",
        "data.eval=[a/b]",
        "with eval.temperature 0; remove it or set eval.temperature above 0",
        "eval.temperature=0.7",
    ),
    ("eval.top_k", "eval.temperature=1", "data.eval []; remove it", "data.eval=[a/b]"),
    ("rollout.top_p", "loss.name=sft", "in `rlcore sft`; remove it", "loss.name=ppo_clip"),
    ("tracker.project", "", "tracker.sinks []; remove it or add wandb to tracker.sinks", "tracker.sinks=[wandb]"),
    ("tracker.name", "tracker.sinks=[tensorboard]", "add wandb to tracker.sinks", "tracker.sinks=[wandb,tensorboard]"),
    ("reward_model.ranks", "", "add reward_model to reward.fns", "reward.fns=[reward_model]"),
    ("ray.object_store_mib", "ray.address=auto", "ray.address auto; remove it or", "ray.address=null"),
]


@pytest.mark.parametrize(("key", "settings", "says", "remedy"), IDLE, ids=[f"{k} | {r}" for k, _, _, r in IDLE])
def test_a_key_that_nothing_would_read_is_named(
    base: DictConfig, key: str, settings: str, says: str, remedy: str
) -> None:
    found = idle(as_config(changed(base, settings)), {"steps": "x", key: "command line", "critic.ranks": "x"})
    assert list(found) == [key]
    assert found[key].startswith(f"{key} (command line): nothing reads it ") and says in found[key]
    assert idle(as_config(changed(base, f"{settings} {remedy}")), {key: "command line"}) == {}


@pytest.mark.parametrize("command", [command for command, stage in STAGES.items() if stage.needs])
def test_what_a_stage_needs_may_be_set(base: DictConfig, command: str) -> None:
    """A recipe that is for `train` is made one for another command by these lines."""
    stage = STAGES[command]
    needs = {"loss.name": stage.loss, **stage.needs}
    cfg = as_config(changed(base, " ".join(f"{key}={value}" for key, value in needs.items())))
    assert check(cfg) == []
    assert idle(cfg, dict.fromkeys([*needs, "rollout.max_response_tokens"], "command line")) == {}


def test_what_a_run_that_goes_on_would_read_is_not_refused(base: DictConfig) -> None:
    """With steps=1 nothing reads how often to save; `rlcore resume RUN_DIR steps=100` does."""
    assert idle(as_config(changed(base, "steps=1 save_every_steps=50")), {"save_every_steps": "command line"}) == {}


def test_what_decides_about_keys_are_keys() -> None:
    assert DECIDING <= all_keys().keys()


def test_every_key_of_the_critic_but_its_ranks_needs_it(base: DictConfig) -> None:
    keys = [k for k in all_keys() if k.startswith("critic.")]
    assert set(idle(as_config(base), dict.fromkeys(keys, "x"))) == set(keys) - {"critic.ranks"}


def read_by(section: str, work: Callable[[], object]) -> set[str]:
    forget_reads()
    work()
    return {k for k, field in all_keys().items() if field in fields_read() and k.startswith(f"{section}.")}


def test_what_is_called_idle_is_what_the_functions_do_not_read(base: DictConfig) -> None:
    rolls = [roll(random.Random(i), 0, float(i), 3, True) for i in range(4)]
    batch = as_batch(rolls, "old_logp", "ref_logp", "value", "advantage")
    logp = batch.old_logp
    assert logp is not None
    cases = [
        *(("advantage", n, lambda n=n: advantage_fn(AdvantageConfig(n))(batch, AdvantageConfig())) for n in ADVANTAGES),
        *(("loss", n, lambda n=n: policy_loss(LossConfig(n))(logp, batch, LossConfig())) for n in LOSSES),
        *(("correction", c.value, lambda c=c: correct(logp, batch, CorrectionConfig(name=c))) for c in Correction),
    ]
    others = {f"{s}.name" for s in ("advantage", "loss", "correction")}
    others |= {"advantage.whiten", "loss.aggregation", "loss.length_constant", "loss.entropy_coef"}  # by their callers
    for section, name, work in cases:
        keys = {k for k in all_keys() if k.startswith(f"{section}.")} - others
        unread = keys - read_by(section, work)
        cfg = as_config(changed(base, f"{section}.name={name}"))
        assert set(idle(cfg, dict.fromkeys(keys, "x"))) == unread, f"{section}.name {name}"
