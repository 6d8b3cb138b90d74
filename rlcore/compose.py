"""From `NAME|FILE.yaml key=value ...` to one checked `Config`: Hydra composes, this module finds every error at once.

A recipe is a flat YAML of what differs from config.py; a `defaults:` list works as in Hydra, and may name the shipped
recipes. Nothing here imports torch or Ray, so a wrong key costs a second.
"""

from __future__ import annotations

import difflib
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
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
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlcore.check import check
from rlcore.config import Config, all_keys, forget_reads
from rlcore.errors import ConfigError, RlcoreError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
_OPEN_KEYS = ("rollout.vllm_args", "actor.deepspeed_args")  # free-form: passed through to the engines


@dataclass
class Composed:
    """What was asked: the merged config, and where each key the user set came from (key -> "command line" or file).

    `set_by` has what the user wrote; `origins` has in addition what came from a shipped recipe or a `defaults:` list.
    """

    config: DictConfig
    name: str
    set_by: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The YAML behind a recipe name or a path. Raises ConfigError with the nearest name."""
    if name.endswith(".yml"):
        raise ConfigError(f"{name}: a recipe file must end in .yaml; rename it to {name.removesuffix('.yml')}.yaml")
    if name.endswith(".yaml"):
        path = Path(name).resolve()
        if not path.is_file():
            raise ConfigError(f"no recipe file {name} (looked for {path})")
        return path
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = recipe_names()
        raise ConfigError(
            f"no recipe {name!r}{_nearest(name, known)}; there are: {', '.join(known)}, or give a FILE.yaml"
        )
    return path


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean X?` or nothing. A bare last part (`learning_rate`) finds its full key (`actor.learning_rate`)."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    tail = difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], n=1, cutoff=0.75)
    if tail and not (close and close[0].split(".")[-1] == tail[0]):
        close = difflib.get_close_matches(word, [k for k in known if k.split(".")[-1] == tail[0]], n=1, cutoff=0.0)
    return f"; did you mean {close[0]}?" if close else ""


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict as `{"a.b": value}`; the free-form keys stay whole."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict) and full not in _OPEN_KEYS:
            flat |= _flatten(value, full + ".")
        else:
            flat[full] = value
    return flat


def _read_recipe(path: Path) -> dict[str, Any]:
    """The recipe with its `defaults:` composed by Hydra, as a plain nested dict."""

    def composed() -> Any:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(path.parent), version_base="1.3"):
            return hydra.compose(path.stem, overrides=[f"hydra.searchpath=[file://{RECIPES}]"])

    return _mapping(path, composed)


def _mapping(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(read())
    except Exception as e:  # yaml, OmegaConf and Hydra each have their own errors; all are about this file
        cause = e.__cause__ if e.__cause__ and not str(e) else e
        key, text = getattr(cause, "full_key", None), str(cause)
        text = f"{key}: {text.splitlines()[0]}" if key and text else text
        raise ConfigError(f"{path}: cannot be read as a recipe: {text}") from e
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, this is a {type(content).__name__}")
    return typing.cast("dict[str, Any]", content)


def _root(key: str) -> str:
    """The key of the schema: for what is inside a free-form key, that key."""
    return next((k for k in _OPEN_KEYS if key == k or key.startswith(k + ".")), key)


class _Merger:
    """Merges key by key into the schema and collects what is wrong instead of stopping at the first."""

    def __init__(self) -> None:
        self.config = typing.cast(DictConfig, OmegaConf.structured(Config))
        self.keys = all_keys()
        self.errors: list[str] = []
        self.set_by: dict[str, str] = {}  # narrowed to what the user wrote
        self.origins: dict[str, str] = {}

    def put(self, key: str, value: Any, origin: str) -> None:
        root = _root(key)
        if root not in self.keys:
            section = any(k.startswith(key + ".") for k in self.keys)
            hint = " is a section, not a key; set one of its keys" if section else " is not a key"
            self.errors.append(f"{key} ({origin}){hint}{'' if section else _nearest(key, self.keys)}")
            return
        if isinstance(value, str) and _is_list(root):
            value = [value]  # `data.eval=FILE` is a list of one
        trial = self.config.copy()
        try:
            OmegaConf.update(trial, key, value, merge=True, force_add=root in _OPEN_KEYS)
        except OmegaConfBaseException as e:
            self.errors.append(f"{key} ({origin}): {_type_error(root, value, e)}")
            return
        self.config = trial
        self.set_by[root] = self.origins[root] = origin

    def parse(self, text: str) -> Any:
        """One override of the command line, or None when it is wrong."""
        try:
            override = parse_override(text)
        except ConfigError as e:
            self.errors.append(f"command line: {e}")
            return None
        if override.type == OverrideType.DEL:
            self.errors.append(f"{text} (command line): keys cannot be deleted; set a value instead")
            return None
        return override

    def settle(self) -> None:
        """List every `${...}` that leads nowhere; its key goes back to the default, so that check() can go on."""
        broken = unresolved(self.config, self.origins)
        self.errors += broken.values()
        defaults = OmegaConf.structured(Config)
        for key in broken:
            section, leaf = _parent(self.config, key)
            section[leaf] = typing.cast(Any, OmegaConf.to_container(_parent(defaults, key)[0]))[leaf]

    def missing(self) -> list[str]:
        return sorted(k for k in self.keys if OmegaConf.is_missing(*_parent(self.config, k)))


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    section, _, leaf = key.rpartition(".")
    return (OmegaConf.select(config, section) if section else config), leaf


def unresolved(config: DictConfig, origins: dict[str, str]) -> dict[str, str]:
    """Of the keys in `origins`, those whose `${...}` has no value, or none of the key's type: key -> the error."""
    errors: dict[str, str] = {}
    for key, origin in origins.items():
        section, leaf = _parent(config, key)
        try:
            value = section[leaf]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except MissingMandatoryValue:
            continue  # reported as required
        except OmegaConfBaseException as e:
            errors[key] = f"{key} ({origin}): {str(e).splitlines()[0]}"
        except RecursionError:
            errors[key] = f"{key} ({origin}): its ${{...}} leads back to itself"
    return errors


