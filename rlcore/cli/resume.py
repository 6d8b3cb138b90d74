"""`rlcore resume RUN_DIR`: the run's own config, its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from rlcore.cli.shell import say, typed
from rlcore.cli.train import run_stage
from rlcore.compose.compose import as_config, compose_run
from rlcore.errors import ConfigError
from rlcore.runs.checkpoint import Checkpoints


def resume(args: list[str]) -> int:
    """Runs the command. Raises ConfigError where the directory holds no run, or a change to its config is wrong."""
    if not args or ("=" in args[0] and not Path(args[0]).is_dir()):
        raise ConfigError("rlcore resume takes a run directory first: rlcore resume RUN_DIR [key=value ...]")
    run_dir = Path(args[0])
    composed = compose_run(run_dir, args[1:])
    if Checkpoints(run_dir, keep=1).latest() is None:
        say(f"{run_dir} has no checkpoint yet: starting from step 0")
    return run_stage(as_config(composed.config), composed, typed("export", run_dir, "--dtype", "bfloat16"))
