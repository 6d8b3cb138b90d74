"""The run directory as one process's own: locked while it works, and a record of what went wrong."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rlcore.errors import ConfigError, RlcoreError
from rlcore.files import locked, write_text


@contextmanager
def recorded(run_dir: Path, named_by_time: bool = False) -> Iterator[Path]:
    """Own `run_dir`, and yield it; an error inside becomes an event in events.jsonl, its traceback goes to error.txt,
    and it is raised on, as an RlcoreError where it was none. Where the time has named it, a run of the same second may
    have been first: then it is `run_dir`-2, or -3."""
    with ExitStack() as ending:
        run_dir = _own(run_dir, named_by_time, ending)
        try:
            yield run_dir
        except BaseException as e:
            write_text(run_dir / "error.txt", getattr(e, "details", "") or traceback.format_exc())
            event = {"time": time.time(), "event": "failed", "error": type(e).__name__, "message": str(e)}
            with (run_dir / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
            if isinstance(e, (RlcoreError, KeyboardInterrupt, SystemExit)):
                raise
            raise RlcoreError(f"{type(e).__name__}: {e}; the traceback is in {run_dir / 'error.txt'}") from e


def _own(run_dir: Path, named_by_time: bool, ending: ExitStack) -> Path:
    for number in range(2, 100 if named_by_time else 2):
        with suppress(ConfigError):
            ending.enter_context(locked(run_dir / ".lock"))
            return run_dir
        run_dir = run_dir.with_name(f"{run_dir.name.removesuffix(f'-{number - 1}')}-{number}")
    ending.enter_context(locked(run_dir / ".lock"))
    return run_dir
