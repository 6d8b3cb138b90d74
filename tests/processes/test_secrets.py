"""Secrets and control characters of a real reward that fails: in no file of the run, nor raw on the screen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.processes.loopback import Answer, closed_port_url, serving

SECRETS = {"JUDGE_ID": "hunter2/of+the=judge", "ODD": "opensesame", "MY_API_KEY": "by-its-name"}
CODES = "\x1b]52;c;aGk=\x07\x1b[2J\r\x9b31m\u202e\u2066\x08"

MINE = """
import os
import urllib.parse

def whole(prompt, response, *, url, whatever):
    said = f"{url} {whatever} {os.environ['MY_API_KEY']} {urllib.parse.quote(url)} {CODES}"
    raise ValueError(said + "x" * 480 + whatever * 9 + said)

def many(prompts, responses, *, url, whatever):
    from rlcore.isolated.outcome import BadValue
    raise BadValue("x" * (500 - len(whatever) // 2) + f"{whatever} {url}")
"""


def left_in(run_dir: Path, *texts: str) -> dict[str, list[str]]:
    """Where any of these, whole or its first half, is: in a file's name, a file, a text."""
    wanted = [form for v in SECRETS.values() for form in (v, v[: len(v) // 2 + 2], quote(v, safe=""))]
    found = {str(p): p.read_bytes().decode(errors="replace") for p in run_dir.rglob("*") if p.is_file()}
    found |= {f"text {i}": text for i, text in enumerate(texts)}
    return {k: hit for k, text in found.items() if (hit := [w for w in wanted if w in text or w in k])}


def failing(run_dir: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.processes.failing_rewards", str(run_dir), *settings]
    env = os.environ | SECRETS | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("function", ["whole", "many"])
def test_no_secret_of_a_failing_function_is_left_anywhere(tmp_path: Path, function: str) -> None:
    (tmp_path / "mine.py").write_text(f"CODES = {CODES!r}\n{MINE}")
    run_dir = tmp_path / "run"
    done = failing(
        run_dir,
        f"reward.fns=[{tmp_path}/mine.py:{function}]",
        f"reward.args.{function}.url=https://h/v1?key=${{oc.env:JUDGE_ID}}",
        f"reward.args.{function}.whatever=${{oc.env:ODD}}",
        "tracker.sinks=[tensorboard,wandb]",
    )
    assert done.returncode == 3, done.stderr
    assert left_in(run_dir, done.stdout, done.stderr) == {}
    assert "***" in done.stderr and "***" in (run_dir / "quarantine.jsonl").read_text()
    assert "key=${oc.env:JUDGE_ID}" in (run_dir / "config.yaml").read_text()
    for file in ("events.jsonl", "rollouts/step_000001.jsonl", "rollouts/eval_a_step_000001.jsonl"):
        assert "***" in (run_dir / file).read_text(), file
    shown = done.stdout + done.stderr
    assert re.findall(r"[^\n -~]", shown) == []
    if function == "whole":
        assert "\\x1b]52;c;aGk=\\x07\\x1b[2J\\r\\x9b31m\\u202e\\u2066\\x08" in shown
        (line,) = (run_dir / "quarantine.jsonl").read_text().splitlines()
        assert CODES in json.loads(line)["message"]  # a file keeps what was said


@pytest.mark.parametrize("answer", ["refuses", "is not there"])
def test_no_secret_of_a_judges_url_is_left_anywhere(tmp_path: Path, answer: str) -> None:
    run_dir, secret = tmp_path / "run", SECRETS["JUDGE_ID"]
    said = Answer({"error": {"message": f"no key {secret} or {quote(secret, safe='')} in /v1?key={secret}"}}, code=403)
    settings = ["reward.fns=[judge]", "reward.args.judge.model=m", "reward.args.judge.retries=0"]
    with serving(said) as server:
        url = f"{server.url}/v1" if answer == "refuses" else closed_port_url()
        settings += [f"reward.args.judge.url={url}?key=${{oc.env:JUDGE_ID}}", "reward.timeout_seconds=100"]
        done = failing(run_dir, *settings)
    assert done.returncode == 3, done.stderr
    assert left_in(run_dir, done.stdout, done.stderr) == {}
    assert f"{url.removesuffix('/')}/chat/completions?***: " in done.stderr
    if answer == "refuses":
        assert server.paths == [f"/v1/chat/completions?key={secret}"]
        assert "403 no key *** or *** in /v1?key=***" in done.stderr


def test_resume_without_the_variable_names_it(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "from rlcore.cli import main; main()", "resume", str(tmp_path)]
    lines = ["reward.args.judge.url=https://h/v1?key=${oc.env:JUDGE_ID}", "reward.args.judge.model=m"]
    make = (
        "from rlcore.compose.compose import compose; from omegaconf import OmegaConf;"
        f"c, _ = compose('demo', ['reward.fns=[judge]', 'reward.timeout_seconds=100', *{lines!r}]);"
        f"open({str(tmp_path / 'config.yaml')!r}, 'w').write(OmegaConf.to_yaml(c.config))"
    )
    subprocess.run([sys.executable, "-c", make], env=os.environ | SECRETS, check=True)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "the environment variable JUDGE_ID is not set; export JUDGE_ID=" in done.stderr
    assert left_in(tmp_path, done.stdout, done.stderr) == {}


def test_the_resolved_run_is_shown_without_them() -> None:
    words = [sys.executable, "-m", "rlcore.train", "--config-name", "demo", "--cfg", "job", "--resolve"]
    words += ["reward.fns=[judge]", "reward.args.judge.url=https://h/v1?key=${oc.env:JUDGE_ID}", "steps=7"]
    words += ["reward.args.judge.model=m", "reward.timeout_seconds=100"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | SECRETS, timeout=60)
    assert done.returncode == 0 and "url: https://h/v1?key=***\n" in done.stdout and "steps: 7\n" in done.stdout
