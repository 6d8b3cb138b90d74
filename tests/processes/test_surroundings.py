"""Commands in a folder and on a machine that are in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RLCORE = [sys.executable, "-c", "from rlcore.cli import main; main()"]
MODULE = [sys.executable, "-m", "rlcore.train", "--config-name"]
# Ours, what we import, and what that imports.
NAMES = ("rollout", "recipes", "datasets", "tokenizers", "transformers", "torch", "random", "queue", "hydra", "yaml")
ODD = 'it\'s "the" 1 ü=%d $HOME {a}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's, with files of other modules' names."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('taken for another')\n", encoding="utf-8")
    return tmp_path


def run(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}  # another test's hub
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_what_lies_in_the_users_folder_is_taken_for_nothing_else(folder: Path) -> None:
    """Nor is a hub asked for a minute that does not answer, nor is the run directory another than was said."""
    command = [*MODULE, "demo", "model.path=nobody/nothing", f"run_dir={folder}/{ODD}"]
    code, out = run(command, folder, LC_ALL="C", PYTHONPATH=f"{Path.cwd()}{os.pathsep}.")
    assert code == 2 and "ConfigError: model.path: no " in out and "nobody/nothing" in out, out
    assert "http://127.0.0.1:9 does not answer" in out and "Retrying" not in out
    assert "nobody/nothing" in (folder / ODD / "events.jsonl").read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {ODD}


def test_a_users_functions_are_found_there_and_what_lies_beside_them(folder: Path) -> None:
    (folder / "mine.py").write_text("import beside, random\ndef score(prompt, response): return beside.half()\n")
    (folder / "beside.py").write_text("def half(): return 0.5\n", encoding="utf-8")
    (folder / "a.jsonl").write_text('{"prompt": "Wie spät?", "answer": "½"}\n', encoding="utf-8")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/other.py").write_text("import far\ndef other(prompt, response): return far.third()\n")
    (folder / "elsewhere/far.py").write_text("def third(): return 0.25\n", encoding="utf-8")
    functions = ["mine.score", "elsewhere/other.py:other"]
    code, out = run([*RLCORE, "rewards", "test", *functions, "--data", "a.jsonl"], folder, LC_ALL="C")
    assert code == 0 and "Wie spät?" in out and "½" in out, out
    assert "parts: score 0.5, other 0.25" in out, out


def test_this_machine_is_not_asked_through_a_proxy(folder: Path) -> None:
    """As a judge is, in a process that a command has started."""
    (folder / "judge.py").write_text(
        "import threading\nfrom http.server import HTTPServer, SimpleHTTPRequestHandler\nimport httpx\n"
        "def score(prompt, response):\n"
        "    server = HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler)\n"
        "    threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "    return httpx.get(f'http://127.0.0.1:{server.server_port}/judge.py').status_code\n"
    )
    (folder / "a.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    none = {"no_proxy": "", "NO_PROXY": ""}
    code, out = run([*RLCORE, "rewards", "test", "judge.score", "--data", "a.jsonl"], folder, **proxies, **none)
    assert code == 0 and "score 200" in out, out


def test_a_dataset_that_no_hub_has_is_known_at_once(folder: Path) -> None:
    code, out = run([*RLCORE, "rewards", "test", "gsm8k", "--data", "nobody/nothing"], folder)
    assert code == 2 and "DataError: nobody/nothing: neither a " in out, out
    assert "Retrying" not in out


def test_a_text_that_the_terminal_lacks_ends_no_command(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"prompt": "Wie spät?", "answer": "½ ☃"}\n', encoding="utf-8")
    (folder / "mine.py").write_text("def score(prompt, response): return 1.0\n", encoding="utf-8")
    command = [*RLCORE, "rewards", "test", "mine.score", "--data", "a.jsonl"]
    code, out = run(command, folder, PYTHONIOENCODING="ascii")
    assert code == 0 and "Wie sp\\xe4t?" in out and "\\u2603" in out, out


def test_a_home_that_cannot_be_written_is_named_where_it_is_needed(folder: Path) -> None:
    """Only a model that is made once is kept there."""
    code, out = run([*MODULE, "demo", f"run_dir={folder}/run"], folder, HOME="/proc/self/nowhere")
    assert code == 2 and "ConfigError: cache_dir: no model can be kept in ~/.cache/rlcore: " in out, out


def test_a_folder_that_is_gone_is_said(folder: Path) -> None:
    code, out = run(["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "-", *MODULE, "demo"], folder)
    assert code == 2 and "the working directory has been deleted" in out, out
