"""What of a run's files and sinks needs a process of its own to be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from tests.unit.test_tracker import lines, tracker


def test_a_killed_run_loses_at_most_one_line(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from rlcore.config import TrackerConfig
from rlcore.runs.tracker import Tracker
run = Tracker(Path({str(tmp_path)!r}), TrackerConfig(), {{"a": 1}}, 10)
for step in range(1, 6):
    run.log(step, {{"x": step}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    assert [line["x"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tracker(tmp_path, ["wandb"])
    run.log(1, {"reward/mean": 0.5})
    run.close("done")
    wandb.teardown()  # it reads its environment once a process
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == (1 if mode == "offline" else 0)
