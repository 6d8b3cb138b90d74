"""The tests of a row of code data, in the forms of HumanEval, MBPP, APPS, TACO and LiveCodeBench.

A row's form is the first of those in docs/rewards.md, "Code", that it has; text is read as JSON where it is JSON.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlcore.errors import UnparseableGold
from rlcore.records import Prompt

_ENTRY = re.compile(r"[A-Za-z_]\w*(\(\)\.[A-Za-z_]\w*)?")


class Tests(NamedTuple):
    """The tests of one row: stdin/stdout pairs, or cases (see harness.judge) with their files."""

    pairs: list[tuple[str, str]]
    cases: list[dict[str, Any]]
    files: dict[str, str]
    header: str = ""  # goes before the program
    imported: bool = False  # the program finds what rewards/code/code.py imports for it

    def __len__(self) -> int:
        return len(self.pairs) + len(self.cases)


def code_gold(prompt: Prompt) -> None:
    """UnparseableGold unless the row has tests of a known form."""
    read_tests(prompt)


def read_tests(prompt: Prompt) -> Tests:
    """The tests of a row; UnparseableGold names the column and what is wrong with it."""
    row = prompt.row
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):
        return _check_function(row)
    for column in ("tests", "test_list", "input_output"):
        if row.get(column) is not None:
            return _by_form(column, _json(row[column]), row)
    value = _json(prompt.answer)
    if isinstance(value, str):
        raise UnparseableGold(
            "no tests: the row has none of the columns tests, test_list, input_output, or test with entry_point, and "
            "the answer is not one of these forms as JSON"
        )
    return _by_form("answer", value, row)


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _by_form(column: str, value: Any, row: dict[str, Any]) -> Tests:
    if isinstance(value, dict) and "inputs" in value and "outputs" in value:
        return _in_out(column, value["inputs"], value["outputs"], value.get("fn_name") or row.get("fn_name"))
    if isinstance(value, str) and value.strip():
        return _statements(column, [value], row)
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return _statements(column, value, row)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and {"input", "output"} <= v.keys() for v in value)
    ):
        return _in_out(column, [v["input"] for v in value], [v["output"] for v in value], row.get("fn_name"))
    raise UnparseableGold(
        f"column {column}: {_shape(value)} is no known form of tests: a list of assert statements, or "
        '{"inputs": [...], "outputs": [...]}, or a list of {"input": ..., "output": ...}'
    )


def _shape(value: Any) -> str:
    return f"an empty {type(value).__name__}" if not value else f"{type(value).__name__} {repr(value)[:80]}"


def _check_function(row: dict[str, Any]) -> Tests:
    if not _ENTRY.fullmatch(row["entry_point"]):
        raise UnparseableGold(f"column entry_point: {row['entry_point'][:80]!r} is neither a name nor Class().name")
    tree = _parsed("test", row["test"])
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        raise UnparseableGold("column test: it defines no function check(candidate)")
    header = row.get("prompt") if isinstance(row.get("prompt"), str) else ""
    try:
        _parsed("prompt", header or "")
    except UnparseableGold:  # a chat prompt is not a program's beginning
        header = ""
    case = {"file": "test_0.py", "check": row["entry_point"], "tested": []}
    of_class = "()." in row["entry_point"]
    return Tests([], [case], {"test_0.py": f"{header}\n{row['test']}"}, header or "", of_class)


def _statements(column: str, statements: Sequence[str], row: dict[str, Any]) -> Tests:
    imports = row.get("test_imports") or []
    setup = "\n".join([*([imports] if isinstance(imports, str) else imports), row.get("test_setup_code") or ""])
    _parsed("test_setup_code", setup)
    cases, files = [], {}
    for i, statement in enumerate(statements):
        tree = _parsed(column, statement)
        if not tree.body:
            raise UnparseableGold(f"column {column}: test {i} is empty")
        name = f"test_{i}.py"
        cases.append({"file": name, "tested": _tested_builtins(tree)})
        files[name] = f"{setup}\n{statement}"
    return Tests([], cases, files)


def _parsed(column: str, text: str) -> ast.Module:
    """The syntax of a test, which is read here and run only in the sandbox."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise UnparseableGold(f"column {column}: {text[:80]!r} is not Python: {e}") from e


def _tested_builtins(tree: ast.Module) -> list[str]:
    """The names called, if all are built-in: MBPP has functions to write that are called `sum`. Else none."""
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return sorted(called) if all(hasattr(builtins, name) for name in called) else []


def _in_out(column: str, inputs: Any, outputs: Any, fn_name: Any) -> Tests:
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise UnparseableGold(f"column {column}: inputs and outputs must be two lists of one length, not empty")
    if fn_name:
        if not isinstance(fn_name, str) or not _ENTRY.fullmatch(fn_name):
            raise UnparseableGold(f"column {column}: fn_name {fn_name!r} is neither a name nor Class().name")
        cases = [_call(column, fn_name, *pair) for pair in zip(inputs, outputs, strict=True)]
        return Tests([], cases, {}, imported=True)
    return Tests([(_lines(column, i), _lines(column, o)) for i, o in zip(inputs, outputs, strict=True)], [], {})


def _lines(column: str, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise UnparseableGold(f"column {column}: {_shape(value)} is neither a text nor a list of lines")
    return value


def _call(column: str, fn_name: str, given: Any, wanted: Any) -> dict[str, Any]:
    """Arguments as a list and the value (APPS: or a list of it), or both as text, one JSON a line (LiveCodeBench)."""
    if isinstance(given, str):
        try:
            given = [json.loads(line) for line in given.split("\n") if line.strip()]
            wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
        except (ValueError, RecursionError) as e:
            raise UnparseableGold(f"column {column}: the input and output of fn_name are not JSON: {e}") from e
        return {"call": fn_name, "args": given, "wants": [wanted]}
    if not isinstance(given, list):
        raise UnparseableGold(f"column {column}: {_shape(given)} is not a list of arguments for {fn_name}")
    wrapped = isinstance(wanted, list) and len(wanted) == 1
    return {"call": fn_name, "args": given, "wants": [wanted, wanted[0]] if wrapped else [wanted]}
