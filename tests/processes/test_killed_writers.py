"""What a process killed at any line of its writing leaves: the old one or the new one, never a half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("writer", "least"),
    [
        ("a_file(at)", 20),
        ("a_directory(at, exchange=True)", 100),
        ("a_directory(at, exchange=False)", 100),
        ("checkpoints(at)", 100),
    ],
)
def test_the_old_one_or_the_new_one_is_there(tmp_path: Path, writer: str, least: int) -> None:
    code = f"from pathlib import Path; from tests.processes.killed import *; at = Path({str(tmp_path / 'x')!r})"
    done = subprocess.run([sys.executable, "-c", f"{code}; print({writer})"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > least, "too few deaths to mean anything"
