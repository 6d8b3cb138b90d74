"""What the command line does with right and wrong keys, before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlcore.check import check
from rlcore.compose import RECIPES, as_config, compose, compose_run, parse_override, recipe_names, run_with_hydra
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
    assert (cfg.actor.ranks, cfg.data.train, cfg.data.eval) == (2, "generate:countdown?size=5&seed=7", ["a/b@c"])
    assert cfg.steps == 3 and composed.set_by["actor.ranks"] == "command line" and composed.set_by["steps"] == recipe


def test_every_error_is_listed_at_once(recipe: str) -> None:
    text = errors_of(
        recipe, "actor.rank=2", "learning_rate=1", "actor.ranks=two", "sync.backend=shmm", "rollout.top_p=0.9",
        "rollout.temperature=0.5", "steps=-1", "foo",
    )  # fmt: skip
    for part in (
        "actor.rank (command line) is not a key; did you mean actor.ranks?",
        "learning_rate (command line) is not a key; did you mean actor.learning_rate?",
        "actor.ranks (command line): 'two' is not a int",
        "'shmm' is not one of auto, shm, ipc, nccl; did you mean shm?",
        "when tokens are ruled out",
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
        "actor.beta2": str(path), "rollout.vllm_args": str(path), "steps": "command line"
    }  # fmt: skip
    assert composed.config.reference.ranks == 2 and composed.origins["reference.ranks"].endswith("from its defaults")
    assert compose("demo", [])[0].set_by == {}


def test_interpolations_work_and_bad_ones_are_listed(recipe: str, tmp_path: Path) -> None:
    assert (
        as_config(compose(recipe, ["actor.ranks=2", "reference.ranks=${actor.ranks}"])[0].config).reference.ranks == 2
    )
    text = errors_of(
        recipe, "reference.ranks=${actor.rank}", "seed=${model.path}", "data.eval=['${gone}']", "steps=${actor.epochs}",
        "rollout.vllm_args.a=${gone}", "kl.coef=${oc.env:RLCORE_NOT_SET}", "actor.rank=1", "run_dir=${nowhere}",
    )  # fmt: skip
    for key in ("reference.ranks", "seed", "data.eval", "steps", "rollout.vllm_args", "kl.coef", "run_dir"):
        assert text.count(f". {key} (command line): ") == 1, text
    assert "Interpolation key 'actor.rank' not found" in text and "did you mean actor.ranks?" in text
    assert "steps is required" not in text
    path = tmp_path / "bad.yaml"
    path.write_text(MINE + "reference: {ranks: '${actor.rank}'}\n")
    assert f"reference.ranks ({path}): Interpolation key 'actor.rank' not found" in errors_of(str(path))
    assert compose(str(path), ["reference.ranks=2"])[0].config.reference.ranks == 2
    assert "seed (command line): Recursive" in errors_of(recipe, "seed=${steps}", "steps=${seed}")
    path.write_text(MINE + "reference: {ranks: '${actor'}\n")
    assert f"{path}: cannot be read as a recipe: reference.ranks: no viable" in errors_of(str(path))


def test_a_bad_interpolation_in_a_sweep_is_a_config_error(recipe: str, tmp_path: Path) -> None:
    composed, for_hydra = compose(recipe, [f"run_dir={tmp_path}/sweep", "seed=${stepz},1"], multirun=True)
    ran = []
    with pytest.raises(ConfigError, match=r"^seed \(command line\): Interpolation key 'stepz' not found"):
        run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, _: ran.append(cfg) or 0)


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


def test_reads_are_remembered_and_composing_does_not_count(recipe: str) -> None:
    composed, _ = compose(recipe, [])
    cfg = as_config(composed.config)
    assert fields_read() == set()
    assert cfg.rollout.engines == 1
    assert fields_read() == {"Config.rollout", "RolloutConfig.engines"}
    forget_reads()


def test_every_field_has_a_key() -> None:
    assert all_keys()["rollout.engines"] == "RolloutConfig.engines"
    assert all(issubclass(type(v), Section) or k in all_keys() for k, v in vars(Config()).items())


def test_shipped_recipes_pass_but_for_what_the_user_must_give() -> None:
    for name in recipe_names():
        needed = {"gsm8k_grpo": ["model.path=some/model", "data.train=some/data"]}.get(name, [])
        composed, _ = compose(name, [*needed, "run_dir=nowhere"] if name != "demo_sft" else ["model.path=a/b"])
        assert check(as_config(composed.config)) == []


def rlcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, timeout=60)


def test_the_command_line_prints_the_resolved_run() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "seed=3", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).seed == 3


@pytest.mark.parametrize(
    "args", [["--config-name"], ["steps=3", "-cn"], ["--config-name="], ["--config-name", "--cfg"], ["-cd"]], ids=str
)
def test_a_flag_without_its_value_exits_2(monkeypatch, capsys, args: list[str]) -> None:
    from rlcore.train import main

    monkeypatch.setattr(sys, "argv", ["train", *args])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2 and "needs a value" in capsys.readouterr().err


def test_config_dir_and_overrides_reach_the_command(monkeypatch) -> None:
    from rlcore import cli, train

    seen = []
    monkeypatch.setattr(cli, "train_command", lambda args: seen.append(args) or 0)
    for name in ("mine", "mine.yaml"):
        monkeypatch.setattr(
            sys, "argv", ["train", "--config-name", name, "--config-dir=here", "a.b=", "c=d=e", "--cfg"]
        )
        with pytest.raises(SystemExit):
            train.main()
    assert seen == [["here/mine.yaml", "a.b=", "c=d=e", "--cfg"]] * 2


def test_a_wrong_key_exits_2_before_anything_heavy_is_imported() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "rollout.engine=2")
    assert done.returncode == 2
    assert "did you mean rollout.engines?" in done.stderr and "Traceback" not in done.stderr
    code = "import sys, rlcore.compose; print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert heavy.stdout.strip() == "[]", heavy.stdout + heavy.stderr


def test_recipes_are_packaged() -> None:
    assert RECIPES.name == "recipes" and "demo" in recipe_names()
