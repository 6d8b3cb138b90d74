"""The names of generated problems: `generate:NAME?argument=value&...`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlcore.mistakes import arithmetic_pairs
from rlcore.problems import arithmetic, countdown
from rlcore.puzzles import knights_knaves

GENERATORS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "arithmetic": arithmetic,
    "arithmetic_pairs": arithmetic_pairs,
    "countdown": countdown,
    "knights_knaves": knights_knaves,
}
