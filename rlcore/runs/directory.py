"""The run directory as one process's own: locked while it works, and a record of what went wrong."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlcore.errors import RlcoreError
from rlcore.files import locked, write_text
from rlcore.screen import shown
from rlcore.secret_values import clean


@contextmanager
def recorded(run_dir: Path) -> Iterator[None]:
    """Own `run_dir`; an error inside becomes an event in events.jsonl, its traceback goes to error.txt, and it is
    raised on, as an RlcoreError where it was none."""
    with locked(run_dir / ".lock"):
        try:
            yield
        except BaseException as e:
            write_text(run_dir / "error.txt", shown(getattr(e, "details", "") or traceback.format_exc()))
            event = {"time": time.time(), "event": "failed", "error": type(e).__name__, "message": str(e)}
            with (run_dir / "events.jsonl").open("a") as file:
                file.write(json.dumps(clean(event)) + "\n")
            if isinstance(e, (RlcoreError, KeyboardInterrupt, SystemExit)):
                raise
            raise RlcoreError(f"{type(e).__name__}: {e}; the traceback is in {run_dir / 'error.txt'}") from e
