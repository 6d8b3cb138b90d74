"""What every generator does: check its arguments, draw rows, and keep held-out problems apart.

A problem is known by its key, of which names and wording are no part: a held-out problem is not a known one told about
someone else. The same arguments give the same rows on every machine. See docs/data.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from rlcore.errors import DataError

SPLITS = ("train", "eval")
TRIES = 10_000  # without a new problem: there are no more, or nearly
_HELD_OUT_ONE_IN = 10


def check_size(name: str, size: int, split: str) -> None:
    if size < 1:
        raise DataError(f"generate:{name}: size={size}, must be at least 1")
    if split not in SPLITS:
        raise DataError(f"generate:{name}: split={split}, must be one of {', '.join(SPLITS)}")


def check_shares(name: str, **shares: float) -> None:
    for share, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise DataError(f"generate:{name}: {share}={value}, must be between 0 and 1")


def number_range(text: str, least: int, most: int) -> tuple[int, int] | None:
    """ "3" as (3, 3), "3-4" as (3, 4); None for any other text, and for what is not from `least` to `most`."""
    found = re.fullmatch(r"(\d)(?:-(\d))?", text, re.ASCII)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    return (low, high) if least <= low <= high <= most else None


def held_out(key: str) -> bool:
    """Whether the problem of this key belongs to the split "eval": SHA-256 decides, one in ten does."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def split_rows(
    name: str, size: int, split: str, make: Callable[[], tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """`size` rows of the split, of the (key, row) that `make` gives. Held-out questions are all different; small ones
    come again in training, as they do."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    misses = 0
    while len(rows) < size:
        key, row = make()
        if held_out(key) != (split == "eval") or row["question"] in seen:
            misses += 1
            if misses == TRIES:
                raise DataError(f"generate:{name}: only {len(rows)} different problems of split {split}; ask for fewer")
            continue
        misses = 0
        rows.append(row)
        if split == "eval":
            seen.add(row["question"])
    return rows
