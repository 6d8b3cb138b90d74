"""What every command has to do with the shell: an exit code and words at its end, lines of news, commands to paste."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from rlcore.errors import EXIT_CODES, DiskError, RlcoreError, is_of_disk
from rlcore.screen import message, shown


def guarded(work: Callable[[], int]) -> int:
    """Run `work`; every end becomes a code of `EXIT_CODES` and, when it is an error, words on stderr."""

    came: list[signal.Signals] = []

    def stop(number: int, _frame: object) -> None:
        came.append(signal.Signals(number))
        raise KeyboardInterrupt(came[-1])

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    try:
        code = work()
        sys.stdout.flush()
        return code
    except RlcoreError as e:
        return _ended_by(e)
    except KeyboardInterrupt as e:
        named = [*e.args, *came]  # in a wait of Ray's, what comes out is a KeyboardInterrupt of its own
        by = next((each for each in named if isinstance(each, signal.Signals)), signal.SIGINT)
        _complain(f"stopped by {'Ctrl-C' if by == signal.SIGINT else by.name}")
        return 128 + by
    except BrokenPipeError as e:
        if not _has_no_reader(sys.stdout):
            return _fault(e)
        # What is left in the buffer is written when Python ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as e:
        return _ended_by(DiskError(f"{e.filename or ''}: {e.strerror}")) if is_of_disk(e) else _fault(e)
    except Exception as e:
        return _fault(e)


def _ended_by(error: RlcoreError) -> int:
    text = message(str(error))
    _complain(f"{type(error).__name__}:{chr(10) if text.startswith('  ') else ' '}{text}")
    return error.exit_code


def _fault(error: Exception) -> int:
    """What nobody foresaw: whoever mends it needs the traceback, so it stands above the line."""
    with contextlib.suppress(OSError):
        print(shown("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    _complain(message(f"this is a fault of rlcore's own, please report it: {type(error).__name__}: {error}"))
    return RlcoreError.exit_code


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone takes no words
        print(f"rlcore: {text}", file=sys.stderr)


def _has_no_reader(stream: IO[str]) -> bool:
    look = select.poll()
    look.register(stream, 0)
    return any(event & select.POLLERR for _, event in look.poll(0))


def print_usage() -> int:
    from rlcore.cli.commands import USAGE
    from rlcore.compose.recipe import recipe_names
    from rlcore.compose.stages import STAGES

    stages = "\n".join(
        f"{f'  rlcore {s.command} NAME|FILE.yaml [key=value ...]':<47} {s.does}" for s in STAGES.values()
    )
    codes = "\n".join(f"  {code:>3}  {means}" for code, means in EXIT_CODES.items())
    print(USAGE.format(stages=stages, recipes=", ".join(recipe_names()), commands=", ".join(STAGES), codes=codes))
    return 0


def say(text: str) -> None:
    """One line of news."""
    print(f"[rlcore] {message(text)}", flush=True)


def typed(*words: str | Path) -> str:
    """`rlcore WORDS` as this user can paste it into a shell."""
    program = sys.argv[0]
    if not program.endswith("/rlcore") or shutil.which("rlcore") is not None:
        program = "rlcore"
    return shlex.join([program, *map(str, words)])
