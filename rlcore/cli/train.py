"""`rlcore train`, `sft`, `train-rm` and `dpo`: one command, each with a stage of its own; and `python -m rlcore.train`.

Compose and check, then hand over to Hydra, which runs the job or each of a sweep's; then run the stage and say what
came of it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path

from rlcore.cli.shell import guarded, print_usage, say, typed
from rlcore.compose.compose import Composed, compose, run_with_hydra
from rlcore.compose.recipe import recipe_names
from rlcore.compose.stages import stage_of
from rlcore.compose.unused_keys import OF_ONE_DEVICE
from rlcore.config import Config, all_keys, fields_read, forget_reads
from rlcore.errors import CheckpointError, ConfigError, nearest
from rlcore.runs.checkpoint import Best
from rlcore.runs.directory import recorded

_SHARES = ("accuracy", "ranked_right")
_TOLD = (*_SHARES, "loss", "margin")  # numbers of an evaluation that are told at the end
# Hydra's flags that mean something here, and the values each takes: none, one of these, or any text.
_FLAGS: dict[str, tuple[str, ...] | str | None] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": "a section, as in --cfg job --package rollout",
    "--resolve": None,
    "--multirun": None,
}
_SHORT = {"-c": "--cfg", "-i": "--info", "-p": "--package", "-m": "--multirun"}
_NAME_FLAGS = ("--config-name", "-cn")
_DIRECTORY_FLAGS = ("--config-dir", "-cd")


def main() -> None:
    """`python -m rlcore.train --config-name NAME key=value`: the same as `rlcore train NAME key=value`."""
    sys.exit(guarded(lambda: train("train", from_hydra_names(sys.argv[1:]))))


def from_hydra_names(args: list[str]) -> list[str]:
    """Hydra's `--config-name NAME`, and `--config-dir DIR`, as the NAME|FILE.yaml that `rlcore train` takes first."""
    left, rest = list(args), []
    name = directory = None
    while left:
        arg = left.pop(0)
        flag, equals, value = arg.partition("=")
        if flag not in _NAME_FLAGS + _DIRECTORY_FLAGS:
            rest.append(arg)
            continue
        if not equals and left and not left[0].startswith("-"):
            value = left.pop(0)
        if not value:
            raise ConfigError(f"{flag} needs a value: --config-name NAME [--config-dir DIR]")
        name, directory = (value, directory) if flag in _NAME_FLAGS else (name, value)
    if directory and name:
        name = f"{directory}/{name if name.endswith(('.yaml', '.yml')) else f'{name}.yaml'}"
    return [*([name] if name else []), *rest]


def train(command: str, args: list[str]) -> int:
    """Runs `rlcore COMMAND ARGS`: compose, check, train, export, and say where everything is."""
    if any(a in ("-h", "--help") for a in args):
        return print_usage()
    name, overrides, flags = _split(command, args)
    multirun = "--multirun" in flags
    composed, for_hydra = compose(name, overrides, multirun, command)
    again = with_next_seed(command, name, overrides, composed.config.seed)
    return run_with_hydra(composed, for_hydra, flags, lambda cfg, composed: run_stage(cfg, composed, again))


def _split(command: str, args: list[str]) -> tuple[str, list[str], list[str]]:
    """(NAME, key=value overrides, Hydra's flags, each as --flag or --flag=value)."""
    names, overrides, flags = [], [], []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg.startswith("-"):
            flags.append(_flag(arg, left))
        elif "=" in arg or arg.startswith("~"):
            overrides.append(arg)
        else:
            names.append(arg)
    asked = [f.partition("=")[0] for f in flags]
    if len(either := [f for f in asked if f in ("--cfg", "--info", "--multirun")]) > 1:
        raise ConfigError(f"only one of {', '.join(either)} at a time")
    if "--resolve" in flags and "--cfg" not in asked:
        raise ConfigError("--resolve goes with --cfg job, which prints the resolved run anyhow")
    if len(names) != 1:
        raise ConfigError(
            f"rlcore {command} takes one recipe, got {names or 'none'}; recipes: {', '.join(recipe_names())}, or a "
            "FILE.yaml; everything else is key=value"
        )
    return names[0], overrides, flags


