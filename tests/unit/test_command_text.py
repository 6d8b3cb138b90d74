r"""Texts on a command line: they arrive as they were typed, with `\n` as a line break where a model reads them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlcore.cli.shell import typed
from rlcore.cli.train import with_next_seed
from rlcore.compose.compose import RECIPES, as_config, compose, compose_rewards, compose_run, run_with_hydra
from rlcore.config import value_of
from rlcore.errors import ConfigError

MINE = """
model: {path: some/model}
data: {train: "generate:arithmetic?size=10&seed=1"}
reward: {fns: [judge], timeout_seconds: 100}
steps: 3
"""
# As they are typed in a shell, the key they set, and what must come of it.
TEXTS = [
    (r"data.prompt_template='{prompt}\nPut it in \boxed{{}}.'", "{prompt}\nPut it in \\boxed{{}}."),
    (r"data.prompt_template='{prompt}\nPut it in \\boxed{{}}.'", "{prompt}\nPut it in \\boxed{{}}."),
    (r'data.prompt_template="{prompt}\nIn \boxed{{}}."', "{prompt}\nIn \\boxed{{}}."),
    (r"""'data.prompt_template="{prompt}\nIn \boxed{{}}."'""", "{prompt}\nIn \\boxed{{}}."),
    (r"data.prompt_template='\\neq \nWell \text \frac {prompt} \'", "\\neq \nWell \\text \\frac {prompt} \\"),
    ("data.prompt_template='{prompt}\nWell?'", "{prompt}\nWell?"),
    (r"data.system_prompt='Be brief.\n'", "Be brief.\n"),
    ("data.system_prompt=' Be brief: x=1. '", " Be brief: x=1. "),
    ('data.system_prompt="It\'s \\"so\\""', 'It\'s "so"'),
    ("data.system_prompt=2026_11", "2026_11"),
    ("data.system_prompt=true", "true"),
    ("data.system_prompt=[INST]", "[INST]"),
    ("data.system_prompt=null", None),
    ("data.system_prompt=\"'null'\"", "null"),
    (r"""rollout.stop='["\n\n", "\\n"]'""", ["\n\n", "\\n"]),
    (r"rollout.stop='\n\n'", ["\n\n"]),
    (r"rollout.stop=['Question:']", ["Question:"]),
    ("rollout.stop=007", ["007"]),
    (r"reward.args.judge.template='a\n{response} \boxed'", {"judge": {"template": "a\n{response} \\boxed"}}),
    (r"""'reward.args={judge: {template: "a\nb"}}'""", {"judge": {"template": "a\nb"}}),
    ("data.chat_template_args.enable_thinking=false", {"enable_thinking": False}),
    # What is no text for a model has no line breaks.
    (r"tracker.name='a\new'", r"a\new"),
    ("tracker.name=1e5", "1e5"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def of(config: Any, override: str) -> Any:
    key = override.partition("=")[0]
    root = next((k for k in ("reward.args", "data.chat_template_args") if key.startswith(k)), key)
    return value_of(as_config(config), root)


def in_turn() -> list[list[tuple[str, Any]]]:
    """TEXTS in lists that set every key at most once."""
    lists: list[list[tuple[str, Any]]] = []
    for shell, want in TEXTS:
        key = re.split("[=.]", shlex.split(shell)[0])[:2]
        free = (each for each in lists if all(re.split("[=.]", shlex.split(s)[0])[:2] != key for s, _ in each))
        found = next(free, None)
        lists.append(found := []) if found is None else None
        found.append((shell, want))
    return lists


@pytest.mark.parametrize("texts", in_turn())
def test_a_text_arrives_as_it_was_typed(recipe: str, tmp_path: Path, texts: list[tuple[str, Any]]) -> None:
    overrides = [shlex.split(shell)[0] for shell, _ in texts]
    more = [f"run_dir={tmp_path}", "tracker.sinks=[wandb]"]

    def require(config: Any) -> int:
        assert [of(config, o) for o in overrides] == [want for _, want in texts]
        return 0

    require(compose(recipe, [*more, *overrides])[0].config)
    # A sweep's job, in which Hydra reads the command line and writes it anew.
    composed, for_hydra = compose(recipe, [*more, *overrides], multirun=True)
    assert run_with_hydra(composed, for_hydra, ["--multirun"], lambda _, given: require(given.config)) == 0
    # The run's own config, and changes to it.
    OmegaConf.save(composed.config, tmp_path / "config.yaml")
    require(compose_run(tmp_path, []).config)
    require(compose_run(tmp_path, overrides).config)
    # The command that is suggested at the end.
    again = shlex.split(with_next_seed("train", recipe, [*more, *overrides], 0))
    assert again[1:3] == ["train", recipe]
    require(compose(recipe, again[3:])[0].config)


def test_texts_with_commas(recipe: str, tmp_path: Path) -> None:
    """A comma is part of a text, but of a sweep over it, where quotes keep it together."""
    override = r"data.system_prompt='a, \nb','Think so. \n'"
    cfg = as_config(compose(recipe, ["data.system_prompt=Think, then answer."])[0].config)
    assert cfg.data.system_prompt == "Think, then answer."
    composed, for_hydra = compose(recipe, [f"run_dir={tmp_path}/s", override], multirun=True)
    seen = []
    run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, _: seen.append(cfg.data.system_prompt) or 0)
    assert seen == ["a, \nb", "Think so. \n"] and composed.config.data.system_prompt == seen[-1]
    with pytest.raises(ConfigError, match="several values need --multirun"):
        compose(recipe, ["model.path=a/b,c/d"])


def test_a_command_of_tex_is_no_line_break(recipe: str) -> None:
    for text, command in ((r"{prompt}\neq 0", "neq"), (r"\nabla{prompt}", "nabla"), (r"\\\nu {prompt}", "nu")):
        with pytest.raises(ConfigError, match=rf"a line break and '{command[1:]}'; write \\\\{command} for TeX's"):
            compose(recipe, [f"data.prompt_template={text}"])
    for text, want in (
        (r"{prompt}\\neq 0", r"{prompt}\neq 0"),
        (r"{prompt}\next, \not_x", "{prompt}\next, \not_x"),
        (r"{prompt}\Nu", r"{prompt}\Nu"),
    ):
        composed, _ = compose(recipe, [f"data.prompt_template={text}"])
        assert composed.config.data.prompt_template == want


def test_what_is_read_as_something_else_in_a_list_is_refused(recipe: str) -> None:
    for text, read in (("1_0", "10"), ("true", "True"), ("1e5", "100000.0")):
        with pytest.raises(ConfigError, match=f"one of these texts reads as {read}; write it in quotes"):
            compose(recipe, [f"rollout.stop=[x, {text}]"])
    cfg = as_config(compose(recipe, ["rollout.stop=[10, '1_0', True]"])[0].config)
    assert cfg.rollout.stop == ["10", "1_0", "True"]


@pytest.mark.parametrize("name", ['it\'s a "run"', r"a\new\\x", "lr=1e-4, [ü] {$c}", "2026_11"])
def test_a_run_directory_may_be_called_anything(recipe: str, tmp_path: Path, name: str) -> None:
    where = tmp_path / name
    composed, for_hydra = compose(recipe, [f"run_dir='{where}'" if "," in name else f"run_dir={where}"])
    ran = []
    run_with_hydra(composed, for_hydra, [], lambda cfg, _: ran.append(cfg.run_dir) or 0)
    assert ran == [str(where)] == [composed.config.run_dir]
    escaped = str(where).replace("'", r"\'")
    composed, for_hydra = compose(recipe, [f"run_dir='{escaped}'"], multirun=True)
    run_with_hydra(composed, for_hydra, ["--multirun"], lambda cfg, _: ran.append(cfg.run_dir) or 0)
    assert ran[1:] == [f"{where}/0"]
    assert shlex.split(typed("resume", where))[1:] == ["resume", str(where)]


@pytest.mark.parametrize(
    ("yaml", "want"),
    [
        (r"'{prompt}\nIn \boxed{{}}.'", "{prompt}\\nIn \\boxed{{}}."),
        (r'"{prompt}\nIn \\boxed{{}}."', "{prompt}\nIn \\boxed{{}}."),
        ("|-\n    {prompt}\n    In \\boxed{{}}.", "{prompt}\nIn \\boxed{{}}."),
    ],
)
def test_in_a_file_a_text_is_what_yaml_says(tmp_path: Path, yaml: str, want: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace("data: {", f"data:\n  prompt_template: {yaml}\n  ").replace('1"}', '1"'))
    composed, _ = compose(str(path), [f"run_dir={tmp_path}"])
    assert composed.config.data.prompt_template == want
    OmegaConf.save(composed.config, tmp_path / "config.yaml")
    assert compose_run(tmp_path, []).config.data.prompt_template == want


@pytest.mark.parametrize("code", ["\\b", "\\r"])
def test_a_backslash_that_yaml_took_for_a_control_code_is_refused(recipe: str, tmp_path: Path, code: str) -> None:
    keys = {"data.prompt_template": "prompt_template: '{prompt} %s'", "data.system_prompt": "system_prompt: '%s'"}
    texts = ", ".join(text.replace("'", '"') % f"{code}oxed" for text in keys.values())
    path = tmp_path / "wrong.yaml"
    path.write_text(f'defaults: [mine, _self_]\ndata: {{{texts}}}\nrollout: {{stop: ["{code}oxed"]}}\n')
    with pytest.raises(ConfigError) as e:
        compose(str(path), [])
    for key in (*keys, "rollout.stop"):
        assert re.search(rf"{key} has the control code .* before 'oxed': in YAML's double quotes", str(e.value))
    compose(recipe, ["data.system_prompt=a\tb\r\nc"])


def test_the_reward_test_reads_texts_the_same_way() -> None:
    cfg = compose_rewards(
        {"reward.fns": ["gsm8k"], "data.train": ["a"]}, [r"data.prompt_template={prompt}\n\boxed{{}}"]
    )
    assert cfg.data.prompt_template == "{prompt}\n\\boxed{{}}"


def test_hydras_keys_do_not_resume_a_run(recipe: str, tmp_path: Path) -> None:
    OmegaConf.save(compose(recipe, [f"run_dir={tmp_path}"])[0].config, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="hydra.job.chdir=true .* not Hydra's"):
        compose_run(tmp_path, ["hydra.job.chdir=true"])


def header_commands() -> list[list[str]]:
    """Every `rlcore COMMAND ...` in a comment of a recipe, as a shell reads it."""
    found = []
    for path in sorted(RECIPES.glob("**/*.yaml")):
        comments = "\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
        lines = comments.replace("\\\n", " ")
        found += [shlex.split(c) for c in re.findall(r"^ +(rlcore .*)$", lines, re.MULTILINE)]
    return found


@pytest.mark.parametrize("words", header_commands(), ids=lambda words: " ".join(words)[:60])
def test_the_commands_in_recipes_compose(words: list[str]) -> None:
    _, command, name, *overrides = (word.replace("HUB_ID_OR_DIR", "owner/name") for word in words)
    composed, _ = compose(name, overrides, command=command)
    if any(o.startswith("data.prompt_template=") for o in overrides):
        assert composed.config.data.prompt_template == (
            "Question: {prompt}\nReason step by step and put the final answer within \\boxed{{}}.\nAnswer:"
        )
        assert composed.config.rollout.stop == ["Question:"]


def test_there_are_commands_in_recipes() -> None:
    assert len(header_commands()) >= 5 and any("data.prompt_template" in " ".join(c) for c in header_commands())