def _hint(key: str) -> Any:
    """The annotation of a key of the schema."""
    cls: Any = Config
    *sections, leaf = key.split(".")
    for s in sections:
        cls = next(f.default_factory for f in fields(cls) if f.name == s)
    return typing.get_type_hints(cls)[leaf]


def _is_list(key: str) -> bool:
    return typing.get_origin(_hint(key)) is list


def _type_error(key: str, value: Any, e: Exception) -> str:
    want = _hint(key)
    if isinstance(want, type) and hasattr(want, "__members__"):
        choices = list(want.__members__)  # type: ignore[attr-defined]
        return f"{value!r} is not one of {', '.join(choices)}{_nearest(str(value), choices)}"
    name = getattr(want, "__name__", str(want)) if not typing.get_args(want) else str(want).replace("typing.", "")
    return f"{value!r} is not a {name} ({str(e).splitlines()[0]})"


def parse_override(text: str) -> Any:
    """Hydra's override grammar, but a text value may hold `=`, `?`, `&` and spaces without quotes."""
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException as e:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not key=value") from e
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        try:
            return parser.parse_override(f"{key}='{quoted}'")
        except HydraException:
            raise ConfigError(f"{text!r}: {e}") from e


def compose(name: str, overrides: list[str], multirun: bool = False) -> tuple[Composed, list[str]]:
    """The checked config of a recipe and the user's overrides, and the overrides in the form Hydra takes.

    Raises one ConfigError that lists everything that is wrong: unknown keys (with the nearest valid one and where they
    were set), wrong types, missing values, and combinations that cannot run.
    """
    path = recipe_file(name)
    merger = _Merger()
    shipped = path.parent == RECIPES
    content = _flatten(_read_recipe(path))
    # What a shipped recipe or a `defaults:` list sets may be made idle by an override; the user's own lines may not.
    own = set() if shipped else {_root(k) for k in _flatten(_mapping(path, lambda: OmegaConf.load(path)))}
    for key, value in content.items():
        inherited = f"recipe {path.stem}" if shipped else f"{path}, from its defaults"
        merger.put(key, value, str(path) if _root(key) in own else inherited)
    merger.set_by = {k: origin for k, origin in merger.set_by.items() if k in own}
    for_hydra: list[str] = []
    for text in overrides:
        override = merger.parse(text)
        if override is None:
            continue
        key = override.key_or_group
        if key.startswith("hydra"):
            for_hydra.append(text)
            continue
        sweep = override.is_sweep_override()
        if sweep and not multirun:
            merger.errors.append(f"{text} (command line): several values need --multirun (or quote the value)")
            continue
        for value in override.sweep_iterator() if sweep else [override.value()]:
            merger.put(key, parse_override(f"{key}={value}").value() if sweep else _plain(value), "command line")
        for_hydra.append(_hydra_form(key, override, text))
    missing = [f"{k} is required: set it on the command line or in {path}" for k in merger.missing()]
    merger.settle()
    _demand_none(merger.errors + missing + check(as_config(merger.config)))
    if merger.config.run_dir is None:
        merger.config.run_dir = f"runs/{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Composed(merger.config, path.stem, merger.set_by, merger.origins), for_hydra


