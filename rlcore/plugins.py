"""The verbs: what the loop calls, and what a user may bring. Types only; no base class to inherit, no registry.

A name in the config is looked up in a dict literal beside the built-in functions, else it is a dotted path or
`file.py:function`; `plugin()` does the latter two, `call()` says whose fault it is when one of these raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, ModuleType
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
        """(N,) float32, 0 where mask is False.

        Start from `rlcore.algo.advantage.outcome(batch)`, (B,): the reward less the KL of kl.place=reward, NaN where
        scoring failed. One that reads `batch.reward` instead trains without that KL.
        """
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

    Raises ConfigError naming the config key when the file, the module or the function does not exist, and with the file
    and the line when importing it raises.
    """
    if spec.removesuffix(":").endswith(".py"):
        spec = spec.removesuffix(":")
        raise ConfigError(f"{key}: {spec} is a file; add the name of the function in it: {spec}:function")
    if ":" in spec:
        file, _, name = spec.rpartition(":")
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"{key}: no file {file} (looked for {path.resolve()})")
        load = functools.partial(_load, path)
    elif "." in spec:
        file, _, name = spec.rpartition(".")
        load = functools.partial(importlib.import_module, file)
    else:
        raise ConfigError(f"{key}: {spec} is not a built-in name; use a dotted path or file.py:function")
    try:
        module = load()
    except (Exception, SystemExit) as e:
        raise ConfigError(f"{key}: cannot import {file}: {type(e).__name__}{_at(e)}: {e}") from e
    if not hasattr(module, name):
        raise ConfigError(f"{key}: {file} has no function {name}")
    fn = getattr(module, name)
    if not callable(fn):
        raise ConfigError(f"{key}: {name} in {file} is no function but of type {type(fn).__name__}: {repr(fn)[:80]}")
    return fn


def absolute(spec: str) -> str:
    """`spec` with the path of a `file.py:function` absolute, so that it means the same in any working directory."""
    file, colon, name = spec.rpartition(":")
    return f"{Path(file).absolute()}:{name}" if colon else spec


def call(fn: Callable[..., Any], key: str, name: str, *args: Any) -> Any:
    """`fn(*args)` of a user's function; what it raises becomes a ConfigError with the key, its name, file and line."""
    try:
        return fn(*args)
    except (Exception, SystemExit) as e:
        code = getattr(inspect.unwrap(fn), "__code__", None)
        raise ConfigError(f"{key}: {name} raised {type(e).__name__}{_at(e, code)}: {e}") from e


def _load(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"rlcore_plugin_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # for what lies beside it; last: a file there never shadows a module
    sys.modules[found.name] = module  # where dataclasses look a class's module up
    found.loader.exec_module(module)
    return module


def _at(e: BaseException, code: CodeType | None = None) -> str:
    """` at FILE:LINE`, the innermost on the way to `e` that is in the user's own file: that of `code`, else the first
    there is; so not the library it called. Where `code` was called wrongly and never ran, its definition."""
    if isinstance(e, SyntaxError) and e.filename:
        return f" at {e.filename}:{e.lineno}"
    frames = [f for f in traceback.extract_tb(e.__traceback__) if f.filename not in (__file__, importlib.__file__)]
    frames = [f for f in frames if not f.filename.startswith("<frozen ")]
    if not frames:
        return f" at {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
    file = frames[0].filename if code is None else code.co_filename
    here = [f for f in frames if f.filename == file] or frames
    return f" at {here[-1].filename}:{here[-1].lineno}"
