"""From `NAME|FILE.yaml key=value ...` to one checked `Config`: Hydra composes, this module finds every error at once.

Lines lie over each other in this order, the last wins: config.py, what the recipe builds on, the recipe, the command
line. An `algorithm` line stands for the lines of its file: see docs/configuration.md. Nothing here imports torch or
Ray, so a wrong key costs a second.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlcore.compose.check import check
from rlcore.compose.command_text import PROSE, as_typed, is_quoted, quoted, takes_text, with_breaks
from rlcore.compose.merge import Merger, is_list
from rlcore.compose.recipe import OPEN_KEYS, RECIPES, Layer, flatten, layers, mapping, recipe_file, recipe_names
from rlcore.compose.stages import STAGES, stage_of
from rlcore.compose.unused_keys import DECIDING, idle
from rlcore.config import Config, all_keys, uncounted
from rlcore.errors import ConfigError, RlcoreError
from rlcore.secret_values import without_secrets, written_in
from rlcore.waiting import tell

__all__ = ["RECIPES", "Composed", "as_config", "compose", "compose_run", "recipe_names", "run_with_hydra"]
_COMMAND_LINE = "command line"


@dataclass
class Composed:
    """What was asked: the merged config, and where each key the user set came from (key -> "command line" or file).

    `recipe` is its name or path, as given. `set_by` has what the user wrote; `origins` has in addition what came from a
    shipped recipe, a `defaults:` list or an algorithm.
    """

    config: DictConfig
    recipe: str
    set_by: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    named_by_time: bool = False  # its run_dir


@dataclass
class _Line:
    """One override of the command line: its value, or the values to sweep over."""

    key: str
    values: list[Any]
    for_hydra: str


def parse_override(text: str) -> Any:
    """Hydra's override grammar, but a text value may hold `=`, `?`, `&` and spaces without quotes."""
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException as e:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not key=value") from e
        try:
            return parser.parse_override(f"{key}={quoted(value)}")
        except HydraException:
            raise ConfigError(f"{text!r}: {e}") from e


def compose(
    name: str, overrides: list[str], multirun: bool = False, command: str | None = None
) -> tuple[Composed, list[str]]:
    """The checked config of a recipe and the user's overrides, and the overrides in the form Hydra takes.

    `command` is what it is for, one of STAGES; None: not known. Of a sweep all values are checked, and the
    config is of the last ones. Raises one ConfigError that lists all that is wrong, each with where it was set.
    """
    path = recipe_file(name)
    found, errors = layers(path), []
    lines = [line for text in overrides if (line := _line(text, multirun, errors)) is not None]
    ours = [line for line in lines if not line.key.startswith("hydra")]
    algorithms = [line.values for line in ours if line.key == "algorithm"]
    mergers = [
        _merged(path, found, [line for line in ours if line.key != "algorithm"], choice)
        for choice in ([[value] for value in algorithms[-1]] if algorithms else [[]])
    ]
    merger, varies = mergers[-1], any(len(line.values) > 1 and line.key in DECIDING for line in ours)
    for m in mergers:
        m.errors += _wrong(m, as_config(m.config), command, {} if varies else m.set_by)
    _require_none(list(dict.fromkeys(errors + [e for m in mergers for e in m.errors])))
    if by_time := merger.config.run_dir is None:
        merger.config.run_dir = f"runs/{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    # A sweep's jobs are Hydra's to tell apart; of a single run's config it need only know the one it is given.
    for_hydra = [line.for_hydra for line in lines if multirun or line.key.startswith("hydra")]
    return Composed(merger.config, name, merger.set_by, merger.origins, by_time), for_hydra


