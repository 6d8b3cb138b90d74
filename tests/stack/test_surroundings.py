"""A local Ray on a machine that is in its way; two at once; and signals while it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

SMALL = [sys.executable, "-m", "tests.stack.small"]
# A tmpfs of docker's default size, where this machine lets us: it is gone with the command.
SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "-"]
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9") | {"no_proxy": ""}


class Small:
    """`small.py` in a folder of its own."""

    def __init__(self, folder: Path, *before: str, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        path = os.pathsep.join([str(Path(__file__).parents[2]), "."])
        env = {**os.environ, "PYTHONPATH": path, "TEST_MARKER": self.mark, **environment}
        self.process = subprocess.Popen(
            [*before, *SMALL], cwd=folder, env=env, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, word: str) -> str:
        """What was printed before the line that begins with `word`; that line is the last."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith(word):
                return "".join(lines)
        pytest.fail("".join(lines))

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ends(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out

    def left(self) -> list[str]:
        found = []
        for p in psutil.process_iter():
            try:
                if p.environ().get("TEST_MARKER") == self.mark and p.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(p.cmdline()))
            except psutil.Error:
                continue
        return found


def small_shm() -> list[str]:
    works = subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode == 0 if os.getuid() == 0 else False
    return SMALL_SHM if works else []


def test_two_at_once_and_one_of_them_where_everything_is_in_the_way(tmp_path: Path) -> None:
    user, job = tmp_path / 'it\'s "the" ü=1', tmp_path / "job" / ("x" * 90)
    for folder in (user, job):
        folder.mkdir(parents=True)
    for name in ("rollout", "rewards", "datasets", "random", "queue"):
        (user / f"{name}.py").write_text("raise RuntimeError('taken for another')\n", encoding="utf-8")
    around = {"TMPDIR": str(job), "HOME": "/proc/self/nowhere", "RAY_ADDRESS": "127.0.0.1:1", "LC_ALL": "C"}
    one, other = Small(user, *small_shm(), **around, **PROXIES), Small(tmp_path)
    for small in (one, other):
        out = small.until("{")
        seen = json.loads(out.splitlines()[-1])
        assert ("shared memory is in" in out) == (small is one and bool(small_shm())), out
        assert "raylet" not in out, out  # nothing of Ray's own
        assert seen["died"].startswith("actor rank 0 died during phase start: its creation failed: KeyError: 'a key of")
        assert "small.py:" in seen["died"] and os.path.isdir(seen["ray"])
        assert not [file for name, file in seen.items() if file.startswith(f"{user}/")], seen
        if small is one:
            small.goes_on()
            small.until("ENDING")
        code, out = small.ends(signal.SIGTERM if small is one else signal.SIGKILL)
        assert code == -signal.SIGKILL or (code >= 128 and "stopped by SIGTERM" in out), out
        until = time.monotonic() + 30
        while code < 0 and os.path.exists(seen["ray"]) and time.monotonic() < until:
            time.sleep(0.1)  # what outlives a killed driver cleans up
        assert small.left() == [] and not os.path.exists(seen["ray"])


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 1.0), (signal.SIGHUP, 3.0)])
def test_a_signal_while_it_starts(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    small = Small(tmp_path)
    small.until("STARTING")
    time.sleep(seconds)
    code, out = small.ends(number)
    assert code >= 128 and f"stopped by {number.name}" in out, out
    assert small.left() == []
