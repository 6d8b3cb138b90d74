"""How much memory processes hold."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rlcore.processes import processes


def memory_bytes(guards: Sequence[int]) -> dict[int, int]:
    """Resident bytes of all descendants of each of these pids: shared pages count in each process that has them."""
    seen = processes()
    total = dict.fromkeys(guards, 0)
    for pid, each in seen.items():
        above = each.parent
        while above not in total and above in seen:
            above = seen[above].parent
        if above in total and pid not in total:
            total[above] += each.resident_bytes
    return total


def own_bytes(pids: Sequence[int]) -> int:
    """Bytes that these processes hold together, each page counted once and files not at all; slower to find out."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            held = [line.split() for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            total += sum(int(words[1]) << 10 for words in held)
    return total