def _merged(path: Path, found: list[Layer], lines: list[_Line], algorithm: list[Any]) -> Merger:
    """The recipe's layers and the command line's lines; `algorithm` has one value or none."""
    merger = Merger()
    shipped = path.parent == RECIPES
    # Of several algorithm lines only the topmost is applied: nothing of another one is left to be undone.
    top = None if algorithm else next((x for x in reversed(found) if "algorithm" in x.lines), None)
    for layer in found:
        # What a shipped recipe or a `defaults:` list sets may be made idle by an override; the user's lines may not.
        own = layer.is_recipe and not shipped
        inherited = f"recipe {path.stem}" if shipped else f"{path}, from its defaults"
        origin = str(path) if own else inherited
        if layer is top:
            merger.algorithm(layer.lines["algorithm"], origin)
        for key, value in layer.lines.items():
            if key != "algorithm":
                merger.put(key, value, origin, users=own)
    for name in algorithm:
        merger.algorithm(name, _COMMAND_LINE)
    for line in lines:
        for value in line.values:
            merger.put(line.key, value, _COMMAND_LINE, users=True)
    _settle(merger, f"set it on the command line or in {path}")
    return merger


@uncounted()
def _wrong(merger: Merger, cfg: Config, command: str | None, users: dict[str, str]) -> list[str]:
    """What a merged config cannot be run for, and which of the keys in `users` (key -> where) would have no effect."""
    loss, algorithm = (f"{key} ({merger.origins.get(key, 'default')})" for key in ("loss.name", "algorithm"))
    name, other = cfg.loss.name, stage_of(cfg.loss.name)
    needed = None if command is None else STAGES[command].loss
    if command is not None and needed is None and other.loss is not None:
        use = f"use `rlcore {other.command}`"
        return [f"{loss} is {name}: {command} needs a reward to learn from, and {name} has none; {use}"]
    if needed is not None and cfg.algorithm is not None:
        return [f"{algorithm} is {cfg.algorithm}: {command} has no algorithm; leave it out, or algorithm=null"]
    if needed is not None and name != needed:
        return [f"{loss} is {name}: rlcore {command} needs loss.name={needed}"]
    errors = check(cfg)
    known = merger.errors + errors
    return errors + [error for key, error in idle(cfg, users).items() if not any(key in e for e in known)]


def _settle(merger: Merger, how: str) -> None:
    missing = [f"{k} is required: {how}" for k in merger.missing()]
    merger.settle()
    merger.errors += missing


def _line(text: str, multirun: bool, errors: list[str], single: str = "several values need --multirun") -> _Line | None:
    """One override, or None when it is wrong; the reason is added to `errors`."""
    typed, _, value = text.partition("=")
    if wrong := written_in(typed.lstrip("+"), value):  # before any message repeats it
        errors.append(f"{wrong} (command line)")
        return None
    try:
        override = parse_override(text)
    except ConfigError as e:
        errors.append(f"command line: {e}")
        return None
    key = override.key_or_group
    if override.type == OverrideType.DEL:
        errors.append(f"{text} (command line): keys cannot be deleted; set a value instead")
        return None
    if key.startswith("hydra"):
        return _Line(key, [], text)
    sweep = override.is_sweep_override() and not (key in PROSE and not multirun)
    if sweep and not multirun:
        errors.append(f"{text} (command line): {single} (or quote the value)")
        return None
    try:
        values, form = _swept(key, override, text) if sweep else _single(key, override, text)
        return _Line(key, [with_breaks(key, value) for value in values], form)
    except ConfigError as e:
        errors.append(f"command line: {e}")
        return None


def _single(key: str, override: Any, text: str) -> tuple[list[Any], str]:
    """The value of a line, and the line as Hydra must see it."""
    value = as_typed(key, text.partition("=")[2], _plain(override.value()))
    return [value], _hydra_form(key, override, value)


def _swept(key: str, override: Any, text: str) -> tuple[list[Any], str]:
    """The values of a line that has several, and the line as Hydra must see it: texts in quotes."""
    listed = list(override.sweep_string_iterator())
    values = [_plain(parse_override(f"{key}={value}").value()) for value in listed]
    if not takes_text(key):
        return values, text
    shown = [quoted(v) if isinstance(v, str) else typed for v, typed in zip(values, listed, strict=True)]
    return values, f"{key}={','.join(shown)}"


def _require_none(errors: list[str]) -> None:
    if errors:
        raise ConfigError("\n".join(f"  {i}. {e}" for i, e in enumerate(errors, 1)))


