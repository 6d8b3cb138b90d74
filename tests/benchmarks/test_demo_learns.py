"""`make bench`: the embedded default really learns, for three seeds. Minutes each; prints what the README shows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-c", "from rlcore.cli import main; main()"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_rises_by_25_points_for_each_of_three_seeds(tmp_path: Path) -> None:
    rises = []
    for seed in range(3):
        run_dir = tmp_path / f"seed{seed}"
        began = time.monotonic()
        subprocess.run([*PROGRAM, "train", "demo", f"seed={seed}", f"run_dir={run_dir}"], check=True)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        accuracy = [r["eval/arithmetic/accuracy"] for r in rows if "eval/arithmetic/accuracy" in r]
        training = rows[-1]["time"] - rows[0]["time"]
        rises.append(accuracy[-1] - accuracy[0])
        print(
            f"seed {seed}: {accuracy[0]:.1%} -> {accuracy[-1]:.1%}, {rows[-1]['step']} steps, training "
            f"{training / 60:.1f} min, with start-up {(time.monotonic() - began) / 60:.1f} min",
            flush=True,
        )
    assert min(rises) >= 0.25
