"""Dataset rows to prompts: load, fill the template, tokenize once, leave out what is too long, hand out in a seeded order.

A source is a .jsonl, .parquet or .csv file, a Hugging Face dataset `name[:config][@split]`, or generated problems
`generate:arithmetic?size=1000&seed=1`. The tokenizer is the caller's; nothing heavy is imported here.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import inspect
import json
import random
import string
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence
from urllib.parse import parse_qsl

from rlcore.config import DataConfig
from rlcore.errors import ConfigError, DataError
from rlcore.problems import GENERATORS
from rlcore.records import Prompt, Rollout

Row = dict[str, Any]
Message = Mapping[str, Any]

_GENERATE = "generate:"
_FILES = (".jsonl", ".parquet", ".csv")
_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
_ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "response")


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
    """The short name of a source, as in `eval/NAME/accuracy`: `data/test.jsonl` is test, `a/gsm8k:main@test` is gsm8k."""
    if source.startswith(_GENERATE):
        return source[len(_GENERATE) :].partition("?")[0]
    if Path(source).suffix in _FILES:
        return Path(source).stem
    return Path(_hub_parts(source)[0]).name


def load_rows(source: str) -> Rows:
    """Every row of a source, as dicts. Raises DataError naming the source and line: missing, empty or malformed."""
    rows, lines = _load(source)
    if not rows:
        raise DataError(f"{source}: no rows")
    return Rows(source, source_name(source), rows, lines)


def _load(source: str) -> tuple[list[Row], list[int] | None]:
    if source.startswith(_GENERATE):
        return _generate(source), None
    path = Path(source)
    if path.suffix not in _FILES:
        if path.is_file():
            raise DataError(f"{source}: cannot read a {path.suffix or 'nameless'} file; use {', '.join(_FILES)}")
        return _load_hub(source), None
    if not path.is_file():
        raise DataError(f"{source}: no such file (looked for {path.resolve()}){_nearest(path.name, _siblings(path))}")
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
    arguments: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as e:
        raise DataError(f"{source}: write the arguments as ?size=1000&seed=1: {e}") from e
    for key, value in pairs:
        if key not in known:
            raise DataError(f"{source}: no argument {key}{_nearest(key, known)}; there are {', '.join(known)}")
        kind = type(known[key].default)
        try:
            arguments[key] = kind(value)
        except ValueError as e:
            raise DataError(f"{source}: {key}={value} is not of type {kind.__name__}") from e
    return GENERATORS[name](**arguments)


class Prompts:
    """The prompts of a source, in an order that is a function of (seed, epoch) alone and that resumes.

    `dropped` counts the prompts that were longer than `cfg.max_prompt_tokens`. Raises DataError for a row that cannot
    be used, ConfigError for a template that names no column.
    """

    def __init__(self, source: str, cfg: DataConfig, tokenizer: Any, seed: int) -> None:
        self._rows = load_rows(source)
        self.name = self._rows.name
        messages, answers, self._texts = _read_rows(self._rows, cfg)
        tokens = _tokenize_prompts(self._rows, messages, cfg, tokenizer)
        self._prompts = [
            Prompt(f"{self.name}:{i}", ids, answers[i], row)
            for i, (row, ids) in enumerate(zip(self._rows.rows, tokens, strict=True))
            if len(ids) <= cfg.max_prompt_tokens
        ]
        self.dropped = len(tokens) - len(self._prompts)
        if not self._prompts:
            raise DataError(f"{source}: all {self.dropped} prompts are longer than {cfg.max_prompt_tokens=} tokens")
        self._order = Order(source, len(self._prompts), seed, cfg.shuffle)

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts; the end of an epoch runs on into the next, and no row is left out of an epoch."""
        return [_in_epoch(self._prompts[i], epoch) for i, epoch in self._order.take(n)]

    def all(self, limit: int = 0) -> list[Prompt]:
        """The first `limit` prompts in the order of the source; 0: all. Does not move `take`."""
        return self._prompts[: limit or None]

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the source has changed since."""
        self._order.restore(state)


class Examples:
    """Prompts with the response to learn: what `rlcore sft` trains on. Same order and resuming as `Prompts`.

    A response is the response column (or, with messages, their last message when the assistant said it) and the
    end-of-sequence token; only it is in the mask. `dropped` counts the rows whose prompt or response is too long.
    """

    def __init__(self, source: str, cfg: DataConfig, tokenizer: Any, seed: int, max_response_tokens: int) -> None:
        loaded = load_rows(source)
        self.name = loaded.name
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so a response cannot be taught to end")
        messages, answers, said = _read_rows(loaded, cfg)
        prompts = _tokenize_prompts(loaded, messages, cfg, tokenizer)
        texts = [_response(loaded, i, cfg, said[i]) for i in range(len(loaded.rows))]
        responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self._examples = [
            _example(Prompt(f"{self.name}:{i}", p, answers[i], row), [*r, tokenizer.eos_token_id], text)
            for i, (row, p, r, text) in enumerate(zip(loaded.rows, prompts, responses, texts, strict=True))
            if len(p) <= cfg.max_prompt_tokens and len(r) < max_response_tokens
        ]
        self.dropped = len(prompts) - len(self._examples)
        if not self._examples:
            raise DataError(
                f"{source}: all {self.dropped} rows are longer than {cfg.max_prompt_tokens} tokens of prompt "
                f"or {max_response_tokens} of response"
            )
        self._order = Order(source, len(self._examples), seed, cfg.shuffle)

    def __len__(self) -> int:
        return len(self._examples)

    def take(self, n: int) -> list[Rollout]:
        """The next n rows, as rollouts with mask on the response only, reward 0 and version 0."""
        return [
            dataclasses.replace(e, prompt=_in_epoch(e.prompt, epoch))
            for e, epoch in ((self._examples[i], epoch) for i, epoch in self._order.take(n))
        ]

    def state(self) -> dict[str, Any]:
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._order.restore(state)


class Order:
    """Which row comes next: a new order every epoch, a function of (seed, epoch) alone. Epochs count from 1."""

    def __init__(self, source: str, rows: int, seed: int, shuffle: bool) -> None:
        self._source, self._rows, self._seed, self._shuffle = source, rows, seed, shuffle
        self._epoch, self._position = 1, 0
        self._indices = self._of_epoch(1)

    def _of_epoch(self, epoch: int) -> list[int]:
        indices = list(range(self._rows))
        if self._shuffle:
            random.Random(f"data order {self._seed} {epoch}").shuffle(indices)
        return indices

    def take(self, n: int) -> list[tuple[int, int]]:
        """The next n (row, epoch)."""
        taken: list[tuple[int, int]] = []
        while len(taken) < n:
            if self._position == self._rows:
                self._epoch, self._position = self._epoch + 1, 0
                self._indices = self._of_epoch(self._epoch)
            part = self._indices[self._position : self._position + n - len(taken)]
            self._position += len(part)
            taken += [(i, self._epoch) for i in part]
        return taken

    def state(self) -> dict[str, Any]:
        return {"rows": self._rows, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, now in (("rows", self._rows), ("seed", self._seed)):
            if state[name] != now:
                raise DataError(f"{self._source}: {name} is {now}, was {state[name]} when saved: not the same data order")
        self._epoch, self._position = state["epoch"], state["position"]
        self._indices = self._of_epoch(self._epoch)


def _in_epoch(prompt: Prompt, epoch: int) -> Prompt:
    return prompt if epoch == 1 else dataclasses.replace(prompt, id=f"{prompt.id}@{epoch}")


def _example(prompt: Prompt, response: list[int], text: str) -> Rollout:
    tokens = prompt.tokens + response
    mask = [False] * len(prompt.tokens) + [True] * len(response)
    return Rollout(prompt, tokens, [0.0] * len(tokens), mask, "stop", 0, text, 0.0)


def _read_rows(loaded: Rows, cfg: DataConfig) -> tuple[list[list[Message]], list[str], list[str | None]]:
    """Of each row: the conversation up to the response, the gold answer, and what the assistant said last, if anything."""
    columns = list(loaded.rows[0])
    prompt_column = _choose(loaded, "data.prompt_column", cfg.prompt_column, _PROMPT_COLUMNS)
    answer_column = _choose(loaded, "data.answer_column", cfg.answer_column, _ANSWER_COLUMNS, needed=False)
    template = _parse_template(cfg.prompt_template, columns, answer_column)
    messages, answers, said = [], [], []
    for i, row in enumerate(loaded.rows):
        conversation = _conversation(_cell(loaded, i, prompt_column), loaded.at(i), prompt_column)
        said.append(conversation.pop()["content"] if conversation[-1]["role"] == "assistant" else None)
        if cfg.system_prompt is not None:
            rest = [m for m in conversation if m["role"] != "system"]
            conversation = [{"role": "system", "content": cfg.system_prompt}, *rest]
        if template is not None:
            conversation[-1] = _fill(conversation[-1], template, loaded, i)
        messages.append(conversation)
        answers.append("" if answer_column is None else _as_text(_cell(loaded, i, answer_column)))
    return messages, answers, said


def _choose(loaded: Rows, key: str, column: str, candidates: Sequence[str], needed: bool = True) -> str | None:
    """The column to use: the one named, or with "auto" the first candidate the first row has."""
    columns = list(loaded.rows[0])
    if column != "auto":
        if column not in columns:
            raise DataError(
                f"{loaded.source}: no column {column}{_nearest(column, columns)}; "
                f"{key} must be one of {', '.join(columns)}"
            )
        return column
    for candidate in candidates:
        if candidate in columns:
            return candidate
    if not needed:
        return None
    raise DataError(
        f"{loaded.source}: none of the columns {', '.join(candidates)}; set {key} to one of {', '.join(columns)}"
    )
