"""The run directory as one process's own: locked while it works, and a record of what went wrong."""

from __future__ import annotations

import fcntl
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlcore.errors import ConfigError, RlcoreError


@contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, waiting up to `wait_seconds` for another process to let go of it.

    Raises ConfigError naming it when that process does not. The lock ends with the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise ConfigError(
                        f"{path.parent}: another rlcore process is at work here (it holds {path})"
                    ) from None
                time.sleep(0.5)
        yield


@contextmanager
def recorded(run_dir: Path) -> Iterator[None]:
    """Own `run_dir`; an error inside becomes an event in events.jsonl, its traceback goes to error.txt, and it is
    raised on, as an RlcoreError where it was none."""
    with locked(run_dir / ".lock"):
        try:
            yield
        except BaseException as e:
            details = getattr(e, "details", "") or traceback.format_exc()
            (run_dir / "error.txt").write_text(details)
            event = {"time": time.time(), "event": "failed", "error": type(e).__name__, "message": str(e)}
            with (run_dir / "events.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
            if isinstance(e, (RlcoreError, KeyboardInterrupt, SystemExit)):
                raise
            raise RlcoreError(f"{type(e).__name__}: {e}; the traceback is in {run_dir / 'error.txt'}") from e
