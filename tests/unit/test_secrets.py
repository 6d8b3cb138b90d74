"""A secret that is written down is refused without being repeated; one that is referred to is known, and hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from omegaconf import OmegaConf

from rewards.over_http.http import Endpoint, ending_in
from rlcore import secret_values
from rlcore.cli.serve_reward import _options
from rlcore.compose.compose import as_config, compose, compose_rewards, compose_run, run_with_hydra
from rlcore.config import all_keys
from rlcore.errors import ConfigError
from rlcore.secret_values import clean, variables_in, without_secrets, written_in

JUDGE = ["reward.fns=[judge]", "reward.args.judge.model=m", "reward.timeout_seconds=120"]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(secret_values, "_known", set())
        patch.setattr(secret_values, "_of_variables", {})
        patch.setattr(secret_values, "_pattern", None)
        patch.setattr(secret_values, "_looked", False)
        patch.setenv(secret_values.VARIABLES, "")
        yield


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("reward.args.judge.url", "https://h/v1?key=hunter2", "hunter2"),
        ("reward.args.judge.url", "https://h/v1?a=b&Subscription-Key=hunter2#x", "hunter2"),
        ("reward.args.judge.url", "https://h/v1?api_key=hunter2", "hunter2"),
        ("reward.args.judge.url", "https://h/v1?code=hun%2Fter2", "hun/ter2"),
        ("reward.args.judge.url", "https://me:hunter2@h/v1", "hunter2"),
        ("reward.args.judge.url", "https://hunter2@h/v1", "hunter2"),
        ("data.train", ["s3://me:hunter2@bucket/a.jsonl"], "hunter2"),
        ("data.train", "https://h/a.jsonl?token=hunter2", "hunter2"),
        ("reward.args.mine.api_key", "hunter2", "hunter2"),
        ("reward.args.mine.apiKey", "hunter2", "hunter2"),
        ("reward.args.mine.clientSecret", "hunter2", "hunter2"),
        ("reward.args.mine.Ocp-Apim-Subscription-Key", "hunter2", "hunter2"),
        ("reward.args.mine.password", 12345678, "12345678"),
        ("reward.args.mine", {"headers": {"X-Api-Key": "hunter2"}}, "hunter2"),
        ("reward.args.mine", {"headers": {"Authorization": "Bearer hunter2"}}, "hunter2"),
        ("reward.args.mine", {"headers": [{"any": "bearer hunter2"}]}, "hunter2"),
        ("reward.args.mine.x", "Basic aHVudGVyMjpodW50ZXIy", "aHVudGVyMjpodW50ZXIy"),
        ("rollout.vllm_args.hf_token", "hunter2", "hunter2"),
        ("tracker.project", "sk-abcdefghijklmnop1234", "sk-abcdefghijklmnop1234"),
        ("reward.args.mine.x", "a hf_abcdefghijklmnopqrst b", "hf_abcdefghijklmnopqrst"),
        ("reward.args.judge.url", "https://h/v1?key=${oc.env:NO_SUCH,hunter2}", "hunter2"),
    ],
)
def test_what_is_written_down_is_refused_and_never_repeated(key: str, value: Any, secret: str) -> None:
    wrong = written_in(key, value)
    assert wrong is not None and "${oc.env:NAME}" in wrong and secret not in wrong
    if "oc.env" not in str(value):
        assert without_secrets(f"<{secret}>") == "<***>"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reward.args.judge.url", "https://h:8000/v1?key=${oc.env:NAME}"),
        ("reward.args.judge.url", "https://${oc.env:WHO}:${oc.env:PASS}@h/v1"),
        ("reward.args.judge.url", "http://127.0.0.1:8010/score?size=7&lang=en"),
        ("reward.args.judge.api_key_env", "MY_KEY"),
        ("reward.args.remote.token_env", "MY_TOKEN"),
        ("reward.args.mine", {"headers": {"Authorization": "Bearer ${oc.env:NAME}"}, "api_key": None, "secret": ""}),
        ("reward.args.mine.eos_token", "</s>"),
        ("reward.args.mine.max_tokens", 500),
        ("reward.args.mine.key", "answer"),
        ("reward.args.mine.api_key", "${oc.env:NAME}"),
        ("reward.args.mine.api_key", "${reward.args.other.api_key}"),
        ("tracker.name", "Basic training"),
        ("data.train", ["generate:countdown?size=20&seed=2", "/data/sk-models/a.jsonl", "ssh://git@h/x"]),
    ],
)
def test_what_is_no_secret_is_taken(key: str, value: Any) -> None:
    assert written_in(key, value) is None


def test_no_knob_is_called_like_a_secret() -> None:
    assert [key for key in all_keys() if written_in(key, "plain") is not None] == []


def test_values_are_hidden_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    value = 'se/cr+t "é\\'
    monkeypatch.setenv("ODD", value)
    assert written_in("reward.args.mine.url", "https://h/?key=${oc.env:ODD}") is None
    forms = [
        value,
        repr(value),
        json.dumps(value),
        "https://h/?key=se%2Fcr%2Bt%20%22%C3%A9%5C",
        "se/cr%2Bt+%22%C3%A9%5C",
    ]
    forms += [str(httpx.URL("https://h/", params={"key": value})), str(httpx.URL(f"https://h/?key={value}"))]
    for text in forms:
        assert "cr" not in without_secrets(text), text
    nested = {"why": [f"a {value}"], 3: (value, 1.5, None, True), value: Path(f"/x/{value}")}
    assert clean(nested) == {"why": ["a ***"], 3: ["***", 1.5, None, True], "***": "/x/***"}


def test_which_variables_are_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A word of any text must not be taken out of it, nor a path."""
    values = {"WORD": "answer", "COLUMN": "question_text", "ANY": "opensesame", "MY_API_KEY": "by-its-name"}
    values |= {"SORT_KEY": "answer", "SSL_KEY": str(tmp_path), "HOME": "/root", "UNUSED_SECRET": "never mentioned"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NAMED", "by the user")
    monkeypatch.setenv(secret_values.VARIABLES, "NAMED")
    assert without_secrets("this is by the user") == "this is ***"
    assert written_in("data.answer_column", "${oc.env:COLUMN}") is None
    assert written_in("reward.args.mine.whatever", "${oc.env:ANY}", free_form=True) is None
    text = " ".join(values.values())
    assert without_secrets(text) == f"answer question_text *** *** answer {tmp_path} /root ***"
    wrong = written_in("reward.args.mine.x", "so by-its-name is in it")
    assert wrong is not None and "the value of the environment variable MY_API_KEY in it" in wrong


def test_variables_without_which_a_line_has_no_value() -> None:
    assert variables_in({"a": ["${oc.env:X}/${oc.env:Y,1}", {"b": "${ oc.env:Z}"}]}) == ["X"]


def test_on_the_command_line_in_a_recipe_and_in_a_sweep(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("defaults: [demo, _self_]\nreward:\n  args: {x: {api_key: hunter2}}\n")
    url = "reward.args.judge.url=https://h/v1?key=hunter2"
    for name, line in (
        ("demo", url),
        ("demo", f"{url}&x=[1,2]"),
        ("demo", "reward.args.judge={url: 'https://h/v1?key=hunter2', model: m}"),
        ("demo", "+reward.args.judge.api_key=hunter2"),
        ("demo", "reward.args.judge.api_key=hunter2,hunter3"),
        (str(recipe), "steps=3"),
    ):
        with pytest.raises(ConfigError) as error:
            compose(name, [*JUDGE, line])
        assert "has a secret in it; write ${oc.env:NAME}" in str(error.value) and "hunter" not in str(error.value)
    with pytest.raises(ConfigError, match="reward.args.judge.url has a secret"):
        compose("demo", [*JUDGE, f"{url},https://h/v1?key=hunter3"], multirun=True)
    with pytest.raises(ConfigError, match="reward.args.judge.url has a secret"):
        compose_rewards({"reward.fns": ["judge"]}, [url])


def test_a_reference_stays_one_and_resume_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_ID", "hunter2")
    composed, for_hydra = compose("demo", [*JUDGE, "reward.args.judge.url=https://h/v1?key=${oc.env:JUDGE_ID}"])
    assert "hunter2" not in OmegaConf.to_yaml(composed.config) + str(for_hydra)
    assert as_config(composed.config).reward.args["judge"]["url"] == "https://h/v1?key=hunter2"
    assert without_secrets("hunter2") == "***"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(composed.config))
    assert as_config(compose_run(tmp_path, []).config).reward.args["judge"]["url"].endswith("hunter2")
    monkeypatch.delenv("JUDGE_ID")
    with pytest.raises(
        ConfigError, match=r"reward.args .*: the environment variable JUDGE_ID is not set; export JUDGE"
    ):
        compose_run(tmp_path, [])
    monkeypatch.setenv("N_STEPS", "hunter3")
    with pytest.raises(ConfigError, match=r"steps .*: what \$\{oc.env:N_STEPS\} stands for is no value of it") as error:
        compose("demo", ["steps=${oc.env:N_STEPS}"])
    assert "hunter3" not in str(error.value)


def test_a_reference_stays_one_in_every_job_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_ID", "hunter2")
    lines = [*JUDGE, "reward.args.judge.url=https://h/v1?key=${oc.env:JUDGE_ID}", "seed=1,2", f"run_dir={tmp_path}/s"]
    composed, for_hydra = compose("demo", lines, multirun=True)
    seen = []
    note = lambda cfg, mine: seen.append((cfg.seed, cfg.reward.args, OmegaConf.to_yaml(mine.config))) or 0  # noqa: E731
    assert run_with_hydra(composed, for_hydra, ["--multirun"], note) == 0
    assert [(seed, args["judge"]["url"]) for seed, args, _ in seen] == [(s, "https://h/v1?key=hunter2") for s in (1, 2)]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert "hunter2" not in "".join([*written, *(text for _, _, text in seen)])


def test_an_endpoint_has_no_query_in_what_it_says() -> None:
    assert ending_in("/chat/completions", "http://h/v1/?key=a/b") == "http://h/v1/chat/completions?key=a/b"
    assert ending_in("/chat/completions", "http://h/v1/chat/completions/") == "http://h/v1/chat/completions"
    endpoint = Endpoint("judge", "http://h/v1?key=hun%2Fter2&v=1", None, 1, 0, 1.0)
    assert endpoint.url == "http://h/v1?***"
    assert endpoint._discreet("no such key: hun/ter2 at http://h/v1?key=hun%2Fter2&v=1") == (
        "no such key: *** at http://h/v1?***"
    )
    with pytest.raises(ConfigError, match="url is 'ftp://h/v1', must be") as error:
        Endpoint("judge", "ftp://h/v1?key=hunter2", None, 1, 0, 1.0)
    assert "hunter2" not in str(error.value)


def test_options_of_a_served_function_are_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_ID", "hunter2")
    given = {"url": "https://h/v1?key=${oc.env:JUDGE_ID}", "scale": [0, 10], "n": None}
    assert _options(json.dumps(given)) == given | {"url": "https://h/v1?key=hunter2"}
    assert without_secrets("hunter2") == "***"
    for text, says in (
        ('{"api_key": "hunter3"}', "--args.api_key has a secret in it"),
        ('{"x": "${oc.env:NO_SUCH}"}', "the environment variable NO_SUCH is not set"),
        ('{"x": "${nothing}"}', "--args: .*nothing"),
    ):
        with pytest.raises(ConfigError, match=says) as error:
            _options(text)
        assert "hunter3" not in str(error.value)
