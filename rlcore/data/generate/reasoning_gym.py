"""Tasks of the library reasoning-gym (arXiv 2505.24760): rows of `reasoning_gym:TASK?...` sources, and their scorers.

Many of its scorers run what the model wrote: `eval(answer)`, sympy's parse_expr. So before a task is used the source
of its scorer, and of everything that reaches in the library, is read (`unsafe`), and a task that might is refused.
`OWN` are scored by a rule of ours instead. While a scorer runs, eval and parse_expr raise, whatever the reading missed.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib.util
import json
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rlcore.errors import DataError

Row = dict[str, Any]

OWN = ("countdown",)  # scored by rules of ours: rewards/reasoning_gym.py
SEED_STRIDE = 1_000_000

# What turns text into code or objects.
_EVALUATES = set(
    "eval exec compile __import__ import_module __builtins__ __globals__ globals sympify parse_expr parse_latex "
    "system popen Popen unpickle run_path run_module".split()
)
_PROGRAMS = {"exec", "compile", "__import__", "import_module", "system", "popen", "Popen", "run_path", "run_module"}
# All of these evaluate or start what they are given. sympy turns any string that meets an expression into one by eval.
_LIBRARIES = {"sympy", "pickle", "dill", "cloudpickle", "marshal", "shelve", "subprocess", "runpy", "builtins"}


class Evaluated(Exception):
    """A scorer tried to evaluate text; it did not."""


def tasks() -> dict[str, tuple[type, type]]:
    """Name -> (dataset class, config class) of every task. Raises DataError when reasoning-gym is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of libraries it imports
            from reasoning_gym.factory import DATASETS
    except ImportError as e:
        raise DataError(f"reasoning_gym: sources need its package: pip install 'rlcore[gym]' ({e})") from e
    return DATASETS


def parameters(task: str) -> dict[str, type]:
    """What a source can set: name -> int, float, bool, str or list, from the fields of the task's config."""
    config = tasks()[task][1]
    hints = typing.get_type_hints(config)
    kinds = {field.name: _kind(hints[field.name]) for field in dataclasses.fields(config)}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _kind(hint: Any) -> type | None:
    """int for `int | None`, list for a list or tuple of plain values; None for what text cannot say."""
    arguments = [a for a in typing.get_args(hint) if a is not types.NoneType]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _kind(arguments[0]) if len(arguments) == 1 else None
    if hint in (int, float, bool, str):
        return hint
    plain = not arguments or arguments[0] in (int, float, str)
    return list if plain and (origin or hint) in (list, tuple, Sequence) else None


def rows(task: str, arguments: dict[str, Any]) -> list[Row]:
    """The problems of a task: columns question, answer, task and entry (JSON: what its scorer needs).

    `arguments` are fields of the task's config; the seed is 1 unless given, and two seeds share no problems. Raises
    DataError for a task whose scorer might run text, and with what the task says of its arguments. See docs/data.md.
    """
    reason = refusal(task)
    if reason:
        raise DataError(f"reasoning_gym:{task} cannot be used: {reason}. Model text is never run; use another task")
    settings = {key: value for key, value in arguments.items() if key not in ("size", "seed")}
    seed, size = arguments.get("seed", 1), arguments.get("size", 500)
    if not 0 <= seed < 2**32 // SEED_STRIDE or not 1 <= size <= SEED_STRIDE:
        raise DataError(
            f"reasoning_gym:{task}: seed={seed}, must be 0 to {2**32 // SEED_STRIDE - 1}, "
            f"and size={size}, must be 1 to {SEED_STRIDE}"
        )
    try:
        dataset = _dataset(task, settings | {"seed": seed * SEED_STRIDE, "size": size})
        return [_row(task, settings, dataset[i]) for i in range(size)]
    except Exception as e:  # a task is a program of its authors and raises what it likes
        raise DataError(f"reasoning_gym:{task}: {type(e).__name__}: {e}") from e


def _row(task: str, settings: dict[str, Any], item: dict[str, Any]) -> Row:
    kept = {"answer": item["answer"], "metadata": item["metadata"], "config": settings}
    text = json.dumps(_packed(kept))
    if _unpacked(json.loads(text)) != kept:
        raise TypeError(f"what its scorer needs cannot be kept in a row: {str(item['metadata'])[:200]}")
    # The scorer's answer may be None where many are right; a column may not.
    answer = "" if item["answer"] is None else str(item["answer"])
    row = {"question": item["question"], "answer": answer, "task": task, "entry": text}
    if task in OWN:
        row |= {"numbers": item["metadata"]["numbers"], "target": item["metadata"]["target"]}
    return row


