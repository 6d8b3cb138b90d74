"""What a command finds around it, without starting one; tests/processes/test_surroundings.py starts some."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rlcore import surroundings
from rlcore.surroundings import installed_first, near_ones_direct, offline_without_hub, settle

Patch = pytest.MonkeyPatch


@pytest.fixture
def users(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The user's folder, which is the working directory; rlcore is installed beside it."""
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(surroundings, "__file__", str(tmp_path / "site/rlcore/surroundings.py"))
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")
    return tmp_path / "user"


@pytest.mark.parametrize("as_a_user_has_it", ["", "{user}", "."])
def test_the_users_folder_is_looked_in_last(users: Path, monkeypatch: Patch, as_a_user_has_it: str) -> None:
    site, own = str(users.parent / "site"), as_a_user_has_it.format(user=users)
    monkeypatch.setattr(sys, "path", [own, "/usr/lib/python3", site, "/elsewhere"])
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setenv("PYTHONPATH", f"{own}{os.pathsep}/elsewhere")
    installed_first()
    assert sys.path == ["/usr/lib/python3", site, "/elsewhere", str(users)]
    assert os.environ["PYTHONPATH"] == "/elsewhere" and os.environ["PYTHONSAFEPATH"] == "1"
    installed_first()
    assert sys.path[-1] == str(users) and len(sys.path) == 4


def test_a_scripts_folder_too_and_what_is_installed_as_a_finder_comes_before(users: Path, monkeypatch: Patch) -> None:
    """Setuptools' finder of an editable install is asked when nothing on the path has the module."""
    scripts, site = users.parent / "scripts", str(users.parent / "site")
    scripts.mkdir()
    monkeypatch.setattr(sys, "argv", [str(scripts / "mine.py")])
    monkeypatch.setattr(sys, "path", [str(scripts), "/usr/lib/python3"])
    installed_first()
    assert sys.path == ["/usr/lib/python3", site, str(scripts), str(users)]


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: Patch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    near_ones_direct()
    assert "no_proxy" not in os.environ
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost, .example.com")
    monkeypatch.setenv("no_proxy", "")
    near_ones_direct()
    listed = os.environ["no_proxy"].split(",")
    assert listed[:4] == ["localhost", ".example.com", "127.0.0.1", "::1"] and len(set(listed)) == len(listed)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_a_tmpdir_that_is_not_there_is_as_none(users: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TMPDIR", str(users))
    settle()
    assert os.environ["TMPDIR"] == str(users)
    monkeypatch.setenv("TMPDIR", str(users / "of a job that has ended"))
    settle()
    assert "TMPDIR" not in os.environ


@pytest.mark.parametrize("library", ["huggingface_hub.constants", "datasets.config"])
def test_without_a_hub_only_the_cache_is_asked(library: str, monkeypatch: Patch) -> None:
    module = pytest.importorskip(library)
    monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    offline_without_hub()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and module.HF_HUB_OFFLINE
