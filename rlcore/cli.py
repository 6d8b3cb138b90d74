"""`rlcore train | sft | resume | export`. What goes wrong is said in one line and has an exit code of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.errors import CheckpointError, ConfigError, RlcoreError

if TYPE_CHECKING:
    from rlcore.compose import Composed
    from rlcore.config import Config

USAGE = """usage: rlcore COMMAND ...

  rlcore train NAME|FILE.yaml [key=value ...]   train; NAME is a recipe: {recipes}
  rlcore sft NAME|FILE.yaml [key=value ...]     supervised fine-tuning on prompts and responses
  rlcore resume RUN_DIR [key=value ...]         go on from a run's newest checkpoint, to the same numbers
  rlcore export RUN_DIR [--step N] [--out DIR] [--dtype float32|bfloat16]
                                                write a checkpoint as a Hugging Face model

train and sft take Hydra's flags too: --cfg job (print the resolved run), --multirun (sweep a=1,2), --info.
exit codes: 0 done, 2 wrong config or data, 3 rewards failed, 4 a worker failed, 5 weights out of sync, 6 checkpoint,
130 Ctrl-C"""

_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--experimental-rerun")


def main() -> None:
    """The `rlcore` program."""
    args = sys.argv[1:]
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train_command, "sft": sft_command, "resume": resume_command, "export": export_command
    }  # fmt: skip
    if not args or args[0] in ("-h", "--help", "help"):
        from rlcore.compose import recipe_names

        print(USAGE.format(recipes=", ".join(recipe_names())))
        sys.exit(0)
    if args[0] not in commands:
        print(f"rlcore: no command {args[0]!r}; there are: {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(commands[args[0]](args[1:]))


def guarded(work: Callable[[], int]) -> int:
    """Run `work`; every end becomes an exit code and, when it is an error, words on stderr."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), stop)
    try:
        return work()
    except RlcoreError as e:
        text = str(e)
        print(f"rlcore: {type(e).__name__}:{chr(10) if text.startswith('  ') else ' '}{text}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt as e:
        print(f"rlcore: stopped by {e.args[0] if e.args else 'Ctrl-C'}", file=sys.stderr)
        return 130


def _split(args: list[str], command: str) -> tuple[str, list[str], list[str]]:
    """(NAME, key=value overrides, Hydra's flags)."""
    names, overrides, flags = [], [], []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg.startswith("-") and "=" not in arg.split("{")[0][:2]:
            flags.append(arg)
            if arg in _FLAGS_WITH_VALUE and left:
                flags.append(left.pop(0))
        elif "=" in arg or arg.startswith("~"):
            overrides.append(arg)
        else:
            names.append(arg)
    if len(names) != 1:
        from rlcore.compose import recipe_names

        raise ConfigError(
            f"rlcore {command} takes one recipe, got {names or 'none'}; recipes: {', '.join(recipe_names())}, or a "
            "FILE.yaml; everything else is key=value"
        )
    return names[0], overrides, flags


def _composed(args: list[str], command: str, task: Callable[[Config, Composed], int]) -> int:
    from rlcore.compose import compose, run_with_hydra

    name, overrides, flags = _split(args, command)
    multirun = any(f in ("--multirun", "-m") for f in flags)
    composed, for_hydra = compose(name, overrides, multirun)
    return run_with_hydra(composed, for_hydra, flags, task)


def train_command(args: list[str]) -> int:
    """`rlcore train`: compose, check, train, export, and say where everything is."""
    return guarded(lambda: _composed(args, "train", _train))


def sft_command(args: list[str]) -> int:
    """`rlcore sft`: compose, check, fine-tune, export."""
    return guarded(lambda: _composed(args, "sft", _sft))


def resume_command(args: list[str]) -> int:
    """`rlcore resume RUN_DIR`: the run's own config, its newest checkpoint."""
    return guarded(lambda: _resume(args))


def _resume(args: list[str]) -> int:
    from rlcore.checkpoint import Checkpoints
    from rlcore.compose import compose_run

    if not args or "=" in args[0]:
        raise ConfigError("rlcore resume takes a run directory first: rlcore resume RUN_DIR [key=value ...]")
    run_dir = Path(args[0])
    composed = compose_run(run_dir, args[1:])
    found = Checkpoints(run_dir, keep=1).latest()
    if found is None:
        say(f"{run_dir} has no checkpoint yet: starting from step 0")
    from rlcore.compose import as_config

    cfg = as_config(composed.config)
    return (_sft if cfg.loss.name == "sft" else _train)(cfg, composed)


def export_command(args: list[str]) -> int:
    """`rlcore export RUN_DIR`: a checkpoint as a Hugging Face model."""
    return guarded(lambda: _export(args))


def _export(args: list[str]) -> int:
    import argparse

    from rlcore.checkpoint import export

    parser = argparse.ArgumentParser(prog="rlcore export")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    a = parser.parse_args(args)
    if not a.run_dir.is_dir():
        raise CheckpointError(f"no run directory {a.run_dir}")
    print(f"exported to {export(a.run_dir, a.out or a.run_dir / 'export', a.dtype, a.step)}")
    return 0


def say(text: str) -> None:
    """One line of start-up news."""
    print(f"[rlcore] {text}", flush=True)


def _sft(cfg: Config, composed: Composed) -> int:
    from rlcore.sft import sft

    if cfg.loss.name != "sft":
        raise ConfigError(f"loss.name is {cfg.loss.name}; rlcore sft needs loss.name=sft")
    out = sft(cfg, composed.config, say)
    say(f"exported model: {out}")
    return 0


def _train(cfg: Config, composed: Composed) -> int:
    """One run, from start-up to the last words."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rlcore.build import as_directory, build, with_model
    from rlcore.checkpoint import export
    from rlcore.sft import demo_model

    began = time.monotonic()
    if cfg.loss.name == "sft":
        raise ConfigError("loss.name is sft: use `rlcore sft`")
    if cfg.model.path == "demo":
        cfg = with_model(cfg, str(demo_model(say)))
    parts = build(as_directory(cfg), composed.config, say)
    run_dir = parts.tracker.run_dir
    try:
        from rlcore.train import train

        parts.tracker.event("started", steps=cfg.steps)
        train(parts)
        exported = export(run_dir, run_dir / "export", parts.dtype)
        _demand_all_read(parts.fields_read(), composed)
        parts.tracker.close("done")
    except BaseException as e:
        parts.tracker.event("failed", error=type(e).__name__, message=str(e), phase=parts.watch.phase)
        parts.tracker.close("failed")
        details = getattr(e, "details", "") or traceback.format_exc()
        (run_dir / "error.txt").write_text(details)
        if isinstance(e, RlcoreError) and e.details:
            say(f"the worker's traceback: {run_dir / 'error.txt'}")
        if parts.checkpoints.latest() is not None:
            say(f"the run can go on: rlcore resume {run_dir}")
        if not isinstance(e, (RlcoreError, KeyboardInterrupt)):
            say(f"the traceback: {run_dir / 'error.txt'}")
            raise RlcoreError(f"{type(e).__name__} in phase {parts.watch.phase}: {e}") from e
        raise
    finally:
        parts.close()
    _last_words(run_dir, exported, composed.name, time.monotonic() - began)
    return 0


def _last_words(run_dir: Path, exported: Path, name: str, seconds: float) -> None:
    """What came out of the run, where it is, and what to try next."""
    import json

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    say(f"done: {lines[-1]['step']} steps in {seconds / 60:.1f} minutes")
    for key in sorted({k for line in lines for k in line if k.startswith("eval/") and k.endswith("/accuracy")}):
        values = [line[key] for line in lines if line.get(key) is not None]
        say(f"  {key}: before {values[0]:.1%}, after {values[-1]:.1%}")
    say(f"  run directory:   {run_dir} (metrics.jsonl, events.jsonl, config.yaml, checkpoints)")
    say(f"  exported model:  {exported}")
    say(f"  sample rollouts: {run_dir / 'rollouts'}")
    say(f"next: rlcore train {name} seed=1   or your own: rlcore train gsm8k_grpo model.path=DIR data.train=FILE.jsonl")


def _demand_all_read(by_workers: set[str], composed: Composed) -> None:
    """Raise ConfigError when the user set a key that nothing in the whole run read: it had no effect."""
    from rlcore.config import all_keys, fields_read

    read = fields_read() | by_workers
    idle = [f"{k} ({origin})" for k, origin in composed.set_by.items() if all_keys()[k] not in read]
    if idle:
        raise ConfigError(
            f"the run is complete and saved, but nothing read {', '.join(sorted(idle))}: it had no effect under this "
            "configuration; remove it or set what makes it count"
        )
