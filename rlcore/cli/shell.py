"""What every command has to do with the shell: an exit code and words at its end, lines of news, commands to paste."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rlcore.errors import RlcoreError
from rlcore.screen import message


def guarded(work: Callable[[], int]) -> int:
    """Run `work`; every end becomes an exit code and, when it is an error, words on stderr."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), stop)
    try:
        return work()
    except RlcoreError as e:
        text = message(str(e))
        print(f"rlcore: {type(e).__name__}:{chr(10) if text.startswith('  ') else ' '}{text}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt as e:
        print(f"rlcore: stopped by {e.args[0] if e.args else 'Ctrl-C'}", file=sys.stderr)
        return 130


def print_usage() -> None:
    from rlcore.cli import USAGE
    from rlcore.compose.recipe import recipe_names
    from rlcore.compose.stages import STAGES

    stages = "\n".join(
        f"{f'  rlcore {s.command} NAME|FILE.yaml [key=value ...]':<47} {s.does}" for s in STAGES.values()
    )
    print(USAGE.format(stages=stages, recipes=", ".join(recipe_names()), commands=", ".join(STAGES)))


def say(text: str) -> None:
    """One line of news."""
    print(f"[rlcore] {message(text)}", flush=True)


def typed(*words: str | Path) -> str:
    """`rlcore WORDS` as this user can paste it into a shell."""
    program = sys.argv[0]
    if not program.endswith("/rlcore") or shutil.which("rlcore") is not None:
        program = "rlcore"
    return shlex.join([program, *map(str, words)])
