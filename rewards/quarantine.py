"""The file of samples that a function failed on: one line of JSON each, with all it takes to score them again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rlcore.isolated.frames import plain
from rlcore.isolated.outcome import Outcome
from rlcore.records import Prompt, Response
from rlcore.secret_values import clean


def put(file: Path, prompt: Prompt, response: Response, name: str, outcome: Outcome) -> None:
    """Append what the function `name` failed on, and how."""
    line = {
        "function": name,
        "status": outcome.status,
        "message": outcome.message,
        "traceback": outcome.traceback,
        "seconds": outcome.seconds,
        "prompt": prompt.id,
        "answer": prompt.answer,
        "row": prompt.row,
        "response": response.text,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(clean(_strict(line)), allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    """As JSON of any reader: numbers that are not finite are text ("nan", "inf"), arrays lists, dates text."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else _strict(plain(value))
