"""`rlcore train`, `sft` and `train-rm`: one command, each with a stage of its own; and `python -m rlcore.train`.

Compose and check, then hand over to Hydra, which runs the job or each of a sweep's; then run the stage and say what
came of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlcore.cli.shell import guarded, print_usage, say, typed
from rlcore.compose.compose import Composed, compose, run_with_hydra
from rlcore.compose.function_names import WITHOUT_REWARD
from rlcore.compose.recipe import recipe_names
from rlcore.compose.unused_keys import OF_ONE_DEVICE
from rlcore.config import Config, all_keys, fields_read
from rlcore.errors import ConfigError
from rlcore.runs.directory import recorded

_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--experimental-rerun")
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
        print_usage()
        return 0
    name, overrides, flags = _split(command, args)
    multirun = any(f in ("--multirun", "-m") for f in flags)
    composed, for_hydra = compose(name, overrides, multirun, command)
    again = with_next_seed(command, name, overrides, composed.config.seed)
    return run_with_hydra(composed, for_hydra, flags, lambda cfg, composed: run_stage(cfg, composed, again))


def _split(command: str, args: list[str]) -> tuple[str, list[str], list[str]]:
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
        raise ConfigError(
            f"rlcore {command} takes one recipe, got {names or 'none'}; recipes: {', '.join(recipe_names())}, or a "
            "FILE.yaml; everything else is key=value"
        )
    return names[0], overrides, flags


def with_next_seed(command: str, name: str, overrides: list[str], seed: int) -> str:
    """The same command with the seed after this one, in a run directory of its own; to paste into a shell."""
    others = [o for o in overrides if o.split("=")[0] not in ("seed", "run_dir")]
    return typed(command, name, *others, f"seed={seed + 1}")


def run_stage(cfg: Config, composed: Composed, again: str) -> int:
    """Run the stage that loss.name stands for. `again` is a command to suggest at the end."""
    stages = {"train": _train, "sft": _sft, "train-rm": _train_rm}
    return stages[WITHOUT_REWARD.get(cfg.loss.name, "train")](cfg, composed, again)


def _sft(cfg: Config, composed: Composed, again: str) -> int:
    from rlcore.train.sft import sft

    return _fitted(cfg, composed, sft)


def _train_rm(cfg: Config, composed: Composed, again: str) -> int:
    from rlcore.train.train_rm import train_rm

    return _fitted(cfg, composed, train_rm)


def _fitted(cfg: Config, composed: Composed, fit: Callable[..., tuple[Path, set[str]]]) -> int:
    """Training without rollouts: `fit` gives the exported model's directory and the config fields its workers read."""
    with recorded(Path(str(cfg.run_dir))):
        out, read = fit(_with_embedded(cfg), composed.config, say)
    say(f"exported model: {out}")
    say_unread(read, composed, lambda name, **fields: None)  # `fit` has closed its events
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
    began = time.monotonic()
    run_dir = Path(str(cfg.run_dir))
    try:
        with recorded(run_dir):
            exported = _run(cfg, composed)
    except BaseException:
        if list(run_dir.glob("checkpoints/step_*")):
            say(f"the run can go on: {typed('resume', run_dir)}")
        raise
    last_words(run_dir, exported, again, time.monotonic() - began)
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
        say_unread(parts.fields_read(), composed, parts.tracker.event)
        status = "done"
        return exported
    finally:
        parts.tracker.close(status)
        parts.close()


def last_words(run_dir: Path, exported: Path, again: str, seconds: float) -> None:
    """What came out of the run, where it is, and what to try next."""
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
    say(f"your own: {typed('train', 'gsm8k_grpo', 'model.path=DIR', 'data.train=FILE.jsonl')}")


def say_unread(by_workers: set[str], composed: Composed, event: Callable[..., Any]) -> None:
    """Of the keys the user set, say those that nothing in the whole run read, and write the event `unread`.

    by_workers  the config fields that other processes have read; this one's are added
    event       Tracker.event
    """
    read = fields_read() | by_workers
    unread = {k: origin for k, origin in composed.set_by.items() if all_keys()[k] not in read}
    if not unread:
        return
    event("unread", keys=unread)
    for key in sorted(unread.keys() & OF_ONE_DEVICE):
        say(f"{key} ({unread[key]}): had no effect on this kind of device")
    others = [f"{key} ({origin})" for key, origin in sorted(unread.items()) if key not in OF_ONE_DEVICE]
    if others:
        say(f"nothing read {', '.join(others)}: it had no effect in this run")
