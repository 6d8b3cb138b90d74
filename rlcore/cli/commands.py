"""Which commands there are: one a file, which takes its arguments and gives the exit code."""

from __future__ import annotations

from rlcore.compose.stages import STAGES
from rlcore.errors import ConfigError, nearest

USAGE = """usage: rlcore COMMAND ...

{stages}
                                                NAME is a recipe: {recipes}
  rlcore rewards test FUNCTION --data FILE      what a reward function says of a few rows; --help for more
  rlcore serve-reward FUNCTION                  answer reward requests over HTTP; --help for more
  rlcore resume RUN_DIR [step=N] [key=value ...]
                                                go on from a run's newest checkpoint, or that of step N, to the same
                                                numbers
  rlcore export RUN_DIR [--step N] [--out DIR] [--dtype float32|bfloat16]
                                                write a checkpoint as a Hugging Face model

{commands} take Hydra's flags too: --cfg job (print the resolved run), --multirun (sweep a=1,2).

exit codes:
{codes}"""

_COMMANDS = (*STAGES, "rewards", "serve-reward", "resume", "export")


def run(command: str, args: list[str]) -> int:
    """The exit code of a command. Only its own file is imported: `rewards test` needs no torch."""
    if command in ("-h", "--help", "help"):
        from rlcore.cli.shell import print_usage

        return print_usage()
    if command == "--version":
        import importlib.metadata

        print(f"rlcore {importlib.metadata.version('rlcore')}")
        return 0
    if command not in _COMMANDS:
        raise ConfigError(f"no command {command!r}{nearest(command, _COMMANDS)}; there are: {', '.join(_COMMANDS)}")
    if command == "rewards":
        from rlcore.cli.rewards_test import reward_test

        return reward_test(args)
    if command == "serve-reward":
        from rlcore.cli.serve_reward import serve_reward

        return serve_reward(args)
    if command == "resume":
        from rlcore.cli.resume import resume

        return resume(args)
    if command == "export":
        from rlcore.cli.export import export

        return export(args)
    from rlcore.cli.train import train

    return train(command, args)
