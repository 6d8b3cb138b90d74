"""Supervised training's loop over a toy model: what it logs and saves, and that a killed one goes on to the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from rlcore.config import Config, fields_read, forget_reads
from rlcore.data.order import Order
from rlcore.runs.tracker import Tracker
from rlcore.train import fit as fitting


class Numbers:
    """0 to 9 in a seeded order."""

    def __init__(self) -> None:
        order = Order("numbers", 10, seed=0, shuffle=True)
        self.state, self.restore = order.state, order.restore
        self.take = lambda n: [row for row, _ in order.take(n)]


class Sum:
    """Learns the sum of all it was shown."""

    def __init__(self) -> None:
        self.weight = torch.zeros(1)
        self.group: Any = SimpleNamespace(call=lambda method, seconds: [], fields_read=lambda: {"of the ranks"})

    def update(self, batch: Any, step: int) -> dict[str, float]:
        self.weight = self.weight + batch.tokens.sum()
        return {"actor/loss": float(self.weight), "sync/logp_diff_max": 9.0, "correction/weight": 9.0}

    def save(self, directory: Path) -> None:
        (directory / "model").mkdir()
        (directory / "model/config.json").write_text("{}")
        save_file({"weight": self.weight}, directory / "model/model.safetensors")

    def load(self, directory: Path) -> None:
        self.weight = load_file(directory / "model/model.safetensors")["weight"]


def run(run_dir: Path, patch: pytest.MonkeyPatch, evaluate: Any = None, dies_at: int | None = None) -> Any:
    """Five steps with a checkpoint after 2 and 4; killed where step `dies_at` would be logged."""
    log = Tracker.log

    def log_or_die(self: Tracker, step: int, metrics: Any) -> None:
        if step == dies_at:
            raise KeyboardInterrupt
        log(self, step, metrics)

    cfg = Config()
    cfg.run_dir, cfg.steps, cfg.save_every_steps, cfg.prompts_per_step = str(run_dir), 5, 2, 4
    cfg.eval.every_steps = 3
    forget_reads()
    with patch.context() as each:
        each.setattr(fitting, "Cluster", lambda *args: SimpleNamespace(device="cpu", close=lambda: None))
        each.setattr(Tracker, "log", log_or_die)
        return fitting.fit(
            cfg, OmegaConf.create({}), "toy", "actor", lambda cfg, cluster, watch: Sum(),  # type: ignore[arg-type]
            Numbers(), lambda rows: SimpleNamespace(tokens=torch.tensor(rows)), evaluate,  # type: ignore[arg-type]
        )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "perf/tokens_per_second")} for line in found]


def half(model: Sum) -> dict[str, float]:
    return {"eval/toy/half": float(model.weight) / 2}


def test_without_an_evaluation_only_the_updates_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what compares with an engine, for there is none; and no knob of evaluations is read."""
    assert run(tmp_path, monkeypatch) == (tmp_path / "export", {"of the ranks"})
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [line.keys() for line in metrics] == [{"step", "actor/loss"}] * 5
    assert metrics[4]["actor/loss"] == load_file(tmp_path / "export/model.safetensors")["weight"] == 90
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step_000004", "step_000005"]
    assert lines(tmp_path / "events.jsonl") == [{"event": "closed", "status": "done"}]
    assert "EvalConfig.every_steps" not in fields_read()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", monkeypatch, dies_at=3)
    assert lines(tmp_path / "cut/events.jsonl") == [{"event": "closed", "status": "failed"}]


def test_evaluations_are_before_the_first_update_every_so_often_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "some", monkeypatch, half)
    metrics = lines(tmp_path / "some/metrics.jsonl")
    assert [(line["step"], line["eval/toy/half"]) for line in metrics if "eval/toy/half" in line] == [
        (0, 0.0), (3, metrics[3]["actor/loss"] / 2), (5, 45.0),
    ]  # fmt: skip
    run(tmp_path / "none", monkeypatch, lambda model: {})
    assert [line["step"] for line in lines(tmp_path / "none/metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_nothing_stays_of_an_attempt_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it there while the first step of the next one is under way."""
    for dies_at, left in ((2, [0, 1]), (0, [])):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, monkeypatch, half, dies_at)
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == left


@pytest.mark.parametrize("dies_at", [0, 1, 2, 3, 4, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    run(tmp_path / "whole", monkeypatch, half)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", monkeypatch, half, dies_at)
    assert lines(tmp_path / "cut/events.jsonl")[-1] == {"event": "closed", "status": "failed"}
    run(tmp_path / "cut", monkeypatch, half)
    assert lines(tmp_path / "cut/metrics.jsonl") == lines(tmp_path / "whole/metrics.jsonl")
    state, export = "checkpoints/step_000005/state.json", "export/model.safetensors"
    assert (tmp_path / "cut" / state).read_text() == (tmp_path / "whole" / state).read_text()
    assert (tmp_path / "cut" / export).read_bytes() == (tmp_path / "whole" / export).read_bytes()
