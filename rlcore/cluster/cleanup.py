"""Leaves no process behind: a tiny second process that outlives the driver by seconds and cleans up after it.

Every process of a run inherits RLCORE_RUN_ID. This one waits for end-of-file on a pipe from the driver: that comes when
it is closed, or the driver killed in any way. Then it kills what still carries the id, and deletes FOLDER.
Run as `python -S cleanup.py RUN_ID [FOLDER]`: standard library and rlcore/processes.py only, a few MB.
"""

import os
import signal
import sys
import time

if __name__ == "__main__":  # without site-packages rlcore is found from here; last in the path it shadows nothing
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from rlcore.processes import end_marked, marked

VARIABLE = "RLCORE_RUN_ID"
GRACE_SECONDS = 5.0
_SWEEP_SECONDS = 10.0


def sweep(run_id: str, spare: frozenset[int] = frozenset()) -> int:
    """SIGKILL every process of the run but our own and `spare`, until none is left or 10 s have passed; how many."""
    return end_marked(f"{VARIABLE}={run_id}", _SWEEP_SECONDS, spare)


def main() -> None:
    run_id = sys.argv[1]
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    until = time.monotonic() + GRACE_SECONDS  # Ray's own clean-up is quicker when it works
    while marked(f"{VARIABLE}={run_id}") and time.monotonic() < until:
        time.sleep(0.2)
    sweep(run_id)
    if len(sys.argv) > 2:
        import shutil  # not while it waits: it brings compression with it

        shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()
