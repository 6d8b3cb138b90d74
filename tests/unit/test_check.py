"""What config values are refused, with which words, and that what the words advise is then accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from rlcore.check import check
from rlcore.compose import as_config, compose

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
    lines = [s.replace("USER", str(Path(base.run_dir).parent / "f.py") + ":mine") for s in settings.split()]
    config = base.copy()
    for line in lines:
        key, _, value = line.partition("=")
        OmegaConf.update(config, key, OmegaConf.create(f"x: {value}").x)
    return check(as_config(config))


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
        "rollouts_per_prompt=1 advantage.name=reinforce_plus_plus rollout.dynamic_draws=2",
        "rollout.dynamic_draws rollouts_per_prompt 1",
        "rollouts_per_prompt=2",
    ),
    *(
        (f"rollouts_per_prompt=1 advantage.name={name}", f"rollouts_per_prompt 1 advantage.name {name}", instead)
        for name, instead in (
            ("grpo", "advantage.name=reinforce_plus_plus"), ("rloo", "rollouts_per_prompt=2"),
            ("opo", "rollouts_per_prompt=2"), ("gpg", "advantage.name=USER"),
            ("reinforce_plus_plus_baseline", "rollouts_per_prompt=2"),
        )
    ),
    ("kl.place=reward", "kl.place kl.coef 0", "kl.coef=0.1"),
    ("kl.place=reward", "kl.place kl.coef 0", "kl.place=loss"),
    ("kl.target=0.1", "kl.target kl.coef 0", "kl.coef=0.1"),
    ("reference.refresh_steps=5", "reference.refresh_steps kl.coef 0", "kl.coef=0.1"),
    ("kl.coef=0.1 kl.estimator=k1", "kl.estimator k1 kl.place loss", "kl.unbiased_gradient=true"),
    ("kl.coef=0.1 kl.estimator=k1", "kl.estimator k1 kl.place loss", "kl.place=reward"),
    (
        "kl.coef=0.1 kl.place=reward kl.unbiased_gradient=true",
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
    ("critic.warmup_steps=1", "critic.warmup_steps critic.ranks 0", "advantage.name=gae critic.ranks=1"),
    ("critic.path=a/b", "critic.path critic.ranks 0", "critic.path=null"),
    ("critic.whiten_returns=true", "critic.whiten_returns critic.ranks 0", "advantage.name=gae critic.ranks=1"),
    ("loss.name=sft critic.ranks=1", "loss.name sft critic.ranks 1", "critic.ranks=0"),
    ("loss.name=sft kl.coef=1", "loss.name sft kl.coef", "kl.coef=0"),
    (
        "advantage.name=gae critic.ranks=300",
        "256 rollouts prompts_per_step actor.minibatches_per_step 1 critic.ranks 300",
        "critic.ranks=256",
    ),
    ("reward.fns=[gsm8k,gsm8k]", "reward.fns gsm8k twice", "reward.fns=[gsm8k,gsm8k_strict]"),
]  # fmt: skip


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
        ("loss.tau_negative=-1", "above 0", "2"),
        ("loss.clip_low=1.1", "at most 1", "1"),
        ("loss.clip_high=-0.1", "at least 0", "4"),
        ("loss.entropy_coef=-1", "at least 0", "0.1"),
        ("critic.ranks=-1", "at least 0", "0"),
        ("critic.clip=-1", "at least 0", "0"),
        ("reference.refresh_steps=-1", "at least 0", "0"),
        ("reward.weights=[.nan]", "it must be a finite number", "[2]"),
        ("kl.target=.inf", "it must be a finite number", None),
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
