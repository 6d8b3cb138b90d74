"""`rlcore export RUN_DIR`: a checkpoint as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlcore.cli.shell import Arguments, say
from rlcore.errors import CheckpointError, ConfigError
from rlcore.files import require_writable
from rlcore.runs.export import export as export_checkpoint


def export(args: Sequence[str]) -> int:
    """Runs the command. Raises CheckpointError where there is no such run or checkpoint."""
    parser = Arguments(prog="rlcore export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args(args)
    if not given.run_dir.is_dir():
        raise CheckpointError(f"no run directory {given.run_dir}")
    out = given.out or given.run_dir / "export"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file; give a directory")
    require_writable(out.parent, "--out")
    export_checkpoint(given.run_dir, out, given.dtype, given.step, say)
    return 0
