"""Leaves no process behind: a tiny second process that outlives the driver by seconds and cleans up after it.

Every process of a run inherits RLCORE_RUN_ID. This one waits for end-of-file on a pipe from the driver: that comes when
the driver closes it or is killed in any way, SIGKILL included. Then it kills what still carries the id.
Run as `python -S cleanup.py RUN_ID`: standard library only, a few MB.
"""

import contextlib
import os
import signal
import sys
import time

VARIABLE = "RLCORE_RUN_ID"
GRACE_SECONDS = 5.0


def processes(run_id: str) -> list[int]:
    """Pids on this machine whose environment carries this run id, except our own."""
    wanted = f"{VARIABLE}={run_id}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as f:
            if wanted in f.read().split(b"\0"):
                found.append(int(entry))
    return found


def sweep(run_id: str, spare: frozenset[int] = frozenset()) -> int:
    """SIGKILL every process of the run but `spare`, until none is left or 10 s have passed. Returns how many."""
    killed: set[int] = set()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        left = [p for p in processes(run_id) if p not in spare and not _zombie(p)]
        if not left:
            break
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(0.05)
    return len(killed)


def _zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def main() -> None:
    run_id = sys.argv[1]
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    until = time.monotonic() + GRACE_SECONDS  # Ray's own clean-up is quicker when it works
    while processes(run_id) and time.monotonic() < until:
        time.sleep(0.2)
    sweep(run_id)


if __name__ == "__main__":
    main()