def _packed(value: Any) -> Any:
    """The same in JSON; tuples, and dicts whose keys are not text, are marked so that they come back as they were."""
    if isinstance(value, dict):
        if all(type(key) is str for key in value):
            return {key: _packed(one) for key, one in value.items()}
        return {"__pairs__": [[_packed(key), _packed(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_packed(one) for one in value]}
    if isinstance(value, list):
        return [_packed(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(_unpacked(one) for one in value["__tuple__"])
    if "__pairs__" in value:
        return {_unpacked(key): _unpacked(one) for key, one in value["__pairs__"]}
    return {key: _unpacked(one) for key, one in value.items()}


def _dataset(task: str, settings: dict[str, Any]) -> Any:
    dataset_class, config_class = tasks()[task]
    tuples = {
        field.name
        for field in dataclasses.fields(config_class)
        if isinstance(field.default, tuple) or typing.get_origin(field.type) is tuple
    }
    return dataset_class(config_class(**{k: tuple(v) if k in tuples else v for k, v in settings.items()}))


class Entry(NamedTuple):
    """What a scorer needs: column entry, read. `answer` is None where many answers are right."""

    task: str
    question: str
    answer: str | None
    metadata: dict[str, Any]
    config: dict[str, Any]


def entry(row: Row) -> Entry:
    """The row's entry. Raises ValueError or KeyError when it is not one that `rows` made, or its task is refused."""
    kept = _unpacked(json.loads(row["entry"]))
    found = Entry(row["task"], row["question"], kept["answer"], kept["metadata"], kept["config"])
    reason = refusal(found.task)
    if reason:
        raise ValueError(f"reasoning_gym:{found.task} cannot be used: {reason}")
    return found


def score(entry: Entry, answer: str) -> float:
    """What the task's own scorer says, 0 to 1; many give 0.01 to 0.5 for a wrong answer.

    Raises Evaluated when the scorer called something that evaluates text, and whatever else the scorer raises.
    """
    scorer = _scorer(entry.task, json.dumps(entry.config))
    item = {"question": entry.question, "answer": entry.answer, "metadata": entry.metadata}
    with _nothing_evaluated(entry.task):
        return float(scorer(answer, item))


@lru_cache(maxsize=32)
def _scorer(task: str, settings: str) -> Callable[[str, dict[str, Any]], float]:
    return _dataset(task, json.loads(settings) | {"seed": 0}).score_answer


@contextmanager
def _nothing_evaluated(task: str) -> Iterator[None]:
    """eval and sympy's parse_expr raise; and a scorer that swallows that has not scored."""
    from sympy.parsing import sympy_parser

    tried: list[str] = []

    def refuse(text: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append(repr(text)[:80])
        raise ValueError("text is not evaluated")

    saved = builtins.eval, sympy_parser.parse_expr
    builtins.eval = sympy_parser.parse_expr = refuse
    try:
        yield
    finally:
        builtins.eval, sympy_parser.parse_expr = saved
        if tried:
            raise Evaluated(f"reasoning_gym:{task}: its scorer tried to evaluate {tried[0]}")


@lru_cache(maxsize=256)
def refusal(task: str) -> str:
    """Why a task is not used; "" if it is. Raises DataError for a task that does not exist."""
    if task not in tasks():
        raise DataError(f"reasoning_gym: no task {task}; there are {', '.join(sorted(tasks()))}")
    dataset = tasks()[task][0]
    if found := unsafe(dataset, ("__init__", "__getitem__", "__iter__", "__next__"), _PROGRAMS, set()):
        return f"making its problems runs programs from text ({found})"
    if task in OWN:
        return ""
    found = unsafe_scorer(dataset)
    return f"its scorer may run text as code ({found})" if found else ""


def unsafe_scorer(dataset: type) -> str:
    """Where a task's scorer may run text as code, as "eval in n_queens.py:160"; "" if it does not."""
    return unsafe(dataset, ("score_answer",), _EVALUATES | {"score_answer"}, _LIBRARIES)


def unsafe(dataset: type, methods: Sequence[str], calls: set[str], libraries: set[str]) -> str:
    """Where `methods` of a class reach one of `calls` or `libraries`, as "eval in n_queens.py:160"; "" if they do not.

    Reads the source; runs nothing. What the methods name is followed through the package, which is more than they call,
    so a use is not missed; code of other packages is not read, hence `libraries`. See docs/data.md.
    """
    classes = [c for c in dataset.__mro__ if c.__module__.partition(".")[0] not in sys.stdlib_module_names]
    family = [_module(c.__module__) for c in classes]
    if None in family:
        return f"the source of {dataset.__name__} cannot be read"
    scan = _Scan(dataset.__module__.partition(".")[0], [m for m in family if m], calls, libraries)
    for method in methods:
        owner = next((c for c in classes if method in vars(c)), None)
        module = _module(owner.__module__) if owner else None
        if owner and not (module and scan.add(module, module.members.get(f"{owner.__name__}.{method}"))):
            return f"the source of {owner.__name__}.{method} cannot be read"
    return scan.run()


class _Module(NamedTuple):
    """One source file: what its top level defines, and what its classes and assignments to attributes do, under the
    bare name; of what is imported, (module, name there or ""), and the modules of which everything is."""

    file: str
    names: dict[str, list[ast.AST]]
    members: dict[str, list[ast.AST]]
    imported: dict[str, tuple[str, str]]
    stars: list[str]

    def add(self, where: dict[str, list[ast.AST]], name: Any, node: ast.AST) -> None:
        where.setdefault(name, []).append(node)


@lru_cache(maxsize=512)
def _module(name: str) -> _Module | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    module = _Module(Path(spec.origin).name, {}, {}, {}, [])
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    for node in _outside_functions(tree):
        if isinstance(node, (*_DEFINITIONS, ast.ClassDef)):
            module.add(module.names, node.name, node)
        for target in _targets(node):
            module.add(module.names, getattr(target, "id", None), node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module.imported[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, [above, node.module]))
            module.stars.extend(origin for alias in node.names if alias.name == "*")
            module.imported.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
        elif isinstance(node, ast.ClassDef):
            for child in _outside_functions(node):
                for key in [getattr(child, "name", None), *(getattr(t, "id", None) for t in _targets(child))]:
                    module.add(module.members, key, child)
                    module.add(module.members, f"{node.name}.{key}", child)
        for target in _targets(node):
            module.add(module.members, getattr(target, "attr", None), node)
    return module


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _outside_functions(top: ast.AST) -> Iterator[ast.AST]:
    """What a module or a class defines itself, also under an if or a try."""
    for node in ast.iter_child_nodes(top):
        yield node
        if not isinstance(node, (*_DEFINITIONS, ast.ClassDef, ast.Lambda)):
            yield from _outside_functions(node)


def _targets(node: ast.AST) -> list[ast.expr]:
    """What an assignment assigns to: `a` and `b` of `a, b = c`."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
        found = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [e for t in found for e in (t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t])]
    return []


class _Scan:
    def __init__(self, package: str, family: list[_Module], calls: set[str], libraries: set[str]) -> None:
        self._package, self._family, self._calls, self._libraries = package, family, calls, libraries
        self._todo: list[tuple[_Module, ast.AST]] = []
        self._seen: set[int] = set()

    def add(self, module: _Module, nodes: list[ast.AST] | None) -> bool:
        """Read these nodes of the module in time; False if there are none."""
        fresh = [node for node in nodes or [] if id(node) not in self._seen]
        self._seen.update(map(id, fresh))
        self._todo += [(module, node) for node in fresh]
        return bool(nodes)

    def run(self) -> str:
        while self._todo:
            module, top = self._todo.pop()
            for node in ast.walk(top):
                if found := self._look(module, node):
                    return f"{found} in {module.file}:{getattr(node, 'lineno', 0)}"
        return ""

    def _look(self, module: _Module, node: ast.AST) -> str:
        """What is wrong with one node; follows it to its definitions, if it has any in the package."""
        if isinstance(node, ast.Name):
            return self._name(module, node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(module, node)
        return ""

    def _name(self, module: _Module, name: str) -> str:
        if self.add(module, module.names.get(name)):
            return ""
        if name in module.imported:
            return self._imported(*module.imported[name])
        for origin in module.stars:
            if found := self._imported(origin, name):
                return found
        return name if name in self._calls else ""

    def _imported(self, origin: str, name: str) -> str:
        """Follow a name imported from the package to its definition; what is wrong with one from elsewhere."""
        if origin.partition(".")[0] != self._package:
            bad = name in self._calls or origin.partition(".")[0] in self._libraries
            return ".".join(filter(None, [origin, name])) if bad else ""
        source = _module(origin)
        return self._name(source, name) if source and (name in source.names or name in source.imported) else ""

    def _attribute(self, module: _Module, node: ast.Attribute) -> str:
        base = node.value.id if isinstance(node.value, ast.Name) else ""
        origin, name = module.imported.get(base, ("", ""))
        path = f"{origin}.{name}" if name else origin
        if origin.partition(".")[0] == self._package and (inside := _find(path)):
            return self._name(inside, node.attr)
        for one in (module, *self._family):
            self.add(one, one.members.get(node.attr))
        inherited = isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id
        if node.attr not in self._calls or inherited == "super" or node.attr == "compile":  # x.compile is no built-in
            return ""
        return f"{base}.{node.attr}".lstrip(".")


def _find(name: str) -> _Module | None:
    """The module of that name; None if it is a function, a class or not there."""
    try:
        return _module(name)
    except ModuleNotFoundError:
        return None
