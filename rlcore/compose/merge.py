"""Merging lines, key by key, into the schema of config.py: every wrong one is collected, and where each came from."""

from __future__ import annotations

import functools
import os
import typing
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlcore.compose.recipe import OPEN_KEYS, algorithm_lines, decides, flatten, resets, settable
from rlcore.config import Config, all_keys
from rlcore.errors import ConfigError, nearest
from rlcore.secret_values import variables_in, written_in


@functools.cache
def schema() -> DictConfig:
    """config.py as OmegaConf has it, all at its defaults. Not to be changed: take a copy."""
    return typing.cast(DictConfig, OmegaConf.structured(Config))


def root_key(key: str) -> str:
    """The key of the schema: for what is inside a free-form key, that key."""
    return next((k for k in OPEN_KEYS if key == k or key.startswith(k + ".")), key)


class Merger:
    """The config so far. `set_by` has the keys the user wrote, `origins` every key that was set: key -> where."""

    def __init__(self) -> None:
        self.config = schema().copy()
        self.keys = all_keys()
        self.errors: list[str] = []
        self.set_by: dict[str, str] = {}
        self.origins: dict[str, str] = {}

    def put(self, key: str, value: Any, origin: str, users: bool) -> None:
        """One line; `users`: the user wrote it, so that it must have an effect."""
        root = root_key(key)
        if root not in self.keys:
            if key.startswith("algorithm."):
                name = f"; did you mean algorithm: {value}?" if key == "algorithm.name" else ", e.g. algorithm: ppo"
                self.errors.append(f"{key} ({origin}) is not a key; algorithm is one word{name}")
                return
            section = any(k.startswith(key + ".") for k in self.keys)
            hint = " is a section, not a key; set one of its keys" if section else " is not a key"
            self.errors.append(f"{key} ({origin}){hint}{'' if section else nearest(key, self.keys)}")
            return
        if wrong := written_in(key, value, free_form=root in OPEN_KEYS):
            self.errors.append(f"{wrong} ({origin})")
            return
        if isinstance(value, str) and is_list(root):
            value = [value]  # `data.eval=FILE` is a list of one
        # A list or a mapping may be taken half before it turns out wrong: that is tried on a copy.
        trial = self.config.copy() if isinstance(value, (list, dict)) else self.config
        try:
            OmegaConf.update(trial, key, value, merge=True, force_add=root in OPEN_KEYS)
        except OmegaConfBaseException as e:
            self.errors.append(f"{key} ({origin}): {_type_error(root, value, e)}")
            return
        self.config = trial
        self.origins[root] = origin
        if users:
            self.set_by[root] = origin
        else:
            self.set_by.pop(root, None)

    def algorithm(self, name: Any, origin: str) -> None:
        """An algorithm over what is there already: what lower layers say about the method is forgotten (recipe.resets)
        and does not count as the user's any more, so that nothing mixes with the paper's lines."""
        if isinstance(name, dict):  # `algorithm={name: ppo}`; a file's comes flat
            for key, value in flatten({"algorithm": name}).items():
                self.put(key, value, origin, users=True)
            return
        try:
            lines = algorithm_lines(name)
        except ConfigError as e:
            self.errors.append(f"algorithm ({origin}): {e}")
            return
        for key in [k for k in self.origins if decides(k)]:
            self.set_by.pop(key, None)
            if resets(key):
                self._to_default(key)
                del self.origins[key]
        self.config.algorithm = name
        self.origins["algorithm"] = origin
        for key, value in lines.items():
            if settable(key):
                self.put(key, value, f"algorithm {name}", users=False)
            else:
                self.errors.append(f"{key} (algorithm {name}) is not an algorithm's to set; put it into the recipe")

    def settle(self) -> None:
        """List every `${...}` that leads nowhere; its key goes back to the default, so that check() can go on."""
        broken = self._unresolved()
        self.errors += broken.values()
        for key in broken:
            self._to_default(key)

    def missing(self) -> list[str]:
        return sorted(k for k in self.keys if OmegaConf.is_missing(*_parent(self.config, k)))

    def _to_default(self, key: str) -> None:
        section, leaf = _parent(self.config, key)
        section[leaf] = typing.cast(Any, OmegaConf.to_container(_parent(schema(), key)[0]))[leaf]

    def _unresolved(self) -> dict[str, str]:
        """Of the keys that were set, those whose `${...}` has no value, or none of the key's type: key -> the error."""
        errors: dict[str, str] = {}
        for key, origin in self.origins.items():
            section, leaf = _parent(self.config, key)
            raw = OmegaConf.to_container(section)[leaf]  # type: ignore[index]
            if unset := [name for name in variables_in(raw) if name not in os.environ]:
                errors[key] = f"{key} ({origin}): the environment variable {unset[0]} is not set; export {unset[0]}=..."
                continue
            try:
                value = section[leaf]
                if OmegaConf.is_config(value):
                    OmegaConf.to_container(value, resolve=True)
            except MissingMandatoryValue:
                continue  # reported as required
            except OmegaConfBaseException as e:
                what = f"what {raw} stands for is no value of it" if variables_in(raw) else str(e).splitlines()[0]
                errors[key] = f"{key} ({origin}): {what}"
            except RecursionError:
                errors[key] = f"{key} ({origin}): its ${{...}} leads back to itself"
        return errors


def _parent(config: DictConfig, key: str) -> tuple[Any, str]:
    section, _, leaf = key.rpartition(".")
    return (OmegaConf.select(config, section) if section else config), leaf


def hint(key: str) -> Any:
    """The annotation of a key of the schema."""
    cls: Any = Config
    *sections, leaf = key.split(".")
    for s in sections:
        cls = next(f.default_factory for f in fields(cls) if f.name == s)
    return typing.get_type_hints(cls)[leaf]


def is_list(key: str) -> bool:
    return typing.get_origin(hint(key)) is list


def _type_error(key: str, value: Any, e: Exception) -> str:
    want = hint(key)
    if isinstance(want, type) and hasattr(want, "__members__"):
        choices = list(want.__members__)  # type: ignore[attr-defined]
        return f"{value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
    name = getattr(want, "__name__", str(want)) if not typing.get_args(want) else str(want).replace("typing.", "")
    return f"{value!r} is not a {name} ({str(e).splitlines()[0]})"
