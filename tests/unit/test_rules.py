"""The rules of the design that a machine can hold: import directions, sizes, no dead knob, no evaluated text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rlcore.config import all_keys

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p for d in ("rlcore", "rewards", "rollout", "examples") for p in (ROOT / d).rglob("*.py"))

# Who may import whom: a room imports from the rooms of the floors above it in this list, and from nothing beside it.
FLOORS = [
    {"hall"},
    {"data", "isolated", "cluster"},
    {"rewards", "rollout", "runs", "models", "algo"},
    {"compose", "workers"},
    {"train"},
    {"cli"},
]
ONLY_IN = {
    "vllm": ("rollout",),
    "deepspeed": ("rlcore.workers",),
    "wandb": ("rlcore.runs.sinks",),
    "tensorboard": ("rlcore.runs.sinks",),
    "httpx": ("rewards.over_http.http",),
    "starlette": ("rewards.over_http.serve",),
    "uvicorn": ("rewards.over_http.serve",),
    "reasoning_gym": ("rlcore.data.generate.reasoning_gym",),
    "hydra": ("rlcore.compose.compose", "rlcore.compose.recipe"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str | None:
    """rlcore.data.prompts is of data, rlcore.records of the hall; a __main__ is a command. None: not ours."""
    package, _, rest = module.partition(".")
    if module.endswith(".__main__"):
        return "cli"
    if package != "rlcore":
        return package if package in ("rewards", "rollout") else None
    first = rest.partition(".")[0]
    return first if (ROOT / "rlcore" / first).is_dir() else "hall"


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def test_imports_go_one_way() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in [p for p in FILES if "examples" not in p.parts]:
        mine = room(module_name(path))
        theirs = {i: room(i) for i in imports(path)}
        wrong = [i for i, r in theirs.items() if r not in (None, mine) and floor[r] >= floor[mine]]
        assert not wrong, f"{path.relative_to(ROOT)}, of {mine}, imports {wrong}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_where_they_belong(library: str) -> None:
    for path in FILES:
        if not module_name(path).startswith(ONLY_IN[library]):
            named = [i for i in imports(path) if i.split(".")[0] == library]
            assert not named, f"{path.relative_to(ROOT)} imports {named}"


def test_sizes() -> None:
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{path.relative_to(ROOT)} has over 400 lines: a noun is missing"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.relative_to(ROOT)}:{node.name} has {length} lines"


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path


def test_every_knob_is_read_by_the_code() -> None:
    code = "\n".join(
        p.read_text() for p in FILES if p.name not in ("config.py", "check.py", "idle.py", "compose.py", "merge.py")
    )
    # `algorithm` stands for other keys: merge.py puts them in its place.
    keys = all_keys().keys() - {"algorithm"}
    unread = [k for k in sorted(keys) if not re.search(rf"\.{k.split('.')[-1]}\b", code)]
    assert not unread, f"knobs nothing reads: {unread}"


def test_at_most_120_knobs() -> None:
    assert len(all_keys()) <= 120


def test_no_text_is_evaluated() -> None:
    forbidden = {"eval", "exec", "compile", "sympify", "parse_expr"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in forbidden, f"{path.relative_to(ROOT)}:{node.lineno} calls {name}"
        for library in ("pickle", "cloudpickle", "dill", "shelve", "marshal"):
            assert not any(i.split(".")[0] == library for i in imports(path)), f"{path} imports {library}"
        assert not re.search(r"(?<!safetensors\.)torch\.load\(", path.read_text()), path
        assert "shell=True" not in path.read_text(), path


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

    from rlcore.compose.recipe import ALGORITHMS, algorithm_lines, algorithm_names, resets, settable
    from rlcore.config import Config

    defaults = OmegaConf.structured(Config)
    for name in algorithm_names():
        for key, value in algorithm_lines(name).items():
            assert key in all_keys() and settable(key), f"{name}: {key}"
            assert not resets(key) or OmegaConf.select(defaults, key) != value, f"{name}: {key} is already {value}"
        assert re.match(r"(#.*\n)*#.*arXiv \d{4}\.\d{5}", (ALGORITHMS / f"{name}.yaml").read_text()), name