def compose_run(run_dir: Path, overrides: list[str]) -> Composed:
    """The config a run directory was started with, and the user's changes to it.

    Raises ConfigError when the directory holds no run, or a change is wrong. The run's algorithm is in its config line
    by line: it is not applied again.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} holds no run: there is no {path}")
    merger = Merger()
    for key, value in flatten(mapping(path, lambda: OmegaConf.load(path))).items():
        merger.put(key, value, str(path), users=False)
    merger.config.run_dir = str(run_dir)
    began_as = stage_of(str(merger.config.loss.name))
    for text in overrides:
        line = _line(text, False, merger.errors, "resume takes single values")
        if line is None:
            continue
        if not line.values:
            merger.errors.append(f"{text} (command line): a resumed run is not Hydra's; leave it out")
        elif line.key == "run_dir":
            merger.errors.append(f"{text} (command line): a run goes on where it is, in {run_dir}; leave it out")
        elif line.key == "algorithm":
            merger.errors.append(
                f"{text} (command line): a run goes on with its algorithm, {merger.config.algorithm}; leave it out"
            )
        elif line.key == "loss.name" and stage_of(str(line.values[-1])) is not began_as:
            merger.errors.append(f"{text} (command line): a run goes on as `rlcore {began_as.command}`; leave it out")
        else:
            merger.put(line.key, line.values[0], _COMMAND_LINE, users=True)
    if lost := sorted(all_keys().keys() - merger.origins.keys()):
        merger.errors.append(
            f"{path} lacks {', '.join(lost)}: it is torn or of another version of rlcore; put back what was there, or "
            "give the values on the command line"
        )
    _settle(merger, f"it is not in {path}")
    cfg = as_config(merger.config)
    cfg.run_dir = None  # check() wants a new directory
    _require_none(merger.errors + _wrong(merger, cfg, None, merger.set_by))
    return Composed(merger.config, str(run_dir), merger.set_by, merger.origins)


def compose_rewards(given: dict[str, Any], overrides: list[str]) -> Config:
    """A config without a recipe, for `rlcore rewards test`: these lines, then overrides of reward.*, data.* and
    model.*, checked by the rules of these."""
    merger = Merger()
    for key, value in {"model.path": "demo", "steps": 1, **given}.items():
        merger.put(key, value, _COMMAND_LINE, users=True)
    for text in overrides:
        line = _line(text, False, merger.errors)
        if line is not None and not line.key.startswith(("reward.", "data.", "model.")):
            merger.errors.append(f"{text} (command line): only keys of reward.*, data.* and model.* count here")
        elif line is not None:
            merger.put(line.key, line.values[0], _COMMAND_LINE, users=True)
    _settle(merger, "set it on the command line")
    cfg = as_config(merger.config)
    with uncounted():
        errors = check(cfg)
    _require_none(merger.errors + [e for e in errors if e.startswith(("reward.", "data.", "model."))])
    return cfg


def _plain(value: Any) -> Any:
    """Hydra's quoted strings inside lists and dicts as plain ones."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value.text if hasattr(value, "text") else value


def _hydra_form(key: str, override: Any, value: Any) -> str:
    """The override as Hydra must see it: `++` inside free-form keys, a list for a list, quoted where we quoted."""
    root = next((k for k in OPEN_KEYS if key.startswith(k + ".")), None)
    shown = override.get_value_string()
    if isinstance(value, str) and not is_quoted(shown, value) and (takes_text(key) or value != override.value()):
        shown = quoted(value)  # as typed: Hydra would take the spaces around it away, or make a number of it
    if key in all_keys() and is_list(key) and isinstance(override.value(), str):
        shown = f"[{shown}]"
    return f"{'++' if root else ''}{key}={shown}"


def as_config(config: DictConfig) -> Config:
    """The plain dataclasses; what is still missing stays OmegaConf's "???" so that check() can go on."""
    plain = OmegaConf.to_object(config) if not OmegaConf.missing_keys(config) else _with_blanks(config)
    assert is_dataclass(plain)
    return typing.cast(Config, plain)


