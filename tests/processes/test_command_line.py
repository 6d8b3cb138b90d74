"""The command line as a shell sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlcore.cli.shell import typed
from rlcore.cli.train import last_words, with_next_seed


def rlcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, timeout=60)


def test_the_command_line_prints_the_resolved_run() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "seed=3", "algorithm=dapo", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.create(done.stdout)
    assert (shown.seed, shown.algorithm, shown.loss.clip_high, shown.kl.coef) == (3, "dapo", 0.28, 0.0)


def test_a_suggested_command_can_be_pasted_into_a_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "data.train=[generate:countdown?size=20&seed=2, b c.jsonl]",
        "reward.sources={odd: [gsm8k_strict]}",
        "steps=2",
    ]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rlcore"])
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    again = with_next_seed("train", "demo", [*given, "seed=4", f"run_dir={tmp_path}/a"], seed=4)
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {again}"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["rlcore", "train", "demo", *given, "seed=5"]

    metrics = tmp_path / "a b" / "metrics.jsonl"
    (metrics.parent / "rollouts").mkdir(parents=True)
    metrics.write_text('{"time": 0, "step": 0}\n')
    last_words(metrics.parent, metrics.parent / "export", again, 1.0)
    assert f"[rlcore] next: {again}\n" in capsys.readouterr().out
    assert typed("resume", metrics.parent) == f"rlcore resume '{metrics.parent}'"
    monkeypatch.setattr(sys, "argv", ["/my programs/rlcore"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert typed("export", "r") == "'/my programs/rlcore' export r"


def test_a_wrong_key_exits_2_before_anything_heavy_is_imported() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "rollout.engine=2")
    assert done.returncode == 2
    assert "did you mean rollout.engines?" in done.stderr and "Traceback" not in done.stderr
    code = "import sys, rlcore.compose.compose; print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert heavy.stdout.strip() == "[]", heavy.stdout + heavy.stderr
