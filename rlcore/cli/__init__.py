"""`rlcore train`, `sft`, `resume`, ... What goes wrong is said in one line and has an exit code of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.errors import CheckpointError, ConfigError, RlcoreError

if TYPE_CHECKING:
    from rlcore.compose.compose import Composed
    from rlcore.config import Config

USAGE = """usage: rlcore COMMAND ...

  rlcore train NAME|FILE.yaml [key=value ...]   train; NAME is a recipe: {recipes}
  rlcore sft NAME|FILE.yaml [key=value ...]     supervised fine-tuning on prompts and responses
  rlcore train-rm NAME|FILE.yaml [key=value ...]
                                                train a reward model on preference pairs
  rlcore rewards test FUNCTION --data FILE      what a reward function says of a few rows; --help for more
  rlcore serve-reward FUNCTION                  answer reward requests over HTTP; --help for more
  rlcore resume RUN_DIR [key=value ...]         go on from a run's newest checkpoint, to the same numbers
  rlcore export RUN_DIR [--step N] [--out DIR] [--dtype float32|bfloat16]
                                                write a checkpoint as a Hugging Face model

train, sft and train-rm take Hydra's flags too: --cfg job (print the resolved run), --multirun (sweep a=1,2), --info.
exit codes: 0 done, 2 wrong config or data, 3 rewards failed, 4 a worker failed, 5 weights out of sync, 6 checkpoint,
130 Ctrl-C"""

_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--experimental-rerun")


def main() -> None:
    """The `rlcore` program."""
    args = sys.argv[1:]
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train_command, "sft": sft_command, "train-rm": train_rm_command, "rewards": rewards_command,
        "serve-reward": serve_command, "resume": resume_command, "export": export_command,
    }  # fmt: skip
    if not args or args[0] in ("-h", "--help", "help"):
        from rlcore.compose.compose import recipe_names

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
        from rlcore.compose.compose import recipe_names

        raise ConfigError(
            f"rlcore {command} takes one recipe, got {names or 'none'}; recipes: {', '.join(recipe_names())}, or a "
            "FILE.yaml; everything else is key=value"
        )
    return names[0], overrides, flags


def _composed(args: list[str], command: str, task: Callable[[Config, Composed, str], int]) -> int:
    from rlcore.compose.compose import compose, run_with_hydra

    if any(a in ("-h", "--help") for a in args):
        from rlcore.compose.compose import recipe_names

        print(USAGE.format(recipes=", ".join(recipe_names())))
        return 0
    name, overrides, flags = _split(args, command)
    multirun = any(f in ("--multirun", "-m") for f in flags)
    composed, for_hydra = compose(name, overrides, multirun, command)
    others = [o for o in overrides if o.split("=")[0] not in ("seed", "run_dir")]
    again = _command(command, name, *others, f"seed={composed.config.seed + 1}")
    return run_with_hydra(composed, for_hydra, flags, lambda cfg, composed: task(cfg, composed, again))


def _command(*words: str | Path) -> str:
    """`rlcore WORDS` as this user can paste it into a shell."""
    typed = sys.argv[0]
    program = typed if typed.endswith("/rlcore") and shutil.which("rlcore") is None else "rlcore"
    return shlex.join([program, *map(str, words)])


def train_command(args: list[str]) -> int:
    """`rlcore train`: compose, check, train, export, and say where everything is."""
    return guarded(lambda: _composed(args, "train", _train))


def sft_command(args: list[str]) -> int:
    """`rlcore sft`: compose, check, fine-tune, export."""
    return guarded(lambda: _composed(args, "sft", _sft))


def train_rm_command(args: list[str]) -> int:
    """`rlcore train-rm`: compose, check, learn a reward model from preference pairs, export."""
    return guarded(lambda: _composed(args, "train-rm", _train_rm))


def rewards_command(args: list[str]) -> int:
    """`rlcore rewards test`: see rlcore/cli/rewards_test.py."""
    from rlcore.cli.rewards_test import reward_test

    return guarded(lambda: reward_test(args))


def serve_command(args: list[str]) -> int:
    """`rlcore serve-reward`: see rlcore/cli/serve_reward.py."""
    from rlcore.cli.serve_reward import serve_reward

    return guarded(lambda: serve_reward(args))


def resume_command(args: list[str]) -> int:
    """`rlcore resume RUN_DIR`: the run's own config, its newest checkpoint."""
    return guarded(lambda: _resume(args))


def _resume(args: list[str]) -> int:
    from rlcore.compose.compose import compose_run
    from rlcore.runs.checkpoint import Checkpoints

    if not args or "=" in args[0]:
        raise ConfigError("rlcore resume takes a run directory first: rlcore resume RUN_DIR [key=value ...]")
    run_dir = Path(args[0])
    composed = compose_run(run_dir, args[1:])
    found = Checkpoints(run_dir, keep=1).latest()
    if found is None:
        say(f"{run_dir} has no checkpoint yet: starting from step 0")
    from rlcore.compose.compose import as_config

    cfg = as_config(composed.config)
    go_on = {"sft": _sft, "bradley_terry": _train_rm}.get(cfg.loss.name, _train)
    return go_on(cfg, composed, _command("export", run_dir, "--dtype", "bfloat16"))


