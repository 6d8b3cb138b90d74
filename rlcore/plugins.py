"""A user's function: from `file.py:function` or a dotted path to the function, and whose fault it is when it raises.

Names of built-in functions are keys of dict literals (rewards.BUILTIN, algo.ADVANTAGES, algo.LOSSES), whose values are
dotted paths.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from rlcore.errors import ConfigError, nearest


class Spec(NamedTuple):
    """`path/to/file.py:function` or `package.module.function`, taken apart. A bare word has no `home`; a file that is
    named without its function has no `name`."""

    home: str
    name: str
    is_file: bool

    @classmethod
    def of(cls, text: str) -> Spec:
        if text.endswith(".py"):
            return cls(text, "", True)
        file, colon, name = text.rpartition(":")
        if colon:
            return cls(file, name, True)
        module, _, name = text.rpartition(".")
        return cls(module, name, False)

    def file(self, key: str) -> Path:
        """The file of the function. ConfigError naming the config key where there is none, or no function is named."""
        if not self.name:
            raise ConfigError(f"{key}: {self.home} is a file; add the name of the function in it: {self.home}:function")
        path = Path(self.home)
        if not path.is_file():
            raise ConfigError(f"{key}: no file {self.home} (looked for {path.resolve()})")
        return path


def plugin(spec: str, key: str) -> Callable[..., Any]:
    """The function behind `package.module.function` or `path/to/file.py:function`.

    Raises ConfigError naming the config key when the file, the module or the function does not exist, and with the file
    and the line when importing it raises.
    """
    at = Spec.of(spec)
    if not at.home:
        raise ConfigError(f"{key}: {spec} is not a built-in name; use a dotted path or file.py:function")
    load = functools.partial(_load, at.file(key)) if at.is_file else functools.partial(importlib.import_module, at.home)
    try:
        module = load()
    except (Exception, SystemExit) as e:
        raise ConfigError(f"{key}: cannot import {at.home}: {type(e).__name__}{_at(e)}: {e}") from e
    if not hasattr(module, at.name):
        raise ConfigError(f"{key}: {at.home} has no function {at.name}{nearest(at.name, vars(module))}")
    fn = getattr(module, at.name)
    if not callable(fn):
        what = f"no function but of type {type(fn).__name__}: {repr(fn)[:80]}"
        raise ConfigError(f"{key}: {at.name} in {at.home} is {what}")
    return fn


def absolute(spec: str) -> str:
    """`spec` with the path of a `file.py:function` absolute, so that it means the same in any working directory."""
    home, name, is_file = Spec.of(spec)
    return f"{Path(home).absolute()}:{name}" if is_file else spec


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
