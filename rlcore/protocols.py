"""The verbs: what the loop calls, and what a user may bring. Types only; no base class to inherit, no registry.

A name in the config is looked up in a dict literal beside the built-in functions, else it is a dotted path or
`file.py:function`; `plugin()` does the latter two.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlcore.errors import ConfigError
from rlcore.records import Batch, Group, Prompt, Score

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore.config import AdvantageConfig, LossConfig


class RewardFn(Protocol):
    def __call__(self, prompt: Prompt, response: str) -> Score | float: ...


class AdvantageFn(Protocol):
    def __call__(self, batch: Batch, cfg: AdvantageConfig) -> Tensor:
        """(N,) float32, 0 where mask is False."""
        ...


class PolicyLoss(Protocol):
    def __call__(self, logp: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """`logp` (N,) with gradient -> per-token loss (N,) and per-token statistics (N,): not masked, not averaged.

        `batch.old_logp` is always filled; on the first update of a step it equals `logp` without its gradient.
        """
        ...


class Rollouts(Protocol):
    def collect(self, prompts: int) -> list[Group]: ...


class WeightSync(Protocol):
    def publish(self, version: int) -> Mapping[str, float]: ...


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class SampleRequest(NamedTuple):
    """One sample asked of an engine. `key` comes back with the result."""

    key: tuple[int, int]  # (prompt's position in this collection, sample index)
    tokens: list[int]  # the prompt
    seed: int  # of (run seed, prompt id, sample index) alone, so who computes it does not matter
    temperature: float


class Sample(NamedTuple):
    """One finished sample of an engine: the response's tokens and the engine's log-probability of each."""

    key: tuple[int, int]
    tokens: list[int]
    logp: list[float]
    finish: str  # "stop" | "length" | "abort"


class RolloutEngine(Protocol):
    """One vLLM engine, a Ray actor; the caller drives it, so pausing is simply not calling `advance`."""

    def submit(self, requests: list[SampleRequest]) -> None: ...
    def advance(self, seconds: float) -> list[Sample]:
        """Step the engine for up to `seconds`; returns as soon as samples have finished, or with [] at the end."""
        ...

    def abort(self) -> None: ...
    def sleep(self) -> None: ...
    def wake(self) -> None: ...


def plugin(spec: str, key: str) -> Callable[..., Any]:
    """The function behind `package.module.function` or `path/to/file.py:function`.

    Raises ConfigError naming the config key when the file, the module or the function does not exist.
    """
    if ":" in spec:
        file, _, name = spec.rpartition(":")
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"{key}: no file {file} (looked for {path.resolve()})")
        found = importlib.util.spec_from_file_location(f"rlcore_plugin_{path.stem}", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # where dataclasses look a class's module up
        found.loader.exec_module(module)
    elif "." in spec:
        file, _, name = spec.rpartition(".")
        try:
            module = importlib.import_module(file)
        except ModuleNotFoundError as e:
            raise ConfigError(f"{key}: cannot import {file}: {e}") from e
    else:
        raise ConfigError(f"{key}: {spec} is not a built-in name; use a dotted path or file.py:function")
    fn = getattr(module, name, None)
    if not callable(fn):
        raise ConfigError(f"{key}: {file} has no function {name}")
    return fn
