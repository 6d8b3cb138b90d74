"""What the command line does with right and wrong keys, before anything is started."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlcore.cli import main
from rlcore.cli.train import from_hydra_names, last_words, say_unread, unread_keys
from rlcore.compose.check import check
from rlcore.compose.compose import (
    RECIPES,
    as_config,
    compose,
    compose_rewards,
    compose_run,
    parse_override,
    recipe_names,
    run_with_hydra,
)
from rlcore.compose.recipe import algorithm_names, layers
from rlcore.config import Config, Section, all_keys, fields_read, forget_reads
from rlcore.errors import ConfigError

MINE = """
model: {path: some/model}
data: {train: "generate:arithmetic?size=10&seed=1"}
reward: {fns: [gsm8k]}
steps: 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def errors_of(name: str, *overrides: str, multirun: bool = False) -> str:
    with pytest.raises(ConfigError) as e:
        compose(name, list(overrides), multirun)
    return str(e.value)


def test_overrides_reach_the_dataclasses(recipe: str) -> None:
    composed, _ = compose(recipe, ["actor.ranks=2", "data.train=generate:countdown?size=5&seed=7", "data.eval=a/b@c"])
    cfg = as_config(composed.config)
    assert (cfg.actor.ranks, cfg.data.train, cfg.data.eval) == (2, ["generate:countdown?size=5&seed=7"], ["a/b@c"])
    assert cfg.steps == 3 and composed.set_by["actor.ranks"] == "command line" and composed.set_by["steps"] == recipe


def test_every_error_is_listed_at_once(recipe: str) -> None:
    text = errors_of(
        recipe,
        "actor.rank=2",
        "learning_rate=1",
        "actor.ranks=two",
        "sync.backend=shmm",
        "rollout.top_p=0.9",
        "rollout.temperature=0.5",
        "steps=-1",
        "foo",
    )
    for part in (
        "actor.rank (command line) is not a key; did you mean actor.ranks?",
        "learning_rate (command line) is not a key; did you mean actor.learning_rate?",
        "actor.ranks (command line): 'two' is not a int",
        "'shmm' is not one of auto, shm, ipc, nccl; did you mean shm?",
        "rollout.top_p 0.9",
        "steps is -1",
        "'foo' is not key=value",
    ):
        assert part in text, text


def test_a_wrong_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MINE + "rolout: {engines: 2}\n")
    assert f"rolout.engines ({path}) is not a key; did you mean rollout.engines?" in errors_of(str(path))


def test_missing_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n")
    text = errors_of(str(path))
    for key in ("model.path", "data.train", "steps", "reward.fns"):
        assert key in text


def test_unreadable_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1,\n")
    assert "broken.yaml" in errors_of(str(path))
    assert "did you mean demo?" in errors_of("dmo")
    assert "no recipe file" in errors_of("nowhere.yaml")
    path = tmp_path / "mine.yml"
    path.write_text(MINE)
    assert f"rename it to {tmp_path}/mine.yaml" in errors_of(str(path))


def test_plus_does_not_slip_past_the_schema(recipe: str) -> None:
    assert "a.typo (command line) is not a key" in errors_of(recipe, "+a.typo=1")


def test_free_form_keys_pass_through(recipe: str) -> None:
    composed, _ = compose(recipe, ["rollout.vllm_args.max_num_seqs=3", "actor.deepspeed_args={a: {b: 1}}"])
    cfg = as_config(composed.config)
    assert cfg.rollout.vllm_args == {"max_num_seqs": 3} and cfg.actor.deepspeed_args == {"a": {"b": 1}}


def test_a_recipe_can_build_on_another(tmp_path: Path) -> None:
    path = tmp_path / "child.yaml"
    path.write_text("defaults: [demo, _self_]\nseed: 5\n")
    composed, _ = compose(str(path), [])
    parent, _ = compose("demo", [])
    assert composed.config.seed == 5 and composed.config.steps == parent.config.steps


def test_what_a_recipe_inherits_is_not_the_users(tmp_path: Path) -> None:
    path = tmp_path / "child.yaml"
    path.write_text("defaults: [demo, _self_]\nactor: {beta2: 0.9}\nrollout: {vllm_args: {max_num_seqs: 3}}\n")
    composed, _ = compose(str(path), ["steps=7"])
    assert composed.set_by == {
        "actor.beta2": str(path),
        "rollout.vllm_args": str(path),
        "steps": "command line",
    }
    assert composed.config.reference.ranks == 2 and composed.origins["reference.ranks"].endswith("from its defaults")
    assert compose("demo", [])[0].set_by == {}


