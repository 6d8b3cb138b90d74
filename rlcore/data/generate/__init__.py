"""Generated problems by name: `generate:NAME?argument=value&...`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlcore.data.generate.arithmetic import arithmetic
from rlcore.data.generate.arithmetic_pairs import arithmetic_pairs
from rlcore.data.generate.countdown import countdown
from rlcore.data.generate.knights_knaves import knights_knaves

GENERATORS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "arithmetic": arithmetic,
    "arithmetic_pairs": arithmetic_pairs,
    "countdown": countdown,
    "knights_knaves": knights_knaves,
}
