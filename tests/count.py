"""`make count`: how much there is of what should stay little. `tests/unit/test_rules.py` holds the limits."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlcore.config import all_keys

ROOT = Path(__file__).parent.parent
FILES = sorted(p for d in ("rlcore", "rewards", "rollout", "examples") for p in (ROOT / d).rglob("*.py"))
FUNCTION_LINES, DOCSTRING_LINES, KNOBS = 60, 5, 20

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class Found(NamedTuple):
    """A function or a docstring of so many lines; `place` is FILE:NAME."""

    lines: int
    place: str
    room: str


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str | None:
    """rlcore.data.prompts is of data, rlcore.records of the hall; a __main__ is a command. None: not ours."""
    package, _, rest = module.partition(".")
    if package != "rlcore":
        return package if package in ("rewards", "rollout", "examples") else None
    if module.endswith(".__main__"):
        return "cli"
    first = rest.partition(".")[0]
    return first if first and (ROOT / "rlcore" / first).is_dir() else "hall"


@functools.cache
def imports(path: Path) -> list[str]:
    """`a` of `import a`, `a.b` of `from a import b`."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def functions() -> Iterator[Found]:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                yield _found(path, node, (node.end_lineno or node.lineno) - node.lineno + 1)


def docstrings() -> Iterator[Found]:
    """Of modules, classes and functions; not those of protocols, which say what another must do."""
    for path in FILES:
        for node in _outside_protocols(tree(path)):
            if (text := _docstring(node)) is not None:
                yield _found(path, node, len(inspect.cleandoc(text.value).splitlines()))


def _found(path: Path, node: Documented, lines: int) -> Found:
    return Found(lines, f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}", str(room(module_name(path))))


def _outside_protocols(node: ast.AST) -> Iterator[Documented]:
    if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Protocol" for b in node.bases):
        return
    if isinstance(node, Documented):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_protocols(child)


def _docstring(node: ast.AST) -> ast.Constant | None:
    first = node.body[0] if isinstance(node, Documented) and node.body else None
    value = first.value if isinstance(first, ast.Expr) else None
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def code_lines(path: Path) -> int:
    """Lines that are not blank, a comment or of a docstring."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in _NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(path)):
        if (text := _docstring(node)) is not None:
            code.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return len(code)


def knobs() -> Counter[str]:
    """How many knobs each section of the config has; those outside all sections are of "Config"."""
    return Counter(key.rpartition(".")[0] or "Config" for key in all_keys())


def main() -> None:
    of_room: dict[str, list[Path]] = {}
    for path in FILES:
        of_room.setdefault(str(room(module_name(path))), []).append(path)
    long = {
        f"functions over {FUNCTION_LINES} lines": [f for f in functions() if f.lines > FUNCTION_LINES],
        f"docstrings over {DOCSTRING_LINES} lines": [d for d in docstrings() if d.lines > DOCSTRING_LINES],
    }
    print(f"{'room':10}{'files':>7}{'lines':>7}{'code':>7}   {'   '.join(long)}")
    for name, paths in [*of_room.items(), ("all", FILES)]:
        lines, code = sum(len(p.read_text().splitlines()) for p in paths), sum(map(code_lines, paths))
        counts = [sum(name in ("all", each.room) for each in found) for found in long.values()]
        shown = "".join(f"{n:>{len(what) + 3}}" for what, n in zip(long, counts, strict=True))
        print(f"{name:10}{len(paths):>7}{lines:>7}{code:>7}{shown}")
    print(f"\nknobs a section, at most {KNOBS}: {', '.join(f'{name} {n}' for name, n in knobs().most_common())}")
    for what, found in long.items():
        print(f"\n{what}: {len(found)}", *(f"{each.lines:5}  {each.place}" for each in sorted(found)[::-1]), sep="\n")


if __name__ == "__main__":
    main()
