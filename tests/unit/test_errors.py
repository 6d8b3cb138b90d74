"""The one "did you mean", and the one table of exit codes."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from pathlib import Path

import pytest

from rlcore.cli.shell import guarded, print_usage
from rlcore.config import all_keys
from rlcore.errors import EXIT_CODES, ConfigError, DiskError, RlcoreError, WorkerError, is_of_disk, nearest
from rlcore.files import require_writable
from rlcore.runs import directory
from rlcore.runs.directory import recorded


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("actor.rank", all_keys(), "actor.ranks"),
        ("rolout.engines", all_keys(), "rollout.engines"),
        ("learning_rate", all_keys(), "actor.learning_rate"),  # a bare last part
        ("clip_hgh", all_keys(), "loss.clip_high"),
        ("PPO", ["grpo", "ppo"], "ppo"),  # case is no distance
        ("anwser", ["Question", "Answer"], "Answer"),
        ("trian.jsonl", ["test.jsonl", "train.jsonl"], "train.jsonl"),
        ("gone.jsonl", ["mathematics_of_1998.jsonl"], None),  # what two files have in common is no name
        ("xxxxx", ["grpo", "ppo"], None),
        ("a", [], None),
    ],
)
def test_the_nearest_name(word: str, known: list[str], found: str | None) -> None:
    assert nearest(word, known) == (f"; did you mean {found}?" if found else "")


def test_every_error_has_a_line_in_the_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [RlcoreError, *RlcoreError.__subclasses__()]
    signals = {128 + s for s in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)}
    assert {0, *(k.exit_code for k in kinds)} | signals == EXIT_CODES.keys()
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    print_usage()
    shown = capsys.readouterr().out
    for code, means in EXIT_CODES.items():
        assert f"| {code} | {means} |".replace("`| ", "`\\| ") in readme
        assert f"{code}  {means}\n" in shown


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (WorkerError("actor rank 0 died"), 4, "rlcore: WorkerError: actor rank 0 died\n"),
        (KeyboardInterrupt(), 130, "rlcore: stopped by Ctrl-C\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "rlcore: stopped by SIGTERM\n"),
        (KeyboardInterrupt(signal.SIGHUP), 129, "rlcore: stopped by SIGHUP\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 7, "rlcore: DiskError: out/x: No space left"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "a fault of rlcore's own"),  # of another pipe than stdout
        (ZeroDivisionError("division by zero"), 1, "a fault of rlcore's own, please report it: ZeroDivisionError"),
    ],
)
def test_every_end_has_a_code_and_a_line(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def work() -> int:
        raise error

    assert guarded(work) == code
    assert said in capfd.readouterr().err


def test_a_disk_is_known_behind_a_library_that_hides_it() -> None:
    assert is_of_disk(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_of_disk(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_of_disk(RuntimeError("(os error 2)")) and not is_of_disk(FileNotFoundError(2, "no such file"))


def test_what_a_run_directory_does_to_a_run_has_the_right_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/no/run")):
        with pytest.raises(ConfigError, match=f"run_dir: cannot write to {bad}: .*; give another"), recorded(bad):
            raise AssertionError("it must not begin")
    with pytest.raises(DiskError, match="metrics.jsonl: No such file"), recorded(tmp_path / "run"):
        (tmp_path / "run" / "gone" / "metrics.jsonl").open("a")
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text())["error"] == "DiskError"

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "write_text", full)
    with pytest.raises(WorkerError, match="engine died"), recorded(tmp_path / "\x1b[31m"):
        raise WorkerError("engine died")  # the disk being full as well hides nothing
    err = capsys.readouterr().err
    assert f"the error below is not in {tmp_path}/\\x1b[31m: No space left on device" in err
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path / "run"):
        raise KeyboardInterrupt(signal.SIGTERM)
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])["message"] == "SIGTERM"
    with pytest.raises(DiskError), recorded(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run" / "metrics.jsonl").open("a")
    assert not (tmp_path / "run").exists()  # whoever deleted it does not want it back
    require_writable(tmp_path / "new" / "er", "--out")
    assert list((tmp_path / "new" / "er").iterdir()) == []
