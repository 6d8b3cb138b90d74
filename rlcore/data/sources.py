"""Where rows come from: .jsonl, .parquet and .csv files, Hugging Face datasets, generated problems, reasoning-gym.

Everything comes out as a list of dicts, one a row; what is missing, empty or malformed is a DataError that names the
source, the line and what to do.
"""

from __future__ import annotations

import csv
import inspect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from rlcore.data.generate import GENERATORS
from rlcore.data.generate import reasoning_gym as gym
from rlcore.errors import DataError, nearest
from rlcore.surroundings import offline_without_hub

Row = dict[str, Any]

_GENERATE = "generate:"
_GYM = "reasoning_gym:"
_FILES = (".jsonl", ".parquet", ".csv")


class Rows(NamedTuple):
    """The rows of one source. `lines[i]` is the line of row i in its file, where the file has lines."""

    source: str
    name: str
    rows: list[Row]
    lines: list[int] | None = None

    def at(self, row: int) -> str:
        """Where a row is, for an error: `data/train.jsonl, line 17`. Rows count from 0, lines from 1."""
        return f"{self.source}, " + (f"row {row}" if self.lines is None else f"line {self.lines[row]}")


def source_name(source: str) -> str:
    """The short name, as in `eval/NAME/accuracy`: `data/test.jsonl` is test, `openai/gsm8k:main@test` is gsm8k."""
    if source.startswith((_GENERATE, _GYM)):
        return source.partition(":")[2].partition("?")[0]
    if Path(source).suffix in _FILES:
        return Path(source).stem
    return Path(_hub_parts(source)[0]).name


def source_names(sources: Sequence[str]) -> list[str]:
    """The short name of each source, no two the same: a repeated one gets its place in the list, as `a-2`, or the next
    number with which it is no other source's name."""
    own = [source_name(source) for source in sources]
    names: list[str] = []
    for place, name in enumerate(own, start=1):
        if name in names:
            numbered = (f"{name}-{i}" for i in itertools.count(place))
            name = next(n for n in numbered if n not in own and n not in names)
        names.append(name)
    return names


def load_sources(sources: Sequence[str]) -> Iterator[Rows]:
    """`load_rows` of each, no two of the same name."""
    for source, name in zip(sources, source_names(sources), strict=True):
        yield load_rows(source)._replace(name=name)


def load_rows(source: str) -> Rows:
    """Every row of a source, as dicts. Raises DataError naming the source and line: missing, empty or malformed."""
    rows, lines = _load(source)
    if not rows:
        raise DataError(f"{source}: no rows")
    return Rows(source, source_name(source), rows, lines)


def _load(source: str) -> tuple[list[Row], list[int] | None]:
    if source.startswith(_GENERATE):
        return _generate(source), None
    if source.startswith(_GYM):
        return _gym(source), None
    path = Path(source)
    if path.suffix not in _FILES:
        if path.is_file():
            raise DataError(f"{source}: cannot read a {path.suffix or 'nameless'} file; use {', '.join(_FILES)}")
        return _load_hub(source), None
    if not path.is_file():
        raise DataError(f"{source}: no such file (looked for {path.resolve()}){nearest(path.name, _siblings(path))}")
    try:
        if path.suffix == ".jsonl":
            return _unzip(_read_jsonl(path))
        if path.suffix == ".csv":
            return _unzip(_read_csv(path))
        return _read_parquet(path), None
    except (UnicodeDecodeError, OSError) as e:
        raise DataError(f"{source}: cannot be read: {e}") from e


def _unzip(numbered: Iterable[tuple[int, Row]]) -> tuple[list[Row], list[int]]:
    pairs = list(numbered)
    return [row for _, row in pairs], [line for line, _ in pairs]


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as e:
                raise DataError(f"{path}, line {line}: not valid JSON: {e.msg} at column {e.colno}") from e
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {line}: a JSON {type(row).__name__}, must be an object {{...}}")
            yield line, row


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise DataError(f"{path}, line {reader.line_num}: not {columns} fields, as the first line has")
                yield reader.line_num, row
        except csv.Error as e:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {e}") from e


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as e:
        raise DataError(f"{path}: not a readable parquet file: {e}") from e


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    return name, config or None, split or "train"


def _load_hub(source: str) -> list[Row]:
    offline_without_hub()
    import datasets

    name, config, split = _hub_parts(source)
    try:
        return list(datasets.load_dataset(name, config, split=split))  # type: ignore[arg-type]
    except Exception as e:  # the hub's own errors have no common base
        raise DataError(
            f"{source}: neither a {', '.join(_FILES)} file nor a Hugging Face dataset that loads "
            f"(name {name}, config {config}, split {split}): {type(e).__name__}: {e}"
        ) from e


def _generate(source: str) -> list[Row]:
    name, _, query = source[len(_GENERATE) :].partition("?")
    if name not in GENERATORS:
        raise DataError(f"{source}: no generator {name}; there are {', '.join(GENERATORS)}")
    known = inspect.signature(GENERATORS[name]).parameters
    kinds = {key: type(parameter.default) for key, parameter in known.items()}
    return GENERATORS[name](**_arguments(source, query, kinds))


def _gym(source: str) -> list[Row]:
    task, _, query = source[len(_GYM) :].partition("?")
    if task not in gym.tasks():
        raise DataError(
            f"{source}: no task {task}{nearest(task, gym.tasks())}; there are {', '.join(sorted(gym.tasks()))}"
        )
    return gym.rows(task, _arguments(source, query, gym.parameters(task)))


def _arguments(source: str, query: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """`size=1000&seed=1` as {"size": 1000, "seed": 1}, each of its type; a list is written as JSON."""
    arguments: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as e:
        raise DataError(f"{source}: write the arguments as ?size=1000&seed=1: {e}") from e
    for key, text in pairs:
        if key not in kinds:
            raise DataError(f"{source}: no argument {key}{nearest(key, kinds)}; there are {', '.join(kinds)}")
        try:
            arguments[key] = _argument(kinds[key], text)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{source}: {key}={text} is not of type {kinds[key].__name__}") from e
    return arguments


def _argument(kind: type, text: str) -> Any:
    if kind is bool:
        return ("false", "true").index(text.lower()) == 1
    value = json.loads(text) if kind is list else kind(text)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(text)
    return value


def _siblings(path: Path) -> Iterable[str]:
    return (p.name for p in path.parent.iterdir()) if path.parent.is_dir() else ()