def _flag(arg: str, left: list[str]) -> str:
    """One of Hydra's flags with its value, which may be the first of `left`, and is taken from there then."""
    short, equals, value = arg.partition("=")
    flag = _SHORT.get(short, short)
    if flag not in _FLAGS:
        raise ConfigError(f"no flag {short}{nearest(short, _FLAGS)}; there are {', '.join(_FLAGS)}, and --help")
    takes = _FLAGS[flag]
    if takes is None:
        if equals:
            raise ConfigError(f"{flag} takes no value, it has {value}")
        return flag
    if not equals and left and (left[0] in takes if isinstance(takes, tuple) else not left[0].startswith("-")):
        value = left.pop(0)
    if value in takes if isinstance(takes, tuple) else value:
        return f"{flag}={value}"
    if flag == "--info" and not value:
        return flag
    choices = takes if isinstance(takes, str) else f"one of {', '.join(takes)}"
    raise ConfigError(f"{flag} needs {choices}" + (f", not {value}" if value else ""))


def with_next_seed(command: str, name: str, overrides: list[str], seed: int) -> str:
    """The same command with the seed after this one, in a run directory of its own; to paste into a shell."""
    others = [o for o in overrides if o.split("=")[0] not in ("seed", "run_dir")]
    return typed(command, name, *others, f"seed={seed + 1}")


def run_stage(cfg: Config, composed: Composed, again: str, step: int | None = None) -> int:
    """One run of the stage that loss.name stands for, from start-up to the last words. `again` is a command to suggest
    at the end; `step` as in `whole_run`."""
    began = time.monotonic()
    forget_reads()  # of another job of a sweep
    run_dir = Path(str(cfg.run_dir))
    try:
        with recorded(run_dir, composed.named_by_time) as run_dir:
            cfg.run_dir = composed.config.run_dir = str(run_dir)
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            from rlcore.train.build import whole_run

            unread = functools.partial(unread_keys, composed)
            finished = whole_run(cfg, composed.config, stage_of(cfg.loss.name), say, unread, step)
    except BaseException as e:
        if list(run_dir.glob("checkpoints/step_*")) and not isinstance(e, CheckpointError):  # which says what to do
            say(f"the run can go on: {typed('resume', run_dir)}")
        raise
    last_words(run_dir, finished.exported, again, time.monotonic() - began, finished.best)
    say_unread(finished.unread)
    return 0


def last_words(run_dir: Path, exported: Path, again: str, seconds: float, best: Best | None = None) -> None:
    """What came out of the run, where it is, and what to try next."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = lines[-1]["time"] - lines[0]["time"]
    say(f"done: {lines[-1]['step']} steps in {training / 60:.1f} minutes of training, {seconds / 60:.1f} in all")
    for key in sorted({key for line in lines for key in line if key.startswith("eval/")}):
        values = [line[key] for line in lines if line.get(key) is not None]
        name = key.rpartition("/")[2]
        if values and name in _TOLD:
            # A reward of 1.2 is no share of the answers.
            form = ".1%" if name in _SHARES and all(0 <= v <= 1 for v in values) else ".3g"
            say(f"  {key}: before {values[0]:{form}}, after {values[-1]:{form}}")
    if best is not None:
        how = typed("export", run_dir, "--step", str(best.step))
        say(f"  best checkpoint: step {best.step} ({best.value:.4g}); {how}")
    say(f"  run directory:   {run_dir} (metrics.jsonl, events.jsonl, config.yaml, checkpoints)")
    say(f"  exported model:  {exported}")
    if any((run_dir / "rollouts").iterdir()):
        say(f"  sample rollouts: {run_dir / 'rollouts'}")
    say(f"next: {again}")
    say(f"your own: {typed('train', 'gsm8k_grpo', 'model.path=DIR', 'data.train=FILE.jsonl')}")


def unread_keys(composed: Composed, read_by_workers: set[str]) -> dict[str, str]:
    """Of the keys the user set, those that nothing read, here or in a worker: key -> where it was set."""
    read = fields_read() | read_by_workers
    return {key: origin for key, origin in composed.set_by.items() if all_keys()[key] not in read}


def say_unread(unread: dict[str, str]) -> None:
    for key in sorted(unread.keys() & OF_ONE_DEVICE):
        say(f"{key} ({unread[key]}): had no effect on this kind of device")
    others = [f"{key} ({origin})" for key, origin in sorted(unread.items()) if key not in OF_ONE_DEVICE]
    if others:
        say(f"nothing read {', '.join(others)}: it had no effect in this run")
