"""What only a GPU can show: `pytest -m gpu`. The same code paths as tests/stack, in bfloat16, with sleep and wake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_model

pytestmark = pytest.mark.gpu
PROGRAM = [sys.executable, "-c", "from rlcore.cli import main; main()"]


def run(tmp_path: Path, *overrides: str) -> list[dict]:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(f"""
model: {{path: {make_tiny_model(tmp_path / "model")}}}
data: {{train: "generate:arithmetic?size=64&seed=1", max_prompt_tokens: 200}}
reward: {{fns: [gsm8k]}}
steps: 3
prompts_per_step: 4
rollouts_per_prompt: 4
rollout: {{max_response_tokens: 16, device_memory_fraction: 0.3}}
kl: {{coef: 0.01}}
actor: {{learning_rate: 1e-3}}
""")
    run_dir = tmp_path / "run"
    subprocess.run([*PROGRAM, "train", str(recipe), f"run_dir={run_dir}", *overrides], check=True, timeout=900)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_colocated_ipc_in_turns(tmp_path: Path, dtype: str) -> None:
    rows = run(tmp_path, f"model.dtype={dtype}", "sync.backend=ipc", "placement.device=gpu")
    # float32's too is wide: there vLLM's attention is Triton's, which multiplies in TF32, of 10 bits.
    assert max(r["sync/logp_diff_max"] for r in rows) < {"bfloat16": 0.6, "float32": 1e-3}[dtype]


@pytest.mark.skipif(torch.cuda.device_count() < 3, reason="split placement needs a GPU for each of three roles")
def test_split_nccl(tmp_path: Path) -> None:
    rows = run(tmp_path, "placement.mode=split", "sync.backend=nccl", "placement.device=gpu")
    assert max(r["sync/logp_diff_max"] for r in rows) < 0.6  # bfloat16
