"""What every command has to do with the shell: an exit code and words at its end, lines of news, commands to paste."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rlcore.errors import EXIT_CODES, ConfigError, DiskError, RlcoreError, is_of_disk
from rlcore.screen import give_up_unread, is_unread, message, shown
from rlcore.waiting import tell


class Arguments(argparse.ArgumentParser):
    """Of a command. What is wrong with them is told as everything else is: ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help shows what there is")


def guarded(work: Callable[[], int]) -> int:
    """Run `work`; every end becomes a code of `EXIT_CODES` and, when it is an error, words on stderr."""

    came: list[signal.Signals] = []

    def stop(number: int, _frame: object) -> None:
        came.append(signal.Signals(number))
        if number == signal.SIGHUP:
            give_up_unread()
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
    except OSError as e:
        if is_unread(e):
            give_up_unread()  # what is left in the buffer is written when Python ends, and would fail again
            return 128 + (signal.SIGPIPE if isinstance(e, BrokenPipeError) else signal.SIGHUP)
        if is_of_disk(e):
            return _ended_by(DiskError(f"{e.filename or 'standard output, or another open file'}: {e.strerror}"))
        return _fault(e)
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


say = tell  # one line of news: what a command tells looks as what a wait does


def typed(*words: str | Path) -> str:
    """`rlcore WORDS` as this user can paste it into a shell."""
    program = sys.argv[0]
    if not program.endswith("/rlcore") or shutil.which("rlcore") is not None:
        program = "rlcore"
    return shlex.join([program, *map(str, words)])
