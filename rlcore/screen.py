"""Text for a terminal: no secrets in it, and no character of anybody's text that the terminal would obey."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import sys
import unicodedata
from typing import IO

from rlcore.secret_values import without_secrets

_KEPT = "\n\t\u200c\u200d"  # the last two join letters of some scripts, and parts of emoji
_ASCII_SEEN = re.compile(r"[\n\t -~]*")


def shown(text: str) -> str:
    """`text` as it may be printed: control characters, escape sequences, what turns the direction of writing or is not
    seen, and halves of surrogate pairs become backslash escapes. Line ends and tabs stay."""
    text = without_secrets(text).replace("\r\n", "\n")
    return text if _ASCII_SEEN.fullmatch(text) else "".join(map(_seen, text))


def message(text: str) -> str:
    """`shown`, of a message of ours: a line break that came with somebody's words in it begins no line at the margin,
    where the next message would."""
    return re.sub(r"\n(?=\S)", "\n  ", shown(text))


def screen_prints() -> None:
    """What this process prints from now on is `shown`: for one that runs functions which print what a model wrote."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            raw = open(stream.fileno(), "wb", closefd=False)  # noqa: SIM115 - as long as the process lives
            setattr(sys, name, _Shown(raw, stream.encoding, "backslashreplace", line_buffering=True))


def nobody_reads(stream: IO[str] | None) -> bool:
    """Whether nobody will see what is written there: a pipe without a reader, or a terminal that has been closed."""
    if stream is None:
        return False
    look = select.poll()
    try:
        look.register(stream, 0)
    except (ValueError, AttributeError):  # it has no file below
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0))


def is_unread(error: BaseException) -> bool:
    """Whether it comes of writing to standard output or to standard error, which nobody reads any longer."""
    if not isinstance(error, OSError) or error.errno not in (errno.EPIPE, errno.EIO) or error.filename is not None:
        return False
    return nobody_reads(sys.stdout) or nobody_reads(sys.stderr)


def give_up_unread() -> None:
    """What is written from now on where nobody reads goes nowhere: an end in order is not disturbed by it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and nobody_reads(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Shown(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(shown(text))
        return len(text)


def _seen(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape", "backslashreplace").decode()
