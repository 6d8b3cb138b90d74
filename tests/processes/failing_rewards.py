"""`python -m tests.processes.failing_rewards RUN_DIR KEY=VALUE ...`: what of a run can repeat what a reward said, with
the reward's real processes and without a model, by the command line's own way out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rewards.manager import RewardManager
from rlcore.cli.shell import guarded, say
from rlcore.compose.compose import Composed, as_config, compose
from rlcore.errors import WorkerError
from rlcore.records import Group, Prompt, Response, Rollout
from rlcore.runs.directory import recorded
from rlcore.runs.require_scores import require_scores
from rlcore.runs.tracker import Tracker
from rlcore.train.prepare import leave_out_unscorable
from tests.processes.rows import Rows


def work(run_dir: Path, settings: list[str]) -> int:
    composed, _ = compose("demo", [*settings, f"run_dir={run_dir}"])
    with recorded(run_dir):
        return run(run_dir, composed)


def run(run_dir: Path, composed: Composed) -> int:
    cfg, prompt = (
        as_config(composed.config),
        Prompt("a:1", [1], "7", {"question": "?"}, [{"role": "user", "content": ""}]),
    )
    tracker = Tracker(run_dir, cfg.tracker, composed.config, cfg.steps)
    manager = RewardManager(cfg.reward, 10, run_dir / "quarantine.jsonl")
    try:
        manager.ready(60.0)
        manager.submit(0, prompt, Response("7"))
        while not (done := manager.poll(1.0)):
            time.sleep(0.01)
    finally:
        manager.close()
    ((_, result),) = done
    rollout = Rollout(prompt, [1, 2], [0.0] * 2, [False, True], "stop", 0, "7", None, {}, result.status, result.why)
    groups = [Group([rollout])]
    tracker.rollouts(1, groups)
    tracker.evaluation(1, "a", {"accuracy": 0.0}, groups)
    tracker.log(1, {"reward/mean": 0.0})
    tracker.event("workers", reward=cfg.reward.args)
    why = next(iter(result.why.values()))
    leave_out_unscorable(Rows(30, why), Rows(30, why), cfg, say)  # type: ignore[arg-type]
    tracker.close("failed")
    error = WorkerError(f"reward model rank 0: {why}")
    error.details = why
    with_details = run_dir / "details"
    with_details.mkdir()
    assert guarded(lambda: raising(with_details, error)) == 4
    require_scores(groups, 0.0, str(run_dir / "quarantine.jsonl"))
    return 0


def raising(run_dir: Path, error: Exception) -> int:
    with recorded(run_dir):
        raise error


if __name__ == "__main__":
    sys.exit(guarded(lambda: work(Path(sys.argv[1]), sys.argv[2:])))
