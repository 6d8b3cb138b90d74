"""Recipes and algorithms as files: where they are, what their lines are, and in which order those lie over each other.

A recipe is a flat YAML of what differs from config.py; a `defaults:` list works as in Hydra, and may name the shipped
recipes. An algorithm is a preset of the few keys that make a method: recipes/algorithm/NAME.yaml, or one's own file.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from rlcore.errors import ConfigError, nearest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ALGORITHMS = RECIPES / "algorithm"
# Free-form: passed through to the engines and the chat template, or keyed by names of functions and sources.
OPEN_KEYS = ("data.chat_template_args", "rollout.vllm_args", "actor.deepspeed_args", "reward.args", "reward.sources")

# What an algorithm may set. The second part fits a method to a model and a task, and outlives a change of algorithm.
_THE_METHOD = (
    "advantage.",
    "loss.",
    "kl.",
    "critic.",
    "reference.refresh_steps",
    "reward.overlong_fraction",
    "rollout.dynamic_draws",
    "rollout.greedy_baseline",
    "rollout.train_truncated",
)
_ITS_FIT = (
    "correction.",
    "critic.learning_rate",
    "critic.path",
    "critic.whiten_returns",
    "critic.warmup_steps",
    "reward.overlong_penalty",
    "actor.epochs_per_step",
    "actor.minibatches_per_step",
)


def settable(key: str) -> bool:
    """Whether an algorithm may set this key."""
    return key.startswith(_THE_METHOD + _ITS_FIT)


def resets(key: str) -> bool:
    """Whether a new algorithm puts this key back to config.py's default: all it may set but what is the method's fit
    to a model and a task (correction.*, how a critic starts and learns, reward.overlong_penalty, minibatches and
    epochs)."""
    return settable(key) and not key.startswith(_ITS_FIT)


def decides(key: str) -> bool:
    """Whether it may be up to the algorithm that this key has an effect: all it may set, and the reference's ranks."""
    return settable(key) or key == "reference.ranks"


@dataclass
class Layer:
    """One file of a recipe: its own flat lines (`{"a.b": value}`), and whether it is the recipe itself."""

    file: Path
    lines: dict[str, Any]
    is_recipe: bool


def recipe_names() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def algorithm_names() -> list[str]:
    return sorted(p.stem for p in ALGORITHMS.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The YAML behind a recipe name or a path. Raises ConfigError with the nearest name."""
    return _file("recipe", RECIPES, name, recipe_names())


def algorithm_lines(name: str | None) -> dict[str, Any]:
    """The flat lines of an algorithm, by its name or path; none of None. Raises ConfigError with the nearest name."""
    if name is None:
        return {}
    path = _file("algorithm", ALGORITHMS, str(name), algorithm_names())
    return flatten(mapping(path, lambda: OmegaConf.load(path)))


def _file(kind: str, home: Path, name: str, known: list[str]) -> Path:
    if name.endswith(".yml"):
        raise ConfigError(f"{name}: {kind} files must end in .yaml; rename it to {name.removesuffix('.yml')}.yaml")
    if name.endswith(".yaml"):
        path = Path(name).resolve()
        if not path.is_file():
            raise ConfigError(f"no {kind} file {name} (looked for {path})")
        return path
    if name not in known:
        raise ConfigError(f"no {kind} {name!r}{nearest(name, known)}; there are: {', '.join(known)}, or a FILE.yaml")
    return home / f"{name}.yaml"


def layers(path: Path) -> list[Layer]:
    """The recipe and what its `defaults:` name, in the order in which they lie over each other: the last one wins."""

    def listed() -> list[Any]:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(path.parent), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            search = [f"hydra.searchpath=[file://{RECIPES}]"]
            return list(loader.compute_defaults_list(path.stem, search, RunMode.RUN).defaults)

    return [_layer(path, d) for d in _about(path, listed) if d.config_path and not d.config_path.startswith("hydra/")]


def _layer(path: Path, default: Any) -> Layer:
    name = f"{default.config_path.removesuffix('.yaml')}.yaml"
    file = path if default.primary else next(d / name for d in (path.parent, RECIPES) if (d / name).is_file())
    content = {k: v for k, v in mapping(file, lambda: OmegaConf.load(file)).items() if k not in ("defaults", "hydra")}
    for part in reversed(default.package.split(".") if default.package else []):
        content = {part: content}
    return Layer(file, flatten(content), default.primary)


def mapping(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    """What `read` finds in a YAML file, as a plain nested dict. Raises ConfigError naming the file and the key."""
    content = _about(path, lambda: OmegaConf.to_container(read()))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, this is a {type(content).__name__}")
    return typing.cast("dict[str, Any]", content)


def _about(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as e:  # yaml, OmegaConf and Hydra each have their own errors; all are about this file
        cause = e.__cause__ if e.__cause__ and not str(e) else e
        key, text = getattr(cause, "full_key", None), str(cause)
        text = f"{key}: {text.splitlines()[0]}" if key and text else text
        raise ConfigError(f"{path}: cannot be read as a recipe: {text}") from e


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as `{"a.b": value}`; the free-form keys stay whole."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict) and full not in OPEN_KEYS:
            flat |= flatten(value, full + ".")
        else:
            flat[full] = value
    return flat
