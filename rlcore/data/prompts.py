"""Dataset rows to prompts: read, tokenized once, left out where too long, handed out in a seeded order.

Where rows come from is sources.py. The tokenizer is the caller's; nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlcore.config import DataConfig
from rlcore.data.conversation import Asked, Read, asked, read_rows
from rlcore.data.opened import opened
from rlcore.data.order import Content, Order, digest, in_epoch
from rlcore.data.sources import Rows, load_sources
from rlcore.errors import DataError, nearest
from rlcore.records import Prompt


class Prompts:
    """The prompts of one or several sources, in an order that is a function of (seed, epoch) alone and that resumes.

    `dropped` counts the prompts that were longer than `cfg.max_prompt_tokens`; `notes` say of each source which columns
    were taken, and how many rows left out. Raises DataError for a row that cannot be used, ConfigError for a template
    that names no column.
    """

    def __init__(self, sources: Sequence[str], cfg: DataConfig, tokenizer: Any, seed: int) -> None:
        self.sources, self.dropped = ", ".join(sources), 0
        self._cfg, self._seed = cfg, seed
        self._rows: dict[str, Rows] = {}
        self.notes: list[str] = []
        prompts: list[Prompt] = []
        for loaded in load_sources(sources):
            self._rows[loaded.name] = loaded
            read = untokenized(loaded, cfg, loaded.name)
            self.notes.append(read.told)
            own = [tokenized(p, self.at(p), cfg, tokenizer) for p in read.prompts]
            short = [p for p in own if len(p.tokens) <= cfg.max_prompt_tokens]
            self.dropped += len(own) - len(short)
            prompts += short
        if not prompts:
            most = f"{cfg.max_prompt_tokens} tokens (data.max_prompt_tokens)"
            raise DataError(f"{self.sources}: all {self.dropped} prompts are longer than {most}")
        self._hold(prompts)

    def _hold(self, prompts: list[Prompt]) -> None:
        self._prompts = prompts
        difficulty = None if self._cfg.curriculum is None else self._difficulty(self._cfg.curriculum)
        self._order = Order(self.sources, len(prompts), self._seed, self._cfg.shuffle, difficulty, lambda: self.content)

    def _difficulty(self, column: str) -> list[float]:
        """What the rows are handed out by, lowest first."""
        if column == "source":
            position = {name: float(i) for i, name in enumerate(self._rows)}
            return [position[place(p)[0]] for p in self._prompts]
        return [self._number(p, column) for p in self._prompts]

    def _number(self, prompt: Prompt, column: str) -> float:
        if column not in prompt.row:
            hint = nearest(column, prompt.row)
            raise DataError(f"{self.at(prompt)}: no column {column}, which data.curriculum names{hint}")
        value = prompt.row[column]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{self.at(prompt)}: column {column} is {value!r}; data.curriculum needs a number")
        return float(value)

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.tokens) for p in self._prompts)

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts; the end of an epoch runs on into the next, and no row is left out of an epoch."""
        return [in_epoch(self._prompts[i], epoch) for i, epoch in self._order.take(n)]

    def at(self, prompt: Prompt) -> str:
        """Where its row is: `data/train.jsonl, line 17`."""
        name, row = place(prompt)
        return self._rows[name].at(row)

    def without(self, ids: Collection[str]) -> None:
        """Leave these prompts out of all epochs."""
        self._hold([p for p in self._prompts if p.id not in ids])

    def all(self, limit: int = 0) -> list[Prompt]:
        """The first `limit` prompts in the order of the source; 0: all. Does not move `take`."""
        return self._prompts[: limit or None]

    @functools.cached_property
    def content(self) -> Content:
        """What the rows of each source are, those left out too."""
        return {rows.source: digest(enumerate(rows.rows)) for rows in self._rows.values()}

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the source has changed since."""
        self._order.restore(state)


def tokenized(prompt: Prompt, where: str, cfg: DataConfig, tokenizer: Any) -> Prompt:
    """The prompt with its tokens, and what is open at their end. DataError names the row, which is at `where`."""
    return with_tokens(prompt, asked(where, prompt.messages, cfg, tokenizer), tokenizer)


def with_tokens(prompt: Prompt, found: Asked, tokenizer: Any) -> Prompt:
    """The prompt with the tokens of its messages, and what is open at their end."""
    tokens = found.tokens
    return dataclasses.replace(prompt, tokens=tokens, opened=opened(tokenizer, tokens, prompt.messages))


class Untokenized(NamedTuple):
    """The rows of a source as prompts without tokens, and in words from which columns; see Read."""

    prompts: list[Prompt]
    told: str


def untokenized(loaded: Rows, cfg: DataConfig, name: str) -> Untokenized:
    """The rows of a source that have a gold answer or need none, with ids that begin with `name`."""
    read = read_rows(loaded, cfg)
    prompts = as_prompts(loaded._replace(name=name), read, cfg)
    return Untokenized([p for i, p in enumerate(prompts) if i not in read.left_out], read.told)


def as_prompts(loaded: Rows, read: Read, cfg: DataConfig) -> list[Prompt]:
    """The rows, read, as prompts without tokens, with ids that begin with the source's name."""
    name, column = loaded.name, cfg.source_column
    return [
        Prompt(f"{name}:{i}", [], answer, row, [dict(m) for m in messages], str(row.get(column) or name))
        for i, (row, messages, answer) in enumerate(zip(loaded.rows, read.messages, read.answers, strict=True))
    ]


def place(prompt: Prompt) -> tuple[str, int]:
    """Name of the source and number of the row: `train.jsonl:17@2` is (train.jsonl, 17)."""
    name, _, row = prompt.id.partition("@")[0].rpartition(":")
    return name, int(row)
