"""What a run leaves on disk, also after a kill, and that the sinks get the same numbers."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf

from rlcore.config import TrackerConfig
from rlcore.errors import ConfigError
from rlcore.records import Group, Prompt, Rollout
from rlcore.runs.tracker import Tracker

CONFIG = {"steps": 4, "model": {"path": "demo"}}


def tracker(run_dir: Path, sinks: list[str] | None = None, **more: Any) -> Tracker:
    return Tracker(run_dir, TrackerConfig(sinks=sinks or [], name="a name"), CONFIG, steps=4, **more)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is no JSON")) for line in text.splitlines()]


def group(prompt_id: str = "train:1") -> Group:
    prompt = Prompt(prompt_id, [5, 6], "72", {"question": "?"})
    good = Rollout(prompt, [5, 6, 7], [0, 0, -1.0], [False, False, True], "stop", 3, "seven\n", 1.0, {"gsm8k": 1.0})
    mask, late = [False] * 2 + [True] * 2, {"gsm8k": "timeout"}
    bad = Rollout(prompt, [5, 6, 7, 8], [0, 0, -1, -1], mask, "length", 3, "\ud800", status=late)
    return Group([good, bad])


def test_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracker(tmp_path / "run", decode=lambda tokens: f"text of {tokens}")
    run.event("started", where=Path("x"))
    run.progress(1, 2)
    run.evaluation(0, "data/test.jsonl", {"accuracy": 0.25}, [group("test:0")])
    run.log(0, {"eval/data/test.jsonl/accuracy": 0.25})
    run.rollouts(1, [group()])
    run.log(1, {"reward/mean": 0.5, "response/tokens_mean": 61, "actor/kl": 0.001, "time/update_s": 2.0})
    run.close("done")
    run.close("failed")
    here = tmp_path / "run"
    assert OmegaConf.to_container(OmegaConf.load(here / "config.yaml")) == CONFIG
    metrics = lines(here / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [0, 1]
    assert metrics[1]["reward/mean"] == 0.5 and metrics[1]["response/tokens_mean"] == 61.0 and metrics[1]["time"] > 0
    assert [e["event"] for e in lines(here / "events.jsonl")] == ["started", "evaluated", "closed"]
    assert lines(here / "events.jsonl")[-1]["status"] == "done"
    assert len(lines(here / "rollouts/eval_data_test.jsonl_step_000000.jsonl")) == 2
    good, bad = lines(here / "rollouts/step_000001.jsonl")
    assert good == {
        "prompt_id": "train:1",
        "sample": 0,
        "prompt": "text of [5, 6]",
        "answer": "72",
        "response": "seven\n",
        "reward": 1.0,
        "parts": {"gsm8k": 1.0},
        "status": {},
        "why": {},
        "finish": "stop",
        "tokens": 1,
        "version": 3,
        "use": "loss",
    }
    assert bad["reward"] is None and bad["status"] == {"gsm8k": "timeout"} and bad["tokens"] == 2
    assert bad["use"] == "none"
    out = capsys.readouterr().out
    assert "step 0  eval data/test.jsonl  accuracy 0.25" in out
    assert "step 1/4  reward 0.500  tokens 61  kl 0.001" in out and "left" in out and "rollout 1/2" not in out


def test_a_rollouts_line_says_what_it_was_used_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracker(tmp_path)
    good, cut = group("a").rollouts
    mixed = Group([good, dataclasses.replace(cut, reward=0.0, trains=False)], greedy=group("a").rollouts[0])
    left_out = dataclasses.replace(group("b"), used=False)
    run.rollouts(1, [mixed, left_out])
    run.evaluation(1, "test", {}, [left_out])
    run.log(1, {"group/used": 1, "group/drawn": 2})
    run.close("done")
    written = lines(tmp_path / "rollouts/step_000001.jsonl")
    assert [(r["prompt_id"], r["sample"], r["use"]) for r in written] == [
        ("a", 0, "loss"),
        ("a", 1, "baseline"),
        ("a", 2, "baseline"),
        ("b", 0, "none"),
        ("b", 1, "none"),
    ]
    assert all("use" not in r for r in lines(tmp_path / "rollouts/eval_test_step_000001.jsonl"))
    assert "groups 1/2" in capsys.readouterr().out


def test_updates_that_did_not_happen_are_told_and_only_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracker(tmp_path)
    run.log(1, {"reward/mean": 0.5, "actor/skipped_updates": 0.0})
    run.log(2, {"reward/mean": 0.5, "actor/skipped_updates": 3.0})
    first, second = capsys.readouterr().out.splitlines()
    assert "skipped" not in first and "  skipped 3  " in second


def test_numbers_that_are_not_finite_are_null_and_told(tmp_path: Path) -> None:
    run = tracker(tmp_path)
    run.log(1, {"reward/mean": math.nan, "actor/loss": math.inf, "actor/kl": 1})
    run.close("done")
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["reward/mean"] is None and line["actor/loss"] is None and line["actor/kl"] == 1.0
    event = lines(tmp_path / "events.jsonl")[0]
    assert event["event"] == "non_finite" and event["metrics"] == {"reward/mean": "nan", "actor/loss": "inf"}


@pytest.mark.parametrize("told", [True, False])
def test_resume_drops_what_will_be_written_again(tmp_path: Path, told: bool) -> None:
    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.rollouts(step, [group()])
        first.evaluation(step, "test", {}, [group()])
        first.log(step, {"reward/mean": float(step)})
    first.event("saved")
    with (tmp_path / "metrics.jsonl").open("a") as file:  # killed while it wrote
        file.write('{"step": 4, "rew')
    (tmp_path / "metrics.jsonl").write_text("{}\n[1]\n\0\0\n" + (tmp_path / "metrics.jsonl").read_text())
    (tmp_path / "rollouts/mine_step_x.jsonl").touch()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "torn')
    second = tracker(tmp_path)
    if told:
        second.begin_after(2)
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    second.log(3, {"reward/mean": 30.0})
    second.close("done")
    assert [line["reward/mean"] for line in lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]
    left = {p.name for p in (tmp_path / "rollouts").iterdir()} - {"mine_step_x.jsonl"}
    assert left == {f"{kind}step_00000{i}.jsonl" for kind in ("", "eval_test_") for i in (1, 2)}
    assert [e["event"] for e in lines(tmp_path / "events.jsonl")][-2:] == ["saved", "closed"]


def test_a_terminal_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    run = tracker(tmp_path)
    run.log(1, {"reward/mean": 0.5})
    run.progress(3, 7)
    run.close("done")
    out = capsys.readouterr().out
    assert "step 1/4  reward 0.500" in out and "rollout 3/7" in out and "1/4" in out


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 2):  # the second run repeats steps from 2 on
        run = tracker(tmp_path, ["tensorboard"])
        for step in range(start, 4):
            run.log(step, {"reward/mean": 10 * start + step, "actor/loss": math.nan})
        run.close("done")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(0, 0), (1, 1), (2, 22), (3, 23)]
    assert "actor/loss" not in events.Tags()["scalars"]


@pytest.mark.parametrize("status", ["done", "failed"])
def test_wandb_goes_on_in_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    began: list[dict[str, Any]] = []
    ended: list[int] = []

    class Run:
        log = staticmethod(lambda metrics, step: None)
        finish = staticmethod(lambda exit_code: ended.append(exit_code))

    monkeypatch.setattr(wandb, "init", lambda **asked: began.append(asked) or Run())
    for step in (1, 3, 1, 3):  # a fresh run, a resumed one, a fresh one in the same directory, a resumed torn one
        if len(began) == 3:
            (tmp_path / "wandb_id").write_bytes(b"\0\0")
        run = tracker(tmp_path, ["wandb"])
        run.log(step, {"x": 1.0})
        run.close(status)
    first, resumed, fresh, torn = (asked["id"] for asked in began)
    assert first == resumed != fresh != torn and len(torn) == 12
    assert began[0]["project"] == "rlcore" and began[0]["name"] == "a name" and began[0]["config"] == CONFIG
    assert ended == [0 if status == "done" else 1] * 4


def test_sinks_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tracker.sinks: no sink 'wandbb'; there are: wandb, tensorboard"):
        tracker(tmp_path, ["wandbb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed; pip install 'rlcore\\[trackers\\]'"):
        tracker(tmp_path, ["wandb"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="run_dir: cannot write"):
        tracker(tmp_path / "file")
    for name in ("metrics.jsonl", "events.jsonl"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"run_dir: cannot write.*{name}"):
            tracker(tmp_path / name)


def test_sinks_are_imported_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        assert name.split(".")[0] not in ("wandb", "tensorboard") and "tensorboard" not in name, name
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    run = tracker(tmp_path)
    run.log(1, {"x": 1.0})
    run.close("done")


def test_a_full_disk_hides_nothing_of_why_a_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    for status in ("failed", "done"):
        ours = tracker(tmp_path)
        ours._sinks.append(SimpleNamespace(close=closed.append))  # type: ignore[arg-type]
        monkeypatch.setattr(ours, "_events", open("/dev/full", "a"))  # noqa: SIM115
        if status == "failed":
            ours.close(status)
        else:
            with pytest.raises(OSError, match="No space left"):
                ours.close(status)
    assert closed == ["failed"]