def test_interpolations_work_and_bad_ones_are_listed(recipe: str, tmp_path: Path) -> None:
    assert (
        as_config(
            compose(recipe, ["actor.ranks=2", "advantage.name=gae", "critic.ranks=${actor.ranks}"])[0].config
        ).critic.ranks
        == 2
    )
    text = errors_of(
        recipe,
        "reference.ranks=${actor.rank}",
        "seed=${model.path}",
        "data.eval=['${gone}']",
        "steps=${actor.epochs}",
        "rollout.vllm_args.a=${gone}",
        "kl.coef=${oc.env:RLCORE_NOT_SET}",
        "actor.rank=1",
        "run_dir=${nowhere}",
    )
    for key in ("reference.ranks", "seed", "data.eval", "steps", "rollout.vllm_args", "kl.coef", "run_dir"):
        assert text.count(f". {key} (command line): ") == 1, text
    assert "Interpolation key 'actor.rank' not found" in text and "did you mean actor.ranks?" in text
    assert "steps is required" not in text
    path = tmp_path / "bad.yaml"
    path.write_text(MINE + "reference: {ranks: '${actor.rank}'}\n")
    assert f"reference.ranks ({path}): Interpolation key 'actor.rank' not found" in errors_of(str(path))
    assert compose(str(path), ["reference.ranks=2", "kl.coef=0.1"])[0].config.reference.ranks == 2
    assert "seed (command line): Recursive" in errors_of(recipe, "seed=${steps}", "steps=${seed}")
    path.write_text(MINE + "reference: {ranks: '${actor'}\n")
    assert f"{path}: cannot be read as a recipe: reference.ranks: no viable" in errors_of(str(path))


def test_a_bad_interpolation_in_a_sweep_is_a_config_error(recipe: str, tmp_path: Path) -> None:
    composed, for_hydra = compose(recipe, [f"run_dir={tmp_path}/sweep", "seed=${stepz},1"], multirun=True)
    ran = []
    with pytest.raises(ConfigError, match=r"^  1. seed \(command line\): Interpolation key 'stepz' not found"):
        run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, _: ran.append(cfg) or 0)