def export_command(args: list[str]) -> int:
    """`rlcore export RUN_DIR`: a checkpoint as a Hugging Face model."""
    return guarded(lambda: _export(args))


def _export(args: list[str]) -> int:
    import argparse

    from rlcore.runs.checkpoint import export

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


def _sft(cfg: Config, composed: Composed, again: str) -> int:
    from rlcore.train.sft import sft

    return _fitted(cfg, composed, sft)


def _train_rm(cfg: Config, composed: Composed, again: str) -> int:
    from rlcore.train.train_rm import train_rm

    return _fitted(cfg, composed, train_rm)


def _fitted(cfg: Config, composed: Composed, fit: Callable[..., tuple[Path, set[str]]]) -> int:
    """Training without rollouts: `fit` gives the exported model's directory and the config fields its workers read."""
    from rlcore.runs.directory import recorded

    with recorded(Path(str(cfg.run_dir))):
        out, read = fit(_with_embedded(cfg), composed.config, say)
        _demand_all_read(read, composed)
    say(f"exported model: {out}")
    return 0


def _with_embedded(cfg: Config) -> Config:
    """The config with the directory of an embedded model in place of its name; the model is made if it is not there."""
    from rlcore.models.embedded import EMBEDDED

    if cfg.model.path not in EMBEDDED:
        return cfg
    from rlcore.train.build import with_model
    from rlcore.train.warm_up import embedded_model

    return with_model(cfg, str(embedded_model(cfg.model.path, say)))


def _train(cfg: Config, composed: Composed, again: str) -> int:
    """One run, from start-up to the last words. `again` is a command to suggest at the end."""
    from rlcore.runs.directory import recorded

    began = time.monotonic()
    run_dir = Path(str(cfg.run_dir))
    try:
        with recorded(run_dir):
            exported = _run(cfg, composed)
    except BaseException:
        if list(run_dir.glob("checkpoints/step_*")):
            say(f"the run can go on: {_command('resume', run_dir)}")
        raise
    _last_words(run_dir, exported, again, time.monotonic() - began)
    return 0


def _run(cfg: Config, composed: Composed) -> Path:
    """Build, train, export; everything started is ended. Returns the exported model's directory."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from rlcore.runs.checkpoint import export
    from rlcore.train.build import as_directory, build
    from rlcore.train.loop import train

    parts = build(cfg, composed.config, say, prepare=lambda cfg: as_directory(_with_embedded(cfg)))
    status = "failed"
    try:
        parts.tracker.event("started", steps=cfg.steps)
        train(parts)
        exported = export(parts.tracker.run_dir, parts.tracker.run_dir / "export", parts.dtype)
        _demand_all_read(parts.fields_read(), composed)
        status = "done"
        return exported
    finally:
        parts.tracker.close(status)
        parts.close()


def _last_words(run_dir: Path, exported: Path, again: str, seconds: float) -> None:
    """What came out of the run, where it is, and what to try next."""
    import json

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = lines[-1]["time"] - lines[0]["time"]
    say(f"done: {lines[-1]['step']} steps in {training / 60:.1f} minutes of training, {seconds / 60:.1f} in all")
    for key in sorted({k for line in lines for k in line if k.startswith("eval/") and k.endswith("/accuracy")}):
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            form = ".1%" if all(0 <= v <= 1 for v in values) else ".3g"  # a reward of 1.2 is no share of the answers
            say(f"  {key}: before {values[0]:{form}}, after {values[-1]:{form}}")
    say(f"  run directory:   {run_dir} (metrics.jsonl, events.jsonl, config.yaml, checkpoints)")
    say(f"  exported model:  {exported}")
    say(f"  sample rollouts: {run_dir / 'rollouts'}")
    say(f"next: {again}")
    say(f"your own: {_command('train', 'gsm8k_grpo', 'model.path=DIR', 'data.train=FILE.jsonl')}")


def _demand_all_read(by_workers: set[str], composed: Composed) -> None:
    """Raise ConfigError when the user set a key that nothing in the whole run read: it had no effect."""
    from rlcore.compose.unused_keys import OF_ONE_DEVICE
    from rlcore.config import all_keys, fields_read

    read = fields_read() | by_workers
    unread = {k: origin for k, origin in composed.set_by.items() if all_keys()[k] not in read}
    for key in sorted(unread.keys() & OF_ONE_DEVICE):
        say(f"{key} ({unread[key]}): had no effect on this kind of device")
    idle = [f"{key} ({origin})" for key, origin in sorted(unread.items()) if key not in OF_ONE_DEVICE]
    if idle:
        raise ConfigError(
            f"the run is complete and saved, but nothing read {', '.join(idle)}: it had no effect under this "
            "configuration; remove it or set what makes it count"
        )