def _demand_none(errors: list[str]) -> None:
    if errors:
        raise ConfigError("\n".join(f"  {i}. {e}" for i, e in enumerate(errors, 1)))


def compose_run(run_dir: Path, overrides: list[str]) -> Composed:
    """The config a run directory was started with, and the user's changes to it.

    Raises ConfigError when the directory holds no run, or a change is wrong.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} holds no run: there is no {path}")
    merger = _Merger()
    for key, value in _flatten(_mapping(path, lambda: OmegaConf.load(path))).items():
        merger.put(key, value, str(path))
    merger.config.run_dir = str(run_dir)
    merger.set_by.clear()
    for text in overrides:
        override = merger.parse(text)
        if override is None:
            continue
        if override.key_or_group == "run_dir":
            merger.errors.append(f"{text} (command line): a run goes on where it is, in {run_dir}; leave it out")
        elif override.is_sweep_override():
            merger.errors.append(f"{text} (command line): resume takes single values (or quote the value)")
        else:
            merger.put(override.key_or_group, _plain(override.value()), "command line")
    missing = [f"{k} is required: it is not in {path}" for k in merger.missing()]
    merger.settle()
    cfg = as_config(merger.config)
    cfg.run_dir = None  # check() wants a new directory
    _demand_none(merger.errors + missing + check(cfg))
    return Composed(merger.config, run_dir.name, merger.set_by, merger.origins)


def _plain(value: Any) -> Any:
    """Hydra's quoted strings inside lists and dicts as plain ones."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value.text if hasattr(value, "text") else value


def _hydra_form(key: str, override: Any, text: str) -> str:
    """The override as Hydra must see it: `++` inside free-form keys, a list for a list, quoted where we quoted."""
    if override.is_sweep_override():
        return text
    root = next((k for k in _OPEN_KEYS if key.startswith(k + ".")), None)
    shown = override.get_value_string() if hasattr(override, "get_value_string") else text.partition("=")[2]
    if key in all_keys() and _is_list(key) and isinstance(override.value(), str):
        shown = f"[{shown}]"
    return f"{'++' if root else ''}{key}={shown}"


def as_config(config: DictConfig) -> Config:
    """The plain dataclasses; what is still missing stays OmegaConf's "???" so that check() can go on."""
    plain = OmegaConf.to_object(config) if not OmegaConf.missing_keys(config) else _with_blanks(config)
    forget_reads()
    assert is_dataclass(plain)
    return typing.cast(Config, plain)


def _with_blanks(config: DictConfig) -> Any:
    trial = config.copy()
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(trial, key, 1 if key == "steps" else "???blank")
    for key in ("model.path", "data.train"):
        if OmegaConf.select(trial, key) == "???blank":
            OmegaConf.update(trial, key, "")
    return OmegaConf.to_object(trial)


def run_with_hydra(
    composed: Composed, overrides: list[str], flags: list[str], task: Callable[[Config, Composed], int]
) -> int:
    """Hand over to `hydra.main`, which owns `--cfg job`, `--multirun` and their kin; `task` runs once a job.

    Returns the exit code: the largest of the jobs'.
    """
    codes: list[int] = []
    failed: list[BaseException] = []
    base = str(composed.config.run_dir)
    ConfigStore.instance().store(name="rlcore_run", node=composed.config)

    def job(config: DictConfig) -> None:
        state = HydraConfig.get()
        try:
            if broken := unresolved(config, composed.origins):  # a swept value: compose() saw only the last
                raise ConfigError("\n".join(broken.values()))
            if str(state.mode).endswith("MULTIRUN") and config.run_dir == base:
                config.run_dir = str(Path(base) / str(state.job.num))
            cfg = as_config(config)
            if wrong := check(cfg):
                raise ConfigError("\n".join(wrong))
            forget_reads()
            codes.append(task(cfg, composed))
        except BaseException as e:  # Hydra would print a traceback of its own and exit 1
            failed.append(e)
            if not isinstance(e, RlcoreError):
                raise

    quiet = [
        "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null",
        f"hydra.run.dir='{base}'", f"hydra.sweep.dir='{base}'", "hydra.job.chdir=false",
    ]  # fmt: skip
    before = sys.argv
    sys.argv = [before[0], *flags, *quiet, *overrides]
    try:
        GlobalHydra.instance().clear()
        hydra.main(config_path=str(RECIPES), config_name="rlcore_run", version_base="1.3")(job)()
    except BaseException as e:
        raise failed[0] if failed else e from None
    finally:
        sys.argv = before
    if failed:
        raise failed[0]
    return max(codes, default=0)