def test_every_failure_of_a_sweep_is_told_at_once(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composed, for_hydra = compose(recipe, [f"run_dir={tmp_path}/sweep", "seed=1,2,3"], multirun=True)
    told = []

    def job(cfg: Config, _: object) -> int:
        told.append(capsys.readouterr().out)
        if cfg.seed < 3:
            raise ConfigError(f"no seed {cfg.seed}")
        return 0

    with pytest.raises(ConfigError, match="no seed 1"):
        run_with_hydra(composed, for_hydra, ["--multirun"], job)
    assert told == ["", *(f"[rlcore] job {i} of the sweep has failed: ConfigError: no seed {i + 1}\n" for i in (0, 1))]


@pytest.fixture
def run_dir(recipe: str, tmp_path: Path) -> Path:
    where = tmp_path / "run"
    where.mkdir()
    composed, _ = compose(recipe, [f"run_dir={where}"])
    OmegaConf.save(composed.config, where / "config.yaml")
    (where / "metrics.jsonl").touch()
    return where


def test_resuming_takes_the_runs_config_and_the_changes(run_dir: Path) -> None:
    composed = compose_run(run_dir, ["steps=9"])
    assert (composed.config.steps, composed.config.run_dir) == (9, str(run_dir))
    assert composed.set_by == {"steps": "command line"} and composed.config.model.path == "some/model"


def test_resuming_lists_every_error(run_dir: Path) -> None:
    with pytest.raises(ConfigError) as e:
        compose_run(
            run_dir,
            [
                "run_dir=elsewhere",
                "steps=1,2",
                "foo",
                "~seed",
                "actor.rank=2",
                "reference.ranks=${actor.rank}",
                "--cfg",
            ],
        )
    for part in (
        f"run_dir=elsewhere (command line): a run goes on where it is, in {run_dir}",
        "steps=1,2 (command line): resume takes single values",
        "'foo' is not key=value",
        "'--cfg' is not key=value",
        "~seed (command line): keys cannot be deleted",
        "actor.rank (command line) is not a key",
        "reference.ranks (command line): Interpolation key 'actor.rank' not found",
    ):
        assert part in str(e.value), e.value
    assert str(e.value).count("\n") == 6


def test_a_runs_own_config_may_be_wrong(run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    good = path.read_text()
    path.write_text(good.replace("seed: ", "seed: ${nowhere} #"))
    with pytest.raises(ConfigError, match=r"seed \(.*config.yaml\): Interpolation key 'nowhere' not found"):
        compose_run(run_dir, [])
    path.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="config.yaml: cannot be read"):
        compose_run(run_dir, [])


@pytest.mark.parametrize("text", ["a=b=c&d?e", "a=it's", "a={x} y, z", "a=1,2 three"])
def test_text_values_need_no_quotes(text: str) -> None:
    override = parse_override(text)
    assert override.is_sweep_override() or override.value() == text.partition("=")[2]


def test_sweeps_need_multirun(recipe: str) -> None:
    assert "--multirun" in errors_of(recipe, "seed=1,2")
    assert "'x' is not a int" in errors_of(recipe, "seed=1,x", multirun=True)


def test_reward_files_are_looked_into(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text("def score(prompt, response): return 1.0\n")
    compose(recipe, [f"reward.fns=[{file}:score]"])
    assert "did you mean score?" in errors_of(recipe, f"reward.fns=[{file}:scor]")
    assert "no file" in errors_of(recipe, "reward.fns=[gone.py:score]")
    assert "did you mean gsm8k" in errors_of(recipe, "reward.fns=[gsm8]")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollouts_per_prompt=1", "a group of one has advantage 0"),
        ("sync.backend=nccl", "nccl needs a device a process"),
        ("reward.weights=[1,2]", "2 entries for 1"),
        ("data.train=gone.jsonl", "no file gone.jsonl"),
        ("model.path=./gone", "nothing at ./gone"),
        ("sync.bucket_mib=400", "over a third of"),
        ("rollout.min_response_tokens=999", "above max_response_tokens"),
        ("actor.zero_stage=4", "at most 3"),
        ("actor.learning_rate=nan", "finite"),
        ("rollout.temperature=inf", "finite"),
        ("model.path=my-model", "no directory my-model"),
        ("tracker.sinks=[wandbb]", "no sink"),
        ("actor.minibatches_per_step=9999", "too few"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(recipe: str, override: str, says: str) -> None:
    assert says in errors_of(recipe, override)


def test_reads_are_remembered_and_composing_does_not_count(recipe: str, run_dir: Path) -> None:
    forget_reads()
    composed, _ = compose(recipe, [])
    compose_run(run_dir, ["steps=9"])
    compose_rewards({"reward.fns": ["gsm8k"], "data.train": ["generate:arithmetic?size=10&seed=1"]}, [])
    cfg = as_config(composed.config)
    assert fields_read() == set()
    assert cfg.rollout.engines == 1
    compose(recipe, ["algorithm=ppo"])  # as an embedded model is made in the middle of a run
    assert fields_read() == {"Config.rollout", "RolloutConfig.engines"}


def test_one_composition_leaves_nothing_in_the_next(recipe: str) -> None:
    """The schema is made once a process."""
    before = values_of(recipe)
    compose(recipe, ["algorithm=ppo", "data.eval=a/b", "rollout.vllm_args.max_num_seqs=3", "reward.args.gsm8k.x=1"])
    assert values_of(recipe) == before and before.rollout.vllm_args == {}


def test_every_field_has_a_key() -> None:
    assert all_keys()["rollout.engines"] == "RolloutConfig.engines"
    assert all(issubclass(type(v), Section) or k in all_keys() for k, v in vars(Config()).items())


def test_shipped_recipes_pass_but_for_what_the_user_must_give() -> None:
    for name in recipe_names():
        given = {key for layer in layers(RECIPES / f"{name}.yaml") for key in layer.lines}
        blank = {"model.path", "data.train"} - given
        composed, _ = compose(name, [*(f"{key}=some/thing" for key in blank), "run_dir=nowhere"])
        assert check(as_config(composed.config)) == []


GSM8K = ("model.path=some/model", "data.train=some/data")


def values_of(name: str, *overrides: str) -> Config:
    """The config without its default run_dir, which has the time in it."""
    return as_config(compose(name, ["run_dir=nowhere", *overrides])[0].config)


def test_a_recipes_algorithm_is_below_its_own_lines_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for lines in ("algorithm: grpo\nkl: {coef: 0.5}\n", "kl: {coef: 0.5}\nalgorithm: grpo\n"):
        path.write_text(MINE + lines)
        composed, _ = compose(str(path), [])
        cfg = as_config(composed.config)
        assert (cfg.algorithm, cfg.kl.coef, cfg.loss.aggregation.value) == ("grpo", 0.5, "sequence_mean")
        assert composed.origins["kl.coef"] == composed.origins["algorithm"] == str(path)
        assert composed.origins["loss.aggregation"] == "algorithm grpo"
        assert {k for k in composed.set_by if not k.startswith(("model.", "data.", "reward."))} == {"steps", "kl.coef"}


def test_a_typed_algorithm_is_above_the_recipe_and_below_what_else_is_typed() -> None:
    assert values_of("gsm8k_grpo", *GSM8K).kl.coef == 0.001
    cfg = values_of("gsm8k_grpo", *GSM8K, "algorithm=dapo")
    assert (cfg.algorithm, cfg.kl.coef, cfg.loss.clip_high, cfg.rollout.dynamic_draws) == ("dapo", 0.0, 0.28, 3.0)
    for order in (["algorithm=dapo", "kl.coef=0.01"], ["kl.coef=0.01", "algorithm=dapo"]):
        composed, _ = compose("gsm8k_grpo", [*GSM8K, *order])
        assert composed.config.kl.coef == 0.01 and composed.config.loss.clip_high == 0.28
        assert set(composed.set_by) == {"model.path", "data.train", "kl.coef"}
    assert values_of("demo", "algorithm=rloo", "algorithm=dapo") == values_of("demo", "algorithm=dapo")


def test_a_typed_algorithm_undoes_the_recipes_method_and_keeps_its_fit(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        MINE.replace("fns: [gsm8k]", "fns: [gsm8k], overlong_penalty: 0.5")
        + "loss: {clip_high: 0.4}\nkl: {coef: 0.1, target: 0.2}\nadvantage: {gamma: 0.9}\n"
        "critic: {learning_rate: 3e-3}\ncorrection: {name: truncate_sequence}\n"
        "actor: {epochs_per_step: 2, learning_rate: 2e-6}\nrollout: {train_truncated: false}\n"
    )
    composed, _ = compose(str(path), ["algorithm=gspo"])
    cfg = as_config(composed.config)
    assert (cfg.loss.clip_high, cfg.kl.coef, cfg.kl.target, cfg.advantage.gamma) == (4e-4, 0.0, None, 1.0)
    assert cfg.rollout.train_truncated and cfg.actor.minibatches_per_step == 4
    assert (cfg.critic.learning_rate, cfg.reward.overlong_penalty) == (3e-3, 0.5)
    assert (cfg.correction.name.value, cfg.actor.epochs_per_step, cfg.actor.learning_rate) == (
        "truncate_sequence",
        1,
        2e-6,
    )
    assert "critic.learning_rate" not in composed.set_by  # the user's, but of another algorithm: it may be idle
    assert "kl.coef" not in composed.origins and composed.set_by["actor.learning_rate"] == str(path)
    bare = values_of(str(path), "algorithm=null")
    assert (bare.algorithm, bare.kl.coef, bare.loss.clip_high, bare.actor.epochs_per_step) == (None, 0.0, 0.2, 2)


def test_a_typed_algorithm_keeps_the_recipes_critic_and_may_leave_it_idle(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        MINE + "algorithm: ppo\nreference: {ranks: 2}\n"
        "critic: {path: a/b, whiten_returns: true, warmup_steps: 2, learning_rate: 3e-3, clip: 0.5}\n"
    )
    ppo = values_of(str(path), "algorithm=ppo", "kl.coef=0.5").critic
    assert (ppo.path, ppo.whiten_returns, ppo.warmup_steps, ppo.learning_rate) == ("a/b", True, 2, 3e-3)
    assert (ppo.ranks, ppo.clip) == (1, 0.2)  # the clip is PPO's own
    for algorithm in ("grpo", "dapo", "null"):
        composed, _ = compose(str(path), [f"algorithm={algorithm}"])
        assert composed.config.critic.ranks == 0 and composed.config.critic.path == "a/b"
        assert not [k for k in composed.set_by if k.startswith(("critic.", "reference."))]
    assert "critic.path (command line): nothing reads it" in errors_of(str(path), "algorithm=grpo", "critic.path=a/b")
    path.write_text(path.read_text().replace("algorithm: ppo", "algorithm: dapo"))
    text = errors_of(str(path))  # what stands beside an algorithm must count
    for key in ("critic.path", "critic.clip", "critic.warmup_steps", "reference.ranks"):
        assert f"{key} ({path}): nothing reads it with" in text


def test_an_algorithm_that_another_replaces_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE + "algorithm: ppo\n")
    ppo, sapo = values_of(str(path)), values_of(str(path), "algorithm=sapo")
    assert (ppo.critic.ranks, ppo.kl.place.value, ppo.actor.minibatches_per_step) == (1, "reward", 8)
    path.write_text(MINE + "algorithm: sapo\n")
    assert sapo == values_of(str(path))
    assert (sapo.critic.ranks, sapo.kl.place.value, sapo.actor.minibatches_per_step) == (0, "loss", 1)


def test_an_algorithm_in_a_recipe_is_above_what_the_recipe_builds_on(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(
        "defaults: [gsm8k_grpo, _self_]\nalgorithm: dapo\nadvantage: {epsilon: 1e-3}\n"
    )
    (tmp_path / "child.yaml").write_text("defaults: [parent, _self_]\nseed: 5\n")
    for name in ("parent", "child"):
        cfg = values_of(str(tmp_path / f"{name}.yaml"), *GSM8K)
        assert (cfg.kl.coef, cfg.loss.clip_high, cfg.advantage.epsilon) == (0.0, 0.28, 1e-3), name
    (tmp_path / "child.yaml").write_text("defaults: [parent, _self_]\nalgorithm: rloo\n")
    cfg = values_of(str(tmp_path / "child.yaml"), *GSM8K)
    assert (cfg.loss.clip_high, cfg.advantage.epsilon, cfg.advantage.name) == (0.2, 1e-6, "rloo")


def test_ones_own_algorithm_is_a_file(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "algo.yaml"
    path.write_text("loss: {clip_high: 0.3}\nadvantage: {std_normalize: false}\n")
    composed, _ = compose(recipe, [f"algorithm={path}"])
    assert composed.config.loss.clip_high == 0.3 and composed.config.algorithm == str(path)
    assert composed.origins["loss.clip_high"] == f"algorithm {path}" and "loss.clip_high" not in composed.set_by
    path.write_text("loss: {clip_hgh: 0.3, name: 3x}\nsteps: 5\n")
    text = errors_of(recipe, f"algorithm={path}")
    assert f"loss.clip_hgh (algorithm {path}) is not a key; did you mean loss.clip_high?" in text
    assert f"steps (algorithm {path}) is not an algorithm's to set" in text


def test_an_unknown_algorithm_is_answered_with_the_nearest(recipe: str, tmp_path: Path) -> None:
    text = errors_of(recipe, "algorithm=dappo", "actor.rank=1")
    assert "algorithm (command line): no algorithm 'dappo'; did you mean dapo?; there are: cispo, dapo" in text
    assert "actor.rank (command line) is not a key" in text
    assert "no algorithm 'PPO'; did you mean ppo?" in errors_of(recipe, "algorithm=PPO")
    assert "no algorithm 'Dr-GRPO'; did you mean dr_grpo?" in errors_of(recipe, "algorithm=Dr-GRPO")
    assert "no algorithm file gone.yaml" in errors_of(recipe, "algorithm=gone.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text(MINE + "algorithm: [grpo]\n")
    assert f"algorithm ({path}): no algorithm" in errors_of(str(path))
    path.write_text(MINE + "algorithm: {name: ppo}\n")
    one_word = "is not a key; algorithm is one word"
    assert f"algorithm.name ({path}) {one_word}; did you mean algorithm: ppo?" in errors_of(str(path))
    assert f"algorithm.name (command line) {one_word}; did you" in errors_of(recipe, "algorithm={name: ppo}")
    assert f"algorithm.clip (command line) {one_word}, e.g. algorithm: ppo" in errors_of(recipe, "algorithm.clip=3")


@pytest.mark.parametrize("algorithm", algorithm_names())
def test_every_algorithm_composes_with_the_shipped_recipes(algorithm: str) -> None:
    """And is the same over each: what a recipe says about its own method does not shine through."""
    demo, gsm8k = values_of("demo", f"algorithm={algorithm}"), values_of("gsm8k_grpo", *GSM8K, f"algorithm={algorithm}")
    for section in ("advantage", "loss", "correction", "kl"):
        assert getattr(demo, section) == getattr(gsm8k, section)
    assert demo.algorithm == algorithm and demo.critic.learning_rate == 1e-3
    assert demo.critic.ranks == (demo.actor.ranks if algorithm == "ppo" else 0)
    assert demo.advantage.name != "grpo" or algorithm in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo")


@pytest.mark.parametrize("algorithm", algorithm_names())
def test_every_algorithm_can_do_without_its_kl(algorithm: str) -> None:
    """The place and the estimate its file has for the KL are not the user's."""
    kl, of_reward = values_of("demo", f"algorithm={algorithm}", "kl.coef=0").kl, {"ppo", "rloo", "remax"}
    assert kl.coef == 0 and (kl.place.value == "reward") == (algorithm in of_reward | {"reinforce_plus_plus"})
    assert "kl.place (command line): nothing reads it" in errors_of(
        "demo", f"algorithm={algorithm}", "kl.coef=0", "kl.place=reward"
    )
    text = errors_of("demo", f"algorithm={algorithm}", "kl.coef=0", "kl.target=0.1", "reference.refresh_steps=2")
    assert text.count("kl.target") == 2 and text.count("\n") == 1  # once each, the second time in what to do


def test_a_line_without_effect_is_refused_where_the_user_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [demo, _self_]\nadvantage: {gamma: 0.9}\nreference: {ranks: 1}\n")
    lines = [f"  {i}. {key} " for i, key in enumerate(("advantage.gamma", "reference.ranks", "loss.tau_positive"), 1)]
    text = errors_of(str(path), "kl.coef=0", "loss.tau_positive=2").splitlines()
    assert [a.startswith(b) for a, b in zip(text, lines, strict=True)] == [True] * 3, text
    assert f"({path}): nothing reads it with advantage.name grpo; remove it or choose gae or" in text[0]
    assert "(command line): nothing reads it with loss.name ppo_clip; remove it or choose sapo" in text[2]
    assert compose("demo", ["kl.coef=0"])[0].config.reference.ranks == 2  # a shipped recipe's may be idle
    assert errors_of("demo", "loss.dual_clip=3", "loss.name=cispo").count("loss.dual_clip") == 1  # not told twice


def run_sweep(name: str, *overrides: str) -> list[tuple[Config, dict[str, str]]]:
    composed, for_hydra = compose(name, list(overrides), multirun=True)
    ran = []
    assert run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, c: ran.append((cfg, c.set_by)) or 0) == 0
    return ran


def test_a_sweep_over_algorithms_composes_each_job_anew(tmp_path: Path) -> None:
    ran = run_sweep(
        "demo",
        f"run_dir={tmp_path}/s",
        "loss.clip_low=0.1",
        "algorithm=ppo,grpo,dapo",
        "rollout.vllm_args.a=1",
        "data.eval=a/b",
    )
    for i, (cfg, set_by) in enumerate(ran):
        name = ["ppo", "grpo", "dapo"][i]
        alone = values_of(
            "demo",
            f"run_dir={tmp_path}/s/{i}",
            f"algorithm={name}",
            "loss.clip_low=0.1",
            "rollout.vllm_args={a: 1}",
            "data.eval=a/b",
        )
        assert cfg == alone and set(set_by) == {"run_dir", "loss.clip_low", "rollout.vllm_args", "data.eval"}
    assert [cfg.critic.ranks for cfg, _ in ran] == [2, 0, 0] and [cfg.kl.coef for cfg, _ in ran] == [0.02, 0.04, 0.0]


def test_a_sweep_over_run_directories_keeps_them(tmp_path: Path) -> None:
    ran = run_sweep("demo", f"run_dir={tmp_path}/a,{tmp_path}/b", "algorithm=rloo")
    assert [cfg.run_dir for cfg, _ in ran] == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_a_sweep_asks_each_job_whether_a_key_counts_in_it(recipe: str, tmp_path: Path) -> None:
    """But where nothing that decides it is swept, it is known for all of them."""
    assert "kl.horizon (command line): nothing reads it" in errors_of(recipe, "seed=1,2", "kl.horizon=5", multirun=True)
    lines = [f"run_dir={tmp_path}", "kl.coef=0.1,0", "reference.ranks=2"]
    composed, for_hydra = compose(recipe, lines, multirun=True)
    ran: list[float] = []
    with pytest.raises(ConfigError, match=r"reference.ranks .command line.: nothing reads it with kl.coef 0;"):
        run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, _: ran.append(cfg.kl.coef) or 0)
    assert ran == [0.1]


def test_a_sweep_is_checked_whole_before_its_first_job(recipe: str) -> None:
    with pytest.raises(ConfigError) as e:
        compose(recipe, ["algorithm=grpp,gspo,grpo", "correction.name=mask_token", "steps=0"], multirun=True)
    text = str(e.value)
    assert "did you mean grpo?" in text and "loss.name is gspo with correction.name mask_token" in text
    assert text.count("steps is 0") == 1 and text.count("\n") == 2


def test_resuming_goes_on_with_the_runs_algorithm(recipe: str, tmp_path: Path) -> None:
    composed, _ = compose(recipe, ["algorithm=ppo", "kl.coef=0.5", "loss.clip_low=0.1"])
    OmegaConf.save(composed.config, tmp_path / "config.yaml")
    again = as_config(compose_run(tmp_path, ["steps=9", "advantage.whiten=false"]).config)
    was = as_config(composed.config)
    assert (again.kl, again.loss, again.critic) == (was.kl, was.loss, was.critic)
    assert (again.algorithm, again.steps, again.advantage.whiten) == ("ppo", 9, False)
    with pytest.raises(ConfigError, match=r"kl.horizon .command line.: nothing reads it with kl.target null"):
        compose_run(tmp_path, ["kl.horizon=5"])
    with pytest.raises(ConfigError, match="algorithm=dapo .command line.: a run goes on with its algorithm, ppo"):
        compose_run(tmp_path, ["algorithm=dapo"])


def test_resuming_goes_on_as_the_same_stage(recipe: str, tmp_path: Path) -> None:
    stages = {"sft": "demo_sft", "train-rm": "demo_rm", "dpo": "demo_dpo", "train": recipe}
    for command, name in stages.items():
        composed, _ = compose(name, ["model.path=a/b"], command=command)
        OmegaConf.save(composed.config, tmp_path / "config.yaml")
        assert compose_run(tmp_path, ["steps=9"]).config.steps == 9
        for loss in {"sft", "bradley_terry", "dpo", "ppo_clip"} - {composed.config.loss.name}:
            with pytest.raises(
                ConfigError, match=f"loss.name={loss} .command line.: a run goes on as `rlcore {command}`"
            ):
                compose_run(tmp_path, [f"loss.name={loss}"])
    assert compose_run(tmp_path, ["loss.name=cispo"]).config.loss.name == "cispo"


def test_training_and_fine_tuning_are_told_apart(recipe: str) -> None:
    def refused(name: str, command: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as e:
            compose(name, list(overrides), command=command)
        assert "\n" not in str(e.value), e.value
        return str(e.value)

    assert "loss.name (command line) is sft: train needs a reward" in refused("demo", "train", "loss.name=sft")
    assert "loss.name (recipe demo_sft) is sft" in refused("demo_sft", "train", "model.path=a/b")
    for algorithm in ("ppo", "grpo"):
        text = refused("demo_sft", "sft", "model.path=a/b", f"algorithm={algorithm}")
        assert f"algorithm (command line) is {algorithm}: sft has no algorithm; leave it out" in text
    assert "algorithm (recipe demo) is grpo: sft has no algorithm" in refused("demo", "sft", "loss.name=sft")
    assert "loss.name (default) is ppo_clip: rlcore sft needs loss.name=sft" in refused(recipe, "sft")
    compose("demo_sft", ["model.path=a/b"], command="sft")
    compose("demo", ["algorithm=null", "loss.name=sft", "kl.coef=0"], command="sft")
    compose(recipe, [], command="train")


@pytest.mark.parametrize(
    "args", [["--config-name"], ["steps=3", "-cn"], ["--config-name="], ["--config-name", "--cfg"], ["-cd"]], ids=str
)
def test_a_flag_without_its_value_is_refused(args: list[str]) -> None:
    with pytest.raises(ConfigError, match="needs a value: --config-name NAME"):
        from_hydra_names(args)


def test_config_dir_and_overrides_reach_the_command() -> None:
    for name in ("mine", "mine.yaml"):
        args = ["--config-name", name, "--config-dir=here", "a.b=", "c=d=e", "--cfg"]
        assert from_hydra_names(args) == ["here/mine.yaml", "a.b=", "c=d=e", "--cfg"]
    assert from_hydra_names(["-cn=demo", "seed=1"]) == ["demo", "seed=1"]


def test_the_last_words_call_only_shares_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reward of 1.2 is no accuracy of 120 %."""
    lines = [
        {"time": 0.0, "step": i, "eval/a/accuracy": i * 0.5, "eval/b/accuracy": i * 1.2, "eval/c/accuracy": None}
        for i in range(2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "rollouts").mkdir()
    last_words(tmp_path, tmp_path / "export", "again", 1.0)
    out = capsys.readouterr().out
    assert "eval/a/accuracy: before 0.0%, after 50.0%" in out and "eval/b/accuracy: before 0, after 1.2" in out


def test_a_key_nothing_read_is_said_at_the_end(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It could not be known at the start: a run that goes on may read it."""
    composed, _ = compose(recipe, ["save_every_steps=50", "eval.every_steps=2", "data.eval=a/b", "actor.offload=true"])
    cfg = as_config(composed.config)
    by_workers = set(all_keys().values()) - {"Config.save_every_steps", "EvalConfig.every_steps", "ActorConfig.offload"}
    forget_reads()
    assert cfg.eval.every_steps == 2  # this process reads it
    unread = unread_keys(composed, by_workers)
    assert unread == {"save_every_steps": "command line", "actor.offload": "command line"}
    say_unread(unread)
    assert capsys.readouterr().out.splitlines() == [
        "[rlcore] actor.offload (command line): had no effect on this kind of device",
        "[rlcore] nothing read save_every_steps (command line): it had no effect in this run",
    ]
    assert unread_keys(composed, set(all_keys().values())) == {}
    say_unread({})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (
            ["tran"],
            2,
            "no command 'tran'; did you mean train?; there are: train, sft, train-rm, dpo, rewards, serve-reward, ",
        ),
        (["train"], 2, "ConfigError: rlcore train takes one recipe, got none; recipes: demo,"),
        (["sft", "demo_sft", "other"], 2, "rlcore sft takes one recipe, got ['demo_sft', 'other']"),
        (["resume", "steps=3"], 2, "rlcore resume takes a run directory first"),
        (["resume", "nowhere"], 2, "nowhere holds no run"),
        (["export", "nowhere"], 6, "CheckpointError: no run directory nowhere"),
        (
            ["export", "a", "\x1b[31m"],
            2,
            "rlcore: ConfigError: unrecognized arguments: \\x1b[31m; rlcore export --help",
        ),
        (["export", "a", "--dtype", "half"], 2, "rlcore: ConfigError: argument --dtype: invalid choice: 'half'"),
        (["serve-reward", "gsm8k", "--port", "x"], 2, "rlcore: ConfigError: argument --port: invalid int value: 'x'"),
        (["rewards", "test", "gsm8k"], 2, "rlcore: ConfigError: the following arguments are required: --data"),
    ],
    ids=str,
)
def test_a_command_that_cannot_begin_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], code: int, says: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlcore", *args])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("rlcore.surroundings.settle", lambda: None)
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == code and says in capsys.readouterr().err


def test_help_lists_commands_and_recipes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("rlcore.surroundings.settle", lambda: None)
    for args in ([], ["--help"], ["train", "--help"]):
        monkeypatch.setattr(sys, "argv", ["rlcore", *args])
        with pytest.raises(SystemExit) as e:
            main()
        out = capsys.readouterr().out
        assert e.value.code == 0 and "rlcore resume RUN_DIR" in out and "a recipe: demo, " in out


def test_recipes_are_packaged() -> None:
    """Every file is one that pyproject.toml has put into the wheel."""
    project = tomllib.loads((RECIPES.parent / "pyproject.toml").read_text())
    packed = {p for pattern in project["tool"]["setuptools"]["package-data"]["recipes"] for p in RECIPES.glob(pattern)}
    assert packed == set(RECIPES.rglob("*.yaml")) and {"demo"} <= set(recipe_names())
    assert {"ppo", "grpo", "dapo"} <= set(algorithm_names())
