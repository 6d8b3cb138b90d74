"""`rlcore resume RUN_DIR`: the run's own config, its newest checkpoint or that of a step."""

from __future__ import annotations

from pathlib import Path

from rlcore.cli.shell import say, typed
from rlcore.cli.train import run_stage
from rlcore.compose.compose import as_config, compose_run
from rlcore.errors import ConfigError
from rlcore.runs.checkpoint import Checkpoints

_STEP = "step="


def resume(args: list[str]) -> int:
    """Runs the command. Raises ConfigError where the directory holds no run, or a change to its config is wrong."""
    if not args or ("=" in args[0] and not Path(args[0]).is_dir()):
        raise ConfigError("rlcore resume takes a run directory first: rlcore resume RUN_DIR [step=N] [key=value ...]")
    run_dir = Path(args[0])
    step = _step([arg for arg in args[1:] if arg.startswith(_STEP)])
    composed = compose_run(run_dir, [arg for arg in args[1:] if not arg.startswith(_STEP)])
    if step is None and not Checkpoints(run_dir, keep=1).all():
        say(f"{run_dir} has no checkpoint yet: starting from step 0")
    again = typed("export", run_dir, "--dtype", "bfloat16")
    return run_stage(as_config(composed.config), composed, again, step)


def _step(given: list[str]) -> int | None:
    """The step whose checkpoint the user wants; None: the newest."""
    if not given:
        return None
    text = given[-1].removeprefix(_STEP)
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{given[-1]}: it must be the step of a checkpoint of the run, a whole number")
    return int(text)
