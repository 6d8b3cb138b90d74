"""A run directory belongs to one process, and keeps what went wrong in it."""

import json
from pathlib import Path

import pytest

from rlcore.errors import CheckpointError, ConfigError, RlcoreError, WorkerError
from rlcore.runs.checkpoint import Checkpoints, export
from rlcore.runs.directory import locked, recorded


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with recorded(tmp_path), pytest.raises(ConfigError, match="another rlcore process"), locked(tmp_path / ".lock"):
        pass
    with recorded(tmp_path):
        pass


def test_an_error_is_kept_and_named(tmp_path: Path) -> None:
    with pytest.raises(RlcoreError, match="KeyError: 'x'.*error.txt"), recorded(tmp_path):
        {}["x"]
    assert "KeyError" in (tmp_path / "error.txt").read_text()
    error = WorkerError("actor rank 1 raised")
    error.details = "its own traceback"
    with pytest.raises(WorkerError), recorded(tmp_path):
        raise error
    assert (tmp_path / "error.txt").read_text() == "its own traceback"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["error"] for e in events] == ["KeyError", "WorkerError"]


def checkpoint(run_dir: Path) -> Path:
    def write(directory: Path) -> None:
        (directory / "model").mkdir()
        (directory / "model/config.json").write_text("{}")

    return Checkpoints(run_dir, keep=1).save(3, write, {})


def test_export_deletes_nothing_of_the_users(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="precious is not empty"):
        export(tmp_path / "run", precious, "float32")
    assert (precious / "thesis.txt").exists()
    for out in (tmp_path / "new", tmp_path / "run/export", tmp_path / "run/export"):
        assert export(tmp_path / "run", out, "float32") == out


def test_export_of_a_step_looks_at_its_files_too(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "state.json").write_text("")
    with pytest.raises(CheckpointError, match=r"state.json: 0 bytes"):
        export(tmp_path, tmp_path / "out", "float32", step=3)
    with pytest.raises(CheckpointError, match="no checkpoint of step 9; there: step_000003"):
        export(tmp_path, tmp_path / "out", "float32", step=9)
