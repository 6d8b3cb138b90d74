"""The rules of the design that a machine can hold: import directions, sizes, no dead knob, no evaluated text."""

from __future__ import annotations

import ast
import re

from rlcore.config import all_keys
from tests.count import (
    DOCSTRING_LINES,
    FILES,
    FUNCTION_LINES,
    KNOBS,
    ROOT,
    docstrings,
    functions,
    imports,
    knobs,
    module_name,
    room,
    tree,
)

# Who may import whom: a room imports from the rooms of the floors above it in this list, and from nothing beside it.
FLOORS = [
    {"hall"},
    {"data", "isolated", "cluster"},
    {"rewards", "rollout", "runs", "models", "algo"},
    {"compose", "workers"},
    {"train"},
    {"cli"},
    {"examples"},
]
ONLY_IN = {
    "difflib": "rlcore.errors",
    "hydra": "rlcore.compose.",
    "vllm": "rollout.",
    "deepspeed": "rlcore.workers.",
    "wandb": "rlcore.runs.sinks",
    "tensorboard": "rlcore.runs.sinks",
    "httpx": "rewards.over_http.",
    "starlette": "rewards.over_http.",
    "uvicorn": "rewards.over_http.",
    "reasoning_gym": "rlcore.data.generate.",
}
RUN_WHAT_THEY_READ = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
EVALUATES = {"eval", "exec", "compile", "sympify", "parse_expr"}
IMPORTS = [(module_name(path), imported) for path in FILES for imported in imports(path)]


def test_imports_go_one_way() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    edges = [(room(mine), room(theirs), mine, theirs) for mine, theirs in IMPORTS]
    wrong = [edge for edge in edges if edge[1] not in (None, edge[0]) and floor[edge[1]] >= floor[edge[0]]]
    assert wrong == []


def test_libraries_stay_where_they_belong() -> None:
    assert [
        (mine, theirs) for mine, theirs in IMPORTS if not mine.startswith(ONLY_IN.get(theirs.split(".")[0], ""))
    ] == []


def test_sizes() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert [(n, file) for file, n in lines.items() if n > 400] == []  # a noun is missing
    assert [(n, file) for file, n in lines.items() if file.startswith("examples/") and n >= 60] == []
    assert [found for found in functions() if found.lines > FUNCTION_LINES] == []
    assert [found for found in docstrings() if found.lines > DOCSTRING_LINES] == []


def test_every_knob_is_read_by_the_code() -> None:
    readers = [path for path in FILES if path.name != "config.py" and room(module_name(path)) != "compose"]
    code = "\n".join(path.read_text() for path in readers)
    # `algorithm` stands for other keys: compose/merge.py puts them in its place.
    keys = all_keys().keys() - {"algorithm"}
    assert [k for k in sorted(keys) if not re.search(rf"\.{k.split('.')[-1]}\b", code)] == []


def test_no_section_has_too_many_knobs() -> None:
    assert {section: n for section, n in knobs().items() if n > KNOBS} == {}


def test_no_text_is_evaluated() -> None:
    wrong = [(mine, theirs) for mine, theirs in IMPORTS if theirs.split(".")[0] in RUN_WHAT_THEY_READ]
    for path in FILES:
        calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        names = {func.id for func in calls if isinstance(func, ast.Name)}
        found = re.findall(r"(?<!safetensors\.)torch\.load\(|shell=True", path.read_text())
        wrong += [(module_name(path), bad) for bad in [*(names & EVALUATES), *found]]
    assert wrong == []


def test_recipes_are_flat_and_differ_from_what_is_below_them() -> None:
    """Below a recipe's lines are config.py's defaults, those of its parents, and those of its algorithm."""
    from omegaconf import OmegaConf

    from rlcore.compose.compose import RECIPES, recipe_names
    from rlcore.compose.merge import Merger
    from rlcore.compose.recipe import layers

    for name in recipe_names():
        *parents, layer = layers(RECIPES / f"{name}.yaml")
        below = Merger()
        for key, value in (line for parent in parents for line in parent.lines.items() if line[0] != "algorithm"):
            below.put(key, value, name, users=False)
        below.algorithm(layer.lines.get("algorithm"), name)
        assert below.errors == []
        for key, value in layer.lines.items():
            assert key in all_keys(), f"{name}: {key}"
            if key != "algorithm":
                assert OmegaConf.select(below.config, key, throw_on_missing=False) != value, f"{name}: {key} is {value}"


def test_algorithms_differ_from_the_defaults_and_name_their_paper() -> None:
    """A line that is a default has an effect only where a new algorithm does not put the key back to it."""
    from omegaconf import OmegaConf

    from rlcore.compose.merge import schema
    from rlcore.compose.recipe import ALGORITHMS, algorithm_lines, algorithm_names, resets, settable

    defaults = schema()
    for name in algorithm_names():
        for key, value in algorithm_lines(name).items():
            assert key in all_keys() and settable(key), f"{name}: {key}"
            assert not resets(key) or OmegaConf.select(defaults, key) != value, f"{name}: {key} is already {value}"
        assert re.match(r"(#.*\n)*#.*arXiv \d{4}\.\d{5}", (ALGORITHMS / f"{name}.yaml").read_text()), name


def test_text_is_utf8_whatever_the_locale_is() -> None:
    """Every file of text that is opened says so."""
    wrong = []
    for path in FILES:
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            owner = getattr(getattr(call.func, "value", None), "id", "")
            function = isinstance(call.func, ast.Name) and name != "open"  # write_text of files.py
            if name not in ("open", "read_text", "write_text") or owner == "os" or function:
                continue
            binary = any(isinstance(arg, ast.Constant) and arg.value in ("rb", "wb", "ab") for arg in call.args)
            if not binary and "encoding" not in [keyword.arg for keyword in call.keywords]:
                wrong.append((module_name(path), call.lineno))
    assert wrong == []
