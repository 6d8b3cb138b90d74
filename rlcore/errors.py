"""What can go wrong, and the exit code each kind ends the process with.

An error a user can cause says which key, row or file it is about and what to do. `assert` is for ourselves.
"""

import difflib
import errno
import re
from collections.abc import Iterable

# Every way out of a command. The README and `rlcore --help` show this table.
EXIT_CODES = {
    0: "done",
    1: "a fault of rlcore's own; the traceback is shown, or in the run's error.txt",
    2: "wrong configuration, data, model or machine; said before anything is learned",
    3: "rewards failed",
    4: "a worker failed",
    5: "the engines' weights are not the trainer's",
    6: "a checkpoint is missing, damaged, or of another run",
    7: "a disk is full, or a file of the run went bad while it ran",
    129: "SIGHUP: the terminal is gone",
    130: "Ctrl-C",
    141: "nobody reads the output any longer, as after `| head`",
    143: "SIGTERM",
}
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG}
_TOLD_BY_A_LIBRARY = re.compile(r"No space left on device|Disk quota exceeded|\(os error (28|122|5|30|116)\)")

_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*('|$)|"(?:[^"\\]|\\.)*("|$))""", re.DOTALL)  # $: it was cut
_NUMBER = re.compile(r"0x[0-9a-f]+|-?\d+(\.\d+)?(e[-+]?\d+)?")


class RlcoreError(Exception):
    """Base of every error that ends a run on purpose. `exit_code` is what the process returns."""

    exit_code = 1
    details = ""  # a worker's traceback: written to the run directory, not to the screen


class ConfigError(RlcoreError):
    """A key, a value or a combination that cannot run. Raised before Ray starts."""

    exit_code = 2


class DataError(RlcoreError):
    """A dataset, a row or a tokenizer that cannot be used; names the file and the row."""

    exit_code = 2


class UnparseableGold(ValueError):
    """A gold answer that its reward function cannot read: the sample's status, and listed when data loads."""


class RewardError(RlcoreError):
    """Too many samples of a step ended without a score; names the function and the commonest error."""

    exit_code = 3


class WorkerError(RlcoreError):
    """A worker raised, died or missed its deadline; names role, rank and phase."""

    exit_code = 4


class SyncError(RlcoreError):
    """The engine's weights are not the trainer's."""

    exit_code = 5


class CheckpointError(RlcoreError):
    """A checkpoint that is missing, torn, or of another run."""

    exit_code = 6


class DiskError(RlcoreError):
    """A disk that is full, or a file of the run that went bad while it ran; names the file."""

    exit_code = 7


def is_of_disk(error: BaseException) -> bool:
    """Whether a disk is at fault: by its number, or as a library that hides the number says it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _OF_A_DISK
    return _TOLD_BY_A_LIBRARY.search(str(error)) is not None


def kind(message: str) -> str:
    """What messages that differ only in numbers and quoted values have in common: "row 17, 'a'" is "row 0, ''"."""
    return _NUMBER.sub("0", _QUOTED.sub("''", message))


def nearest(word: str, known: Iterable[str]) -> str:
    """The one "did you mean", for an error's end: `; did you mean X?`, or nothing where no name is near. Case is no
    distance, and a bare last part is near its whole name: `learning_rate` is near `actor.learning_rate`."""
    names = {name.lower(): name for name in known}
    word = word.lower()
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    lasts = [] if "." in word else [name.rpartition(".")[2] for name in names]
    last = difflib.get_close_matches(word, lasts, n=1, cutoff=0.75)
    if last and not (close and close[0].rpartition(".")[2] == last[0]):
        close = difflib.get_close_matches(word, [n for n in names if n.rpartition(".")[2] == last[0]], n=1, cutoff=0.0)
    return f"; did you mean {names[close[0]]}?" if close else ""