def _with_blanks(config: DictConfig) -> Any:
    trial = config.copy()
    blanks = {"steps": 1, "model.path": "", "data.train": []}
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(trial, key, blanks.get(key, "???blank"))
    return OmegaConf.to_object(trial)


def _job_of_sweep(composed: Composed, sweep: list[str], job: list[str], number: int) -> Composed:
    """One job of a sweep, composed anew: its algorithm stands below its other keys. It has a run directory of its own:
    the sweep's and the job's number, but where the run directories are swept themselves."""
    swept = any(o.startswith("run_dir=") and parse_override(o).is_sweep_override() for o in sweep)
    where = [] if swept else [f"run_dir={quoted(str(Path(str(composed.config.run_dir)) / str(number)))}"]
    return compose(composed.recipe, [*job, *where])[0]


def _unresolved(task: Any) -> list[str]:
    """A job's overrides as they were written: Hydra's list gives what their ${...} stand for."""
    return typing.cast("list[str]", OmegaConf.to_container(task))


class _EndsAll(BaseException):
    """Of an Exception, Hydra writes a line of its own to stderr, with the overrides."""


def _without_secrets(main: Callable[[], Any]) -> None:
    """What `--cfg job --resolve` prints has the values of the environment's variables."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main()
    finally:
        print(without_secrets(printed.getvalue()), end="")


def run_with_hydra(
    composed: Composed, overrides: list[str], flags: list[str], task: Callable[[Config, Composed], int]
) -> int:
    """Hand over to `hydra.main`, which owns `--cfg job`, `--multirun` and their kin; `task` runs once a job.

    Returns the exit code: the largest of the jobs'.
    """
    codes: list[int] = []
    failed: list[BaseException] = []
    ConfigStore.instance().store(name="rlcore_run", node=composed.config)

    def job(config: DictConfig) -> None:
        state = HydraConfig.get()
        of_sweep = str(state.mode).endswith("MULTIRUN")
        try:
            mine = composed
            if of_sweep:
                mine = _job_of_sweep(composed, overrides, _unresolved(state.overrides.task), state.job.num)
            codes.append(task(as_config(mine.config), mine))
        except BaseException as e:
            failed.append(e)
            if not isinstance(e, RlcoreError):  # what ends one job of a sweep, Ctrl-C or a closed pipe ends all
                raise _EndsAll from e
            if of_sweep:  # the others go on, perhaps for hours
                tell(f"job {state.job.num} of the sweep has failed: {type(e).__name__}: {str(e).strip()}")

    quiet = [
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
    ]
    # Hydra makes its directories before a job can say what is wrong with its own, and a sweep's has a multirun.yaml.
    with tempfile.TemporaryDirectory() as hydras, _told_to_hydra([*quiet, *overrides, *flags]):
        sys.argv[1:1] = [f"hydra.run.dir={hydras}", f"hydra.sweep.dir={hydras}"]
        try:
            GlobalHydra.instance().clear()
            # No config_path: beside recipes/algorithm/, Hydra would take `algorithm=NAME` for a file's.
            main = hydra.main(config_path=None, config_name="rlcore_run", version_base="1.3")(job)
            _without_secrets(main) if "--resolve" in flags else main()
        except (HydraException, OmegaConfBaseException, _EndsAll) as e:
            raise failed[0] if failed else ConfigError(f"command line: {str(e).splitlines()[0]}") from e
        except SystemExit as e:  # Hydra has said what is wrong with a flag of its own
            raise failed[0] if failed else SystemExit(ConfigError.exit_code if e.code else 0) from e
    if failed:
        raise failed[0]
    return max(codes, default=0)


@contextmanager
def _told_to_hydra(args: list[str]) -> Iterator[None]:
    """Hydra reads the command line itself. It raises what a job raises, instead of printing it and exiting with 1."""
    before, raises = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [before[0], *args], "1"
    try:
        yield
    finally:
        sys.argv = before
        if raises is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = raises
