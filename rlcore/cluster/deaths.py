"""Why a worker of Ray's has died: one line a user can act on, out of Ray's long notices."""

from __future__ import annotations

import re
from typing import Any

_AT_CREATION = "raised in its creation task,"
_COLOR = re.compile(r"\x1b\[\d*m")
_FRAME = re.compile(r'  File "(.*)", line (\d+)')
_MARKS = re.compile(r"[ ~^]+\^[ ~^]*")  # what Python puts under the words at fault
_SHOWN = 500


def notice(death: Any) -> str:
    """The text of what Ray's table of actors has as DeathCause."""
    context = getattr(death, death.WhichOneof("context") or "", None)
    for name in ("formatted_exception_string", "error_message"):
        if text := getattr(context, name, ""):
            return text
    return str(death) or "cause unknown"


def short(text: str, logs: str) -> str:
    """Of such a text, or of what ray.get raises for a worker that is dead. `logs` says where there may be more."""
    if _AT_CREATION in text:
        return f"its creation failed: {raised(text.rpartition(_AT_CREATION)[2])}"
    if "Worker exit detail:" in text:
        detail = text.split("Worker exit detail:", 1)[1].split("Some common causes", 1)[0]
        return f"{detail.strip()} (killed, out of memory, or crashed; {logs})"
    return text.strip().splitlines()[0][:_SHOWN]


def raised(text: str) -> str:
    """`KeyError: 'x' (my/file.py:7)`, where it was raised, of the text of a traceback, which may hold others."""
    lines = _COLOR.sub("", text).strip().splitlines() or ["unknown"]
    marks = [i for i, line in enumerate(lines) if _FRAME.match(line) or _MARKS.fullmatch(line)]
    after = lines[marks[-1] + 1 :] if marks else lines
    said = next((line for line in after if line.strip() and not line.startswith(" ")), lines[-1])[:_SHOWN]
    frames = [frame for line in lines if (frame := _FRAME.match(line))]
    return f"{said} ({frames[-1][1]}:{frames[-1][2]})" if frames else said
