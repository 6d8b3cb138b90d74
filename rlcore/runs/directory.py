"""The run directory as one process's own: locked while it works, and a record of what went wrong."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rlcore.errors import ConfigError, DiskError, RlcoreError, is_of_disk
from rlcore.files import locked, require_writable, write_text
from rlcore.screen import is_unread, message, shown
from rlcore.secret_values import clean


@contextmanager
def recorded(run_dir: Path, named_by_time: bool = False) -> Iterator[Path]:
    """Own `run_dir`, and yield it; an error inside becomes an event in events.jsonl, its traceback goes to error.txt,
    and it is raised on, as an RlcoreError where it was none. Where the time has named it, a run of the same second may
    have been first: then it is `run_dir`-2, or -3. ConfigError for a directory that cannot be written."""
    with ExitStack() as ending:
        run_dir = _own(run_dir, named_by_time, ending)
        try:
            yield run_dir
        except BaseException as e:
            error = _as_told(e, run_dir)
            try:
                _write_down(error, type(e).__name__ if type(error) is RlcoreError else type(error).__name__, run_dir)
            except OSError as failed:
                with suppress(OSError):
                    told = f"rlcore: the error below is not in {run_dir}: {failed.strerror}"
                    print(message(told), file=sys.stderr)
            if error is e:
                raise
            raise error from e


def _own(run_dir: Path, named_by_time: bool, ending: ExitStack) -> Path:
    require_writable(run_dir, "run_dir")
    for number in range(2, 100 if named_by_time else 2):
        with suppress(ConfigError):
            ending.enter_context(locked(run_dir / ".lock"))
            return run_dir
        run_dir = run_dir.with_name(f"{run_dir.name.removesuffix(f'-{number - 1}')}-{number}")
    ending.enter_context(locked(run_dir / ".lock"))
    return run_dir


def _as_told(error: BaseException, run_dir: Path) -> BaseException:
    """The error itself where it has an exit code and words; else one that has. That nobody reads is no error."""
    if isinstance(error, (RlcoreError, KeyboardInterrupt, SystemExit, BrokenPipeError)) or is_unread(error):
        return error
    of_the_run = isinstance(error, OSError) and str(error.filename or "").startswith(str(run_dir))
    if of_the_run or is_of_disk(error):
        told = DiskError(f"{getattr(error, 'filename', None) or run_dir}: {getattr(error, 'strerror', None) or error}")
    else:
        told = RlcoreError(f"{type(error).__name__}: {error}; the traceback is in {run_dir / 'error.txt'}")
    told.details = traceback.format_exc()
    return told


def _write_down(error: BaseException, name: str, run_dir: Path) -> None:
    if not run_dir.is_dir():  # somebody has deleted it while the run went on, and does not want it back
        return
    by = error.args[0] if isinstance(error, KeyboardInterrupt) and error.args else None
    message = by.name if isinstance(by, signal.Signals) else str(error)
    write_text(run_dir / "error.txt", shown(getattr(error, "details", "") or traceback.format_exc()))
    event = {"time": time.time(), "event": "failed", "error": name, "message": message}
    with (run_dir / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean(event)) + "\n")
