"""Every file that a run leaves, read back by a process that has nothing of rlcore, as a user's own script would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rewards import quarantine
from rlcore.config import Config, TrackerConfig
from rlcore.errors import WorkerError
from rlcore.isolated.outcome import Outcome
from rlcore.records import Group, Prompt, Response, Rollout
from rlcore.runs.checkpoint import Checkpoints
from rlcore.runs.directory import recorded
from rlcore.runs.export import export
from rlcore.runs.tracker import Tracker
from rlcore.train.dpo import ReferenceLogp
from rlcore.train.prepare import leave_out_unscorable
from tests.processes.rows import Rows

CONFIG = {"steps": 2, "model": {"path": "demo"}, "data": {"train": ["a.jsonl"]}}

READER = """
import hashlib, json, struct, sys
from pathlib import Path

import yaml
from safetensors import safe_open

run = Path(sys.argv[1])


def lines(path):
    return [json.loads(line, parse_constant=float) for line in path.read_text().splitlines()]


def weights(directory):
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: [str(file.get_tensor(name).dtype), file.get_tensor(name).tolist()] for name in file.keys()}


def checkpoint(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    files = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    said = [[p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
    there = {str(p.relative_to(directory)): {"bytes": n, "sha256": s} for p, (n, s) in zip(files, said, strict=True)}
    own = manifest.pop("sha256")
    assert own == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert manifest == {"format": 1, "files": there}, (manifest, there)
    return [sorted(there), json.loads((directory / "state.json").read_text()), weights(directory / "model")]


def tensorboard(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {name: [[e.step, e.value] for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb(directory):
    from wandb.proto.wandb_internal_pb2 import Record

    found, data, at, parts = [], next(directory.glob("offline-run-*/run-*.wandb")).read_bytes(), 7, b""
    while at + 7 <= len(data):  # a log of LevelDB: blocks of 32 KiB; a part has its checksum, length and kind before it
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            items = Record.FromString(parts).history.item
            named = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            found += [{k: v for k, v in named.items() if k not in ("_runtime", "_timestamp")}] if named else []
            parts = b""
    return found


assert "rlcore" not in sys.modules and all("torch" != name for name in sys.modules)
print(json.dumps({
    "config": yaml.safe_load((run / "config.yaml").read_text()),
    "metrics": lines(run / "metrics.jsonl"),
    "events": lines(run / "events.jsonl"),
    "rollouts": {path.name: lines(path) for path in sorted((run / "rollouts").iterdir())},
    "error": (run / "error.txt").read_text(),
    "checkpoints": {path.name: checkpoint(path) for path in sorted((run / "checkpoints").iterdir())},
    "export": [json.loads((run / "export/config.json").read_text()), weights(run / "export")],
    "tensorboard": tensorboard(run / "tensorboard"),
    "wandb": wandb(run / "wandb"),
    "left": sorted(path.name for path in run.iterdir()),
}))
"""


def write(run_dir: Path) -> None:
    """A run of two steps that ends with an error, by the fakes of its parts."""
    weight = torch.tensor([0.5, -1.25])

    def trained(directory: Path) -> None:
        (directory / "model").mkdir()
        (directory / "model/config.json").write_text(json.dumps({"model_type": "toy", "torch_dtype": "float32"}))
        save_file({"weight": weight}, directory / "model/model.safetensors", {"format": "pt"})
        (directory / "optimizer.json").write_text(json.dumps({"step": 2}))

    prompt = Prompt("a:1", [5, 6], "72", {"question": "?"})
    good = Rollout(prompt, [5, 6, 7], [0.0, 0.0, -1.0], [False, False, True], "stop", 1, "ünï\n", 1.0, {"gsm8k": 1.0})
    bad = Rollout(prompt, [5, 6, 8], [0.0, 0.0, -1.0], [False, False, True], "length", 1, "", status={"gsm8k": "error"})
    cfg = TrackerConfig(sinks=["tensorboard", "wandb"])
    tracker = Tracker(run_dir, cfg, CONFIG, steps=2, decode=lambda tokens: f"text of {tokens}")
    checkpoints = Checkpoints(run_dir, keep=1, best="eval/a/accuracy")
    for step, value in ((1, 0.75), (2, 0.5)):
        tracker.rollouts(step, [Group([good, bad])])
        tracker.evaluation(step, "a", {"accuracy": value}, [Group([good])])
        tracker.log(step, {"reward/mean": value, "actor/kl": float("nan")})
        checkpoints.save(step, trained, {"data": {"epoch": 1}}, value)
        tracker.event("saved", step=step)
    export(run_dir, run_dir / "export", "bfloat16")
    tracker.close("failed")
    error = WorkerError("actor rank 1 raised")
    error.details = "its own traceback"
    with pytest.raises(WorkerError), recorded(run_dir):
        raise error


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import wandb

    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        write(run_dir)
        wandb.teardown()  # it reads its environment once a process
    done = subprocess.run([sys.executable, "-I", "-c", READER, str(run_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_there_is_nothing_else(found: dict[str, Any]) -> None:
    files = ["config.yaml", "error.txt", "events.jsonl", "metrics.jsonl", "wandb_id"]
    assert found["left"] == sorted([".lock", *files, "checkpoints", "export", "rollouts", "tensorboard", "wandb"])


def test_the_config(found: dict[str, Any]) -> None:
    assert found["config"] == CONFIG


def test_metrics_and_what_the_sinks_have_are_the_same(found: dict[str, Any]) -> None:
    metrics = [{k: v for k, v in line.items() if k != "time"} for line in found["metrics"]]
    assert metrics == [
        {"step": 1, "reward/mean": 0.75, "actor/kl": None},
        {"step": 2, "reward/mean": 0.5, "actor/kl": None},
    ]
    assert found["tensorboard"] == {"reward/mean": [[1, 0.75], [2, 0.5]]}
    assert found["wandb"] == [{"_step": 1, "reward/mean": 0.75}, {"_step": 2, "reward/mean": 0.5}]


def test_events_and_the_error(found: dict[str, Any]) -> None:
    events = found["events"]
    assert [e["event"] for e in events] == [*(["evaluated", "non_finite", "saved"] * 2), "closed", "failed"]
    assert all(e["time"] > 0 for e in events) and events[-2]["status"] == "failed"
    assert (events[-1]["error"], events[-1]["message"]) == ("WorkerError", "actor rank 1 raised")
    assert found["error"] == "its own traceback"


def test_rollouts(found: dict[str, Any]) -> None:
    names = [f"{kind}step_00000{step}.jsonl" for kind in ("eval_a_", "") for step in (1, 2)]
    assert list(found["rollouts"]) == names
    good, bad = found["rollouts"]["step_000002.jsonl"]
    assert (good["response"], good["prompt"], good["reward"], good["use"]) == ("ünï\n", "text of [5, 6]", 1.0, "loss")
    assert (bad["reward"], bad["status"], bad["finish"], bad["use"]) == (None, {"gsm8k": "error"}, "length", "none")


def test_checkpoints_and_the_export(found: dict[str, Any]) -> None:
    assert list(found["checkpoints"]) == ["step_000001", "step_000002"]  # the best and the newest
    files, state, weights = found["checkpoints"]["step_000001"]
    assert files == ["model/config.json", "model/model.safetensors", "optimizer.json", "state.json"]
    assert state == {"step": 1, "data": {"epoch": 1}, "best": {"name": "eval/a/accuracy", "value": 0.75}}
    assert weights == {"weight": ["torch.float32", [0.5, -1.25]]}
    config, exported = found["export"]
    assert config == {"model_type": "toy", "dtype": "bfloat16"}
    assert exported == {"weight": ["torch.bfloat16", [0.5, -1.25]]}


BESIDES = """
import json, sys
from pathlib import Path

from safetensors import safe_open

run = Path(sys.argv[1])
with safe_open(run / "reference_logp.safetensors", framework="np") as file:
    column = {name: file.get_tensor(name).tolist() for name in file.keys()}
assert "rlcore" not in sys.modules
print(json.dumps({
    "quarantine": [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()],
    "gold": (run / "unparseable_gold.txt").read_text().splitlines(),
    "column": sorted(column.values()),
}))
"""


def test_what_only_some_runs_leave(tmp_path: Path) -> None:
    """Samples whose reward failed, rows whose gold answer cannot be read, DPO's reference column."""
    prompt = Prompt("a:1", [1], "7", {"question": "3 + 4", "weight": float("nan")})
    quarantine.put(tmp_path / "quarantine.jsonl", prompt, Response("7\u2028"), "mine", Outcome(None, status="error"))
    cfg, rows, said = Config(run_dir=str(tmp_path)), Rows(30, "gsm8k: 'x' is no number"), []
    leave_out_unscorable(rows, rows, cfg, said.append)  # type: ignore[arg-type]
    assert len(rows) == 29 and "1 of 30 rows of a.jsonl" in said[0]
    pair = Group([Rollout(prompt, [1, t], [0.0] * 2, [False, True], "stop", 0, reward=0.0) for t in (2, 3)])
    says = SimpleNamespace(logp=lambda batch: -batch.tokens.float() * batch.mask)
    ReferenceLogp(says, tmp_path / "reference_logp.safetensors", {}, 1).compute([pair])  # type: ignore[arg-type]

    done = subprocess.run([sys.executable, "-I", "-c", BESIDES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    (failed,) = found["quarantine"]
    assert failed["row"] == {"question": "3 + 4", "weight": "nan"} and failed["response"] == "7\u2028"
    assert found["gold"] == ["  a.jsonl, line 7: gsm8k: 'x' is no number"]
    assert found["column"] == [[0.0, -3.0], [0.0, -2.0]]
