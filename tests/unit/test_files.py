"""Files and directories are whole or as they were. (Killed at any line: tests/processes/test_killed_writers.py.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcore import files
from rlcore.errors import ConfigError
from rlcore.files import locked, remove, sweep, write_text, written_aside


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_raises_leaves_what_was_there(tmp_path: Path, before: str | None, error: type) -> None:
    target = tmp_path / "a.txt"
    if before is not None:
        target.write_text(before)
    with pytest.raises(error), written_aside(target) as aside:
        aside.write_text("half")
        raise error
    assert names(tmp_path) == (["a.txt"] if before else []) and (not before or target.read_text() == before)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """Also where two names cannot be exchanged, as on a network file system."""
    if not exchange:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    target = tmp_path / "deep" / "model"
    for content in (["a", "b"], ["b", "c"], []):
        with written_aside(target) as aside:
            aside.mkdir()
            for name in content:
                (aside / name).write_text(name)
        assert names(target) == content and names(target.parent) == ["model"]
    with pytest.raises(ValueError), written_aside(target) as aside:
        aside.mkdir()
        raise ValueError
    assert names(target.parent) == ["model"]


def test_what_a_link_points_at_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.yaml").write_text("old")
    (tmp_path / "config.yaml").symlink_to(tmp_path / "big" / "config.yaml")
    write_text(tmp_path / "config.yaml", "ü")
    assert (tmp_path / "config.yaml").is_symlink() and names(tmp_path / "big") == ["config.yaml"]
    assert (tmp_path / "big" / "config.yaml").read_text(encoding="utf-8") == "ü"


def test_what_killed_writers_left_goes_with_the_next_and_with_a_sweep(tmp_path: Path) -> None:
    target = tmp_path / "a"
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "half").write_text("half")
    (tmp_path / ".b.partial").write_text("half")
    (tmp_path / ".hidden").write_text("a user's")
    write_text(target, "whole")
    assert names(tmp_path) == [".b.partial", ".hidden", "a"] and target.read_text() == "whole"
    sweep(tmp_path)
    assert names(tmp_path) == [".hidden", "a"]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").write_text("")
    for name in ("a", "c", "not there"):
        remove(tmp_path / name)
    assert names(tmp_path) == []


def test_a_lock_is_held_by_one_and_names_itself(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / ".lock"
    with locked(lock), pytest.raises(ConfigError, match=r"deep: another rlcore process is at work here .*\.lock"):
        with locked(lock, wait_seconds=0.01):
            raise AssertionError
    with locked(lock):
        pass
