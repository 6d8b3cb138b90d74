"""A run directory belongs to one process, and keeps what went wrong in it."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlcore.errors import CheckpointError, ConfigError, RlcoreError, WorkerError
from rlcore.files import locked
from rlcore.runs import checkpoint as checkpointing
from rlcore.runs.checkpoint import Checkpoints, state_of
from rlcore.runs.directory import recorded
from rlcore.runs.export import export


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with recorded(tmp_path), pytest.raises(ConfigError, match="another rlcore process"), locked(tmp_path / ".lock"):
        pass
    with recorded(tmp_path):
        pass


def test_a_second_run_of_the_same_second_has_a_directory_of_its_own(tmp_path: Path) -> None:
    named = tmp_path / "demo-20260101-120000"
    with recorded(named, True) as first, recorded(named, True) as second, recorded(named, True) as third:
        assert (first, second.name, third.name) == (named, f"{named.name}-2", f"{named.name}-3")
        with pytest.raises(ConfigError, match="another rlcore process"), recorded(named):
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


def write(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model/config.json").write_text("{}")
    save_file({"w": torch.ones(2)}, directory / "model/model.safetensors")


def checkpoint(run_dir: Path) -> Path:
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


def kept(run_dir: Path) -> list[int]:
    return [state_of(path)["step"] for path in Checkpoints(run_dir, keep=1).all()]


@pytest.mark.parametrize(
    ("name", "values", "best", "left"),
    [
        ("eval/a/accuracy", [0.2, 0.9, 0.3, 0.5], (2, 0.9), [2, 4]),
        ("eval/a/loss", [0.2, 0.9, 0.1, 0.5], (3, 0.1), [3, 4]),
        ("eval/a/accuracy", [0.2, 0.3, 0.4, 0.9], (4, 0.9), [4]),
        # Of equals the first; what is not finite never, and no evaluation is no value.
        ("eval/a/accuracy", [0.5, 0.5, 0.5, 0.1], (1, 0.5), [1, 4]),
        ("eval/a/accuracy", [math.nan, 0.1, math.inf, math.nan], (2, 0.1), [2, 4]),
        ("eval/a/loss", [math.nan, None, -math.inf, None], None, [4]),
        ("eval/a/accuracy", [-2.0, -1.0, None, -3.0], (2, -1.0), [2, 4]),
        (None, [0.2, 0.9, 0.3, 0.5], None, [4]),
    ],
)
def test_the_best_checkpoint_stays(
    tmp_path: Path, name: str | None, values: list[float | None], best: tuple[int, float] | None, left: list[int]
) -> None:
    for step, value in enumerate(values, start=1):
        # Anew each time, as a resumed run does.
        Checkpoints(tmp_path, 1, name).save(step, write, {"data": {}}, value)
        json.loads((Checkpoints(tmp_path, 1).all()[-1] / "state.json").read_text(), parse_constant=pytest.fail)
    assert Checkpoints(tmp_path, 1, name).best() == best and kept(tmp_path) == left
    here = Checkpoints(tmp_path, 1, name)
    if best is not None:
        better = -0.01 if str(name).endswith("loss") else 0.01
        assert [here.is_better(best[1] + d) for d in (better, 0.0, -better)] == [True, False, False]
    assert here.is_better(-9.0) == (best is None or str(name).endswith("loss"))
    assert not here.is_better(None) and not here.is_better(math.nan) and not here.is_better(math.inf)
    latest = Checkpoints(tmp_path, 1, name).latest()
    assert latest is not None and latest.name == "step_000004"


def test_the_best_is_kept_beside_the_newest_and_may_be_one_of_them(tmp_path: Path) -> None:
    here = Checkpoints(tmp_path, 2, "accuracy")
    for step, value in enumerate([0.9, 0.1, 0.2, 0.3], start=1):
        here.save(step, write, {}, value)
    assert kept(tmp_path) == [1, 3, 4]
    here.save(5, write, {}, 0.95)
    assert here.best() == (5, 0.95) and kept(tmp_path) == [4, 5]


def test_a_run_killed_between_writing_and_deleting_goes_on_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    here = Checkpoints(tmp_path, 1, "accuracy")
    here.save(1, write, {}, 0.9)
    here.save(2, write, {}, 0.5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointing, "remove", killed)
        here.save(3, write, {}, 0.7)
    again = Checkpoints(tmp_path, 1, "accuracy")
    assert again.best() == (1, 0.9) and kept(tmp_path) == [1, 2, 3]
    again.save(4, write, {}, 0.1)
    assert again.best() == (1, 0.9) and kept(tmp_path) == [1, 4]


def test_another_number_or_none_begins_anew(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 1, "accuracy").save(1, write, {}, 0.9)
    other = Checkpoints(tmp_path, 1, "reward")
    assert other.best() is None
    other.save(2, write, {}, -5.0)
    assert other.best() == (2, -5.0) and kept(tmp_path) == [2]


def test_a_damaged_checkpoint_is_never_best(tmp_path: Path) -> None:
    here = Checkpoints(tmp_path, 1, "accuracy")
    (here.save(1, write, {}, 0.9) / "state.json").write_text('{"step": 1, "be')
    assert here.best() is None
    here.save(2, write, {}, 0.1)
    assert here.best() == (2, 0.1) and kept(tmp_path) == [2]


def test_a_save_that_fails_leaves_the_step_as_it_was(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        write(directory)
        raise OSError("no space")

    saved = checkpoint(tmp_path)
    with pytest.raises(OSError, match="no space"):
        Checkpoints(tmp_path, keep=1).save(3, fails, {})
    assert Checkpoints(tmp_path, keep=1).latest() == saved and list(saved.parent.iterdir()) == [saved]
