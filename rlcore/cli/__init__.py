"""The `rlcore` program."""

import sys


def main() -> None:
    """Run the command that was typed, and exit with its code."""
    from rlcore.surroundings import settle

    settle()  # before all imports that a file in the user's folder could be taken for
    from rlcore.cli.commands import run
    from rlcore.cli.shell import guarded

    command, *args = sys.argv[1:] or ["help"]
    sys.exit(guarded(lambda: run(command, args)))
