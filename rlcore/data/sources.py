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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from rlcore.data.cells import Convert, from_arrow
from rlcore.data.generate import GENERATORS
from rlcore.data.generate import reasoning_gym as gym
from rlcore.data.layouts import problem_of
from rlcore.errors import DataError, nearest
from rlcore.surroundings import offline_without_hub

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
Numbered = Iterable[tuple[int, Row]]  # the number of its line, where the file has lines, or its own

_GENERATE = "generate:"
_GYM = "reasoning_gym:"
_FILES = (".jsonl", ".parquet", ".csv")
_AT_ONCE = 10_000  # rows of a table
_LONGEST_FIELD = 2**31 - 1  # characters of a CSV field; Python's own limit is shorter than the tests of some programs


class Rows(NamedTuple):
    """The rows of one source. Row i is its line or row, by `unit`, of number `numbers[i]`; `copies` were left out."""

    source: str
    name: str
    rows: list[Row]
    numbers: Sequence[int]
    unit: str = "row"
    copies: int = 0

    def at(self, row: int) -> str:
        """Where a row is, for an error: `data/train.jsonl, line 17`. Rows count from 0, lines from 1."""
        return f"{self.source}, {self.unit} {self.numbers[row]}"


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
    """Every row of a source, as dicts. Raises DataError naming the source and line: missing, empty or malformed.

    Of a set that ships each problem many times (DAPO-Math-17k: 100) each is taken once; `copies` counts the others.
    """
    known: set[str] = set()
    rows, numbers, copies = [], [], 0
    try:
        numbered, unit = _load(source)
        for number, row in numbered:
            problem = problem_of(row)
            if problem in known:
                copies += 1
                continue
            if problem is not None:
                known.add(problem)
            rows.append(row)
            numbers.append(number)
    except (UnicodeDecodeError, OSError) as e:
        raise DataError(f"{source}: cannot be read: {e}") from e
    if not rows:
        raise DataError(f"{source}: no rows")
    return Rows(source, source_name(source), rows, numbers, unit, copies)


def _load(source: str) -> tuple[Numbered, str]:
    """The rows of a source, and what is counted in it."""
    if source.startswith(_GENERATE):
        return enumerate(_generate(source)), "row"
    if source.startswith(_GYM):
        return enumerate(_gym(source)), "row"
    path = Path(source)
    if path.suffix not in _FILES:
        if path.is_file():
            raise DataError(f"{source}: cannot read a {path.suffix or 'nameless'} file; use {', '.join(_FILES)}")
        return enumerate(_load_hub(source)), "row"
    if not path.is_file():
        raise DataError(f"{source}: no such file (looked for {path.resolve()}){nearest(path.name, _siblings(path))}")
    if path.suffix == ".jsonl":
        return _read_jsonl(path), "line"
    if path.suffix == ".csv":
        return _read_csv(path), "line"
    return enumerate(_read_parquet(path)), "row"


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=_record)
            except json.JSONDecodeError as e:
                raise DataError(f"{path}, line {line}: not valid JSON: {e.msg} at column {e.colno}") from e
            except (ValueError, RecursionError) as e:  # two keys alike, over 4,300 digits, lists in lists in lists
                raise DataError(f"{path}, line {line}: cannot be read: {e}") from e
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {line}: a JSON {type(row).__name__}, must be an object {{...}}")
            yield line, row


def _record(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"two keys {', '.join(n for n, count in Counter(k for k, _ in pairs).items() if count > 1)}")
    return row


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _require_different(str(path), reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise DataError(f"{path}, line {reader.line_num}: not {columns} fields, as the first line has")
                yield reader.line_num, row
        except csv.Error as e:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV: {e}") from e


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as e:
        raise DataError(f"{path}: not a readable parquet file: {e}") from e
    return _rows_of(str(path), table)


def _rows_of(source: str, table: pyarrow.Table) -> Iterator[Row]:
    """The rows of a table, a part of it at a time: as Python objects it may be many times as large."""
    _require_different(source, table.column_names)
    converts = {field.name: from_arrow(field.type) for field in table.schema}
    for part in table.to_batches(max_chunksize=_AT_ONCE):
        columns = [
            _values(source, name, column, converts[name])
            for name, column in zip(part.schema.names, part.columns, strict=True)
        ]
        yield from (dict(zip(converts, values, strict=True)) for values in zip(*columns, strict=True))


def _values(source: str, name: str, column: pyarrow.Array, convert: Convert | None) -> list[Any]:
    try:
        values = column.to_pylist()
        return values if convert is None else [convert(value) for value in values]
    except (ValueError, OverflowError, KeyError, NotImplementedError) as e:  # the year 10000, a zone nobody knows
        raise DataError(f"{source}: column {name} of type {column.type} cannot be read: {e}") from e


def _require_different(source: str, columns: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{source}: there are two columns {', '.join(twice)}; give each a name of its own")


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    return name, config or None, split or "train"


def _load_hub(source: str) -> Iterator[Row]:
    offline_without_hub()
    import datasets

    name, config, split = _hub_parts(source)
    try:
        table = datasets.load_dataset(name, config, split=split).with_format("arrow")[:]  # type: ignore[union-attr, index]
    except Exception as e:  # the hub's own errors have no common base
        raise DataError(
            f"{source}: neither a {', '.join(_FILES)} file nor a Hugging Face dataset that loads "
            f"(name {name}, config {config}, split {split}): {type(e).__name__}: {e}"
        ) from e
    return _rows_of(source, table)  # type: ignore[arg-type]


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
