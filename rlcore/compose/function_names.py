"""Names of functions in the config, looked up in source: to import it would cost torch, or run a user's code."""

from __future__ import annotations

import ast

from rewards import BUILTIN, REWARD_MODEL
from rlcore.algo import ADVANTAGES, LOSSES
from rlcore.compose.recipe import algorithm_names
from rlcore.compose.stages import given_texts
from rlcore.errors import ConfigError, nearest
from rlcore.plugins import Spec

_BUILT_IN = {"advantage.name": ADVANTAGES, "loss.name": LOSSES, "reward.fns": BUILTIN}


def built_in(key: str) -> list[str]:
    """The names of functions that `key` (advantage.name, loss.name, reward.fns) has."""
    return list(_BUILT_IN[key])


def wrong_name(key: str, name: str) -> list[str]:
    """What is wrong with the name of a function that `key` has: no built-in of that name, no such file or function.

    A dotted path is believed: to look into it would import its package.
    """
    spec = Spec.of(name)
    if spec.is_file:
        return _wrong_function(key, spec)
    offered = [n for n in built_in(key) if n not in given_texts()] + [REWARD_MODEL] * (key == "reward.fns")
    if spec.home or name in offered or (key == "loss.name" and name in given_texts()):
        return []
    if key != "reward.fns" and name.lower() in algorithm_names():
        hint = f"; it is an algorithm: algorithm={name.lower()}."
    else:
        hint = nearest(name, offered) or "."
    return [f"{key}: no built-in {name!r}{hint} Built in: {', '.join(offered)}; or FILE.py:function"]


def _wrong_function(key: str, spec: Spec) -> list[str]:
    try:
        tree = ast.parse(spec.file(key).read_bytes())
    except ConfigError as e:
        return [str(e)]
    except SyntaxError as e:
        return [f"{key}: {spec.home} line {e.lineno}: {e.msg}"]
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    names += [a.asname or a.name for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    if spec.name in names:
        return []
    return [f"{key}: {spec.home} has no function {spec.name!r}{nearest(spec.name, names)}"]
