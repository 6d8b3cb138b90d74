"""Names of functions in the config, looked up in source: to import it would cost torch, or run a user's code."""

from __future__ import annotations

import ast
import difflib
import functools
from pathlib import Path

from rewards import REWARD_MODEL
from rlcore.compose.recipe import algorithm_names, nearest

_HOME = Path(__file__).parents[1]
_BUILT_IN = {
    "advantage.name": _HOME / "algo" / "advantage.py",
    "loss.name": _HOME / "algo" / "loss.py",
    "reward.fns": _HOME.parent / "rewards" / "__init__.py",
}
# Losses without a reward, and the command that alone can use each.
WITHOUT_REWARD = {"sft": "sft", "bradley_terry": "train-rm"}


@functools.cache
def built_in(key: str) -> list[str]:
    """The names `key` (advantage.name, loss.name, reward.fns) has: the keys of its module's dict literal BUILTIN."""
    for node in ast.parse(_BUILT_IN[key].read_text()).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        if any(isinstance(t, ast.Name) and t.id == "BUILTIN" for t in targets) and isinstance(value, ast.Dict):
            return [str(k.value) for k in value.keys if isinstance(k, ast.Constant)]
    raise AssertionError(f"{_BUILT_IN[key]} has no dict literal BUILTIN")


def wrong_name(key: str, name: str) -> list[str]:
    """What is wrong with the name of a function that `key` has: no built-in of that name, no such file or function.

    A dotted path is believed: to look into it would import its package.
    """
    if ":" in name:
        file, _, function = name.rpartition(":")
        return _wrong_function(key, file, function)
    offered = [n for n in built_in(key) if n not in WITHOUT_REWARD] + [REWARD_MODEL] * (key == "reward.fns")
    if "." in name or name in offered or (key == "loss.name" and name in WITHOUT_REWARD):
        return []
    if key != "reward.fns" and name.lower() in algorithm_names():
        hint = f"; it is an algorithm: algorithm={name.lower()}."
    else:
        hint = nearest(name, offered) or "."
    return [f"{key}: no built-in {name!r}{hint} Built in: {', '.join(offered)}; or FILE.py:function"]


def _wrong_function(key: str, file: str, function: str) -> list[str]:
    path = Path(file)
    if not path.is_file():
        return [f"{key}: no file {file} (looked for {path.resolve()})"]
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as e:
        return [f"{key}: {file} line {e.lineno}: {e.msg}"]
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    names += [a.asname or a.name for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    if function in names:
        return []
    close = difflib.get_close_matches(function, names, n=1)
    return [f"{key}: {file} has no function {function!r}{'; did you mean ' + close[0] + '?' if close else ''}"]
