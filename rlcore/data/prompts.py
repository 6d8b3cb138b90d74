"""Dataset rows to prompts: fill the template, tokenize once, leave out what is too long, hand out in a seeded order.

Where rows come from is sources.py. The tokenizer is the caller's; nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.data.conversation import Message, as_text, cell, read_rows
from rlcore.data.sources import Rows, load_rows, nearest, source_names
from rlcore.errors import DataError
from rlcore.records import Prompt, Rollout


class Prompts:
    """The prompts of one or several sources, in an order that is a function of (seed, epoch) alone and that resumes.

    `dropped` counts the prompts that were longer than `cfg.max_prompt_tokens`. Raises DataError for a row that cannot
    be used, ConfigError for a template that names no column.
    """

    def __init__(self, sources: Sequence[str], cfg: DataConfig, tokenizer: Any, seed: int) -> None:
        self.sources, self.dropped = ", ".join(sources), 0
        self._cfg, self._seed = cfg, seed
        self._rows: dict[str, Rows] = {}
        prompts: list[Prompt] = []
        for name, loaded in zip(source_names(sources), map(load_rows, sources), strict=True):
            self._rows[name] = loaded
            own = untokenized(loaded, cfg, name)
            tokens = _tokenize_prompts(loaded, [p.messages for p in own], cfg, tokenizer)
            short = [
                dataclasses.replace(p, tokens=ids)
                for p, ids in zip(own, tokens, strict=True)
                if len(ids) <= cfg.max_prompt_tokens
            ]
            self.dropped += len(own) - len(short)
            prompts += short
        if not prompts:
            raise DataError(
                f"{self.sources}: all {self.dropped} prompts are longer than {cfg.max_prompt_tokens=} tokens"
            )
        self._hold(prompts)

    def _hold(self, prompts: list[Prompt]) -> None:
        self._prompts = prompts
        difficulty = None if self._cfg.curriculum is None else self._difficulty(self._cfg.curriculum)
        self._order = Order(self.sources, len(prompts), self._seed, self._cfg.shuffle, difficulty)

    def _difficulty(self, column: str) -> list[float]:
        """What the rows are handed out by, lowest first."""
        if column == "source":
            position = {name: float(i) for i, name in enumerate(self._rows)}
            return [position[_place(p)[0]] for p in self._prompts]
        return [self._number(p, column) for p in self._prompts]

    def _number(self, prompt: Prompt, column: str) -> float:
        if column not in prompt.row:
            raise DataError(
                f"{self.at(prompt)}: no column {column}{nearest(column, prompt.row)}, which data.curriculum names"
            )
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
        return [_in_epoch(self._prompts[i], epoch) for i, epoch in self._order.take(n)]

    def at(self, prompt: Prompt) -> str:
        """Where its row is: `data/train.jsonl, line 17`."""
        name, row = _place(prompt)
        return self._rows[name].at(row)

    def without(self, ids: Collection[str]) -> None:
        """Leave these prompts out of all epochs."""
        self._hold([p for p in self._prompts if p.id not in ids])

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

    def __init__(
        self, sources: Sequence[str], cfg: DataConfig, tokenizer: Any, seed: int, max_response_tokens: int
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token, so a response cannot be taught to end")
        self._examples: list[Rollout] = []
        self.dropped = 0
        for loaded in map(load_rows, sources):
            own = _examples(loaded, cfg, tokenizer, max_response_tokens)
            self.dropped += len(loaded.rows) - len(own)
            self._examples += own
        if not self._examples:
            raise DataError(
                f"{', '.join(sources)}: all {self.dropped} rows are over {cfg.max_prompt_tokens} tokens of prompt "
                f"or {max_response_tokens} of response"
            )
        self._order = Order(", ".join(sources), len(self._examples), seed, cfg.shuffle)

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
    """Which row comes next: a new order every epoch, a function of (seed, epoch) alone. Epochs count from 1.

    With `difficulty`, a number for each row, the rows of lower numbers come first in every epoch.
    """

    def __init__(
        self, source: str, rows: int, seed: int, shuffle: bool, difficulty: Sequence[float] | None = None
    ) -> None:
        self._source, self._rows, self._seed, self._shuffle = source, rows, seed, shuffle
        self._difficulty = difficulty
        self._epoch, self._position = 1, 0
        self._indices = self._of_epoch(1)

    def _of_epoch(self, epoch: int) -> list[int]:
        indices = list(range(self._rows))
        if self._shuffle:
            random.Random(f"data order {self._seed} {epoch}").shuffle(indices)
        if self._difficulty is not None:
            indices.sort(key=self._difficulty.__getitem__)
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
                raise DataError(f"{self._source}: {name} is {now}, was {state[name]} when saved: another data order")
        self._epoch, self._position = state["epoch"], state["position"]
        self._indices = self._of_epoch(self._epoch)


def untokenized(loaded: Rows, cfg: DataConfig, name: str) -> list[Prompt]:
    """The rows of a source as prompts without tokens, with ids that begin with `name`."""
    read = read_rows(loaded, cfg)
    return [
        Prompt(f"{name}:{i}", [], answer, row, [dict(m) for m in messages], str(row.get(cfg.source_column) or name))
        for i, (row, messages, answer) in enumerate(zip(loaded.rows, read.messages, read.answers, strict=True))
    ]


def _place(prompt: Prompt) -> tuple[str, int]:
    """Name of the source and number of the row: `train.jsonl:17@2` is (train.jsonl, 17)."""
    name, _, row = prompt.id.partition("@")[0].rpartition(":")
    return name, int(row)


def _in_epoch(prompt: Prompt, epoch: int) -> Prompt:
    return prompt if epoch == 1 else dataclasses.replace(prompt, id=f"{prompt.id}@{epoch}")


def _examples(loaded: Rows, cfg: DataConfig, tokenizer: Any, max_response_tokens: int) -> list[Rollout]:
    read = read_rows(loaded, cfg, answers_needed=False)
    prompts = _tokenize_prompts(loaded, read.messages, cfg, tokenizer)
    texts = [_response(loaded, i, cfg, said) for i, said in enumerate(read.said)]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        _example(Prompt(f"{loaded.name}:{i}", p, read.answers[i], row), [*r, tokenizer.eos_token_id], text)
        for i, (row, p, r, text) in enumerate(zip(loaded.rows, prompts, responses, texts, strict=True))
        if len(p) <= cfg.max_prompt_tokens and len(r) < max_response_tokens
    ]


def _example(prompt: Prompt, response: list[int], text: str) -> Rollout:
    tokens = prompt.tokens + response
    mask = [False] * len(prompt.tokens) + [True] * len(response)
    return Rollout(prompt, tokens, [0.0] * len(tokens), mask, "stop", 0, text, 0.0)


def _response(loaded: Rows, i: int, cfg: DataConfig, said: str | None) -> str:
    """What is to be learned from row i: the response column, else the assistant's last message."""
    column = cfg.response_column
    if said is not None and column not in loaded.rows[i]:
        return said
    text = as_text(cell(loaded, i, column))
    if not text:
        raise DataError(f"{loaded.at(i)}: column {column} is empty")
    return text


def _tokenize_prompts(
    loaded: Rows, conversations: Sequence[Sequence[Message]], cfg: DataConfig, tokenizer: Any
) -> list[list[int]]:
    """The token ids of each prompt. A chat template writes its own special tokens; plain text gets the tokenizer's."""
    if cfg.chat_template:
        texts = [_render(loaded.at(i), c, tokenizer) for i, c in enumerate(conversations)]
    else:
        texts = [_plain(loaded.at(i), c) for i, c in enumerate(conversations)]
    tokens = tokenizer(texts, add_special_tokens=not cfg.chat_template)["input_ids"]
    for i, ids in enumerate(tokens):
        if not ids:
            raise DataError(f"{loaded.at(i)}: the prompt has no tokens")
    return tokens


def _render(where: str, conversation: Sequence[Message], tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; with a base model set data.chat_template=False")
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as e:  # a template is a program of the model's authors and raises what it likes
        raise DataError(f"{where}: the tokenizer's chat template refuses it: {type(e).__name__}: {e}") from e


def _plain(where: str, conversation: Sequence[Message]) -> str:
    if len(conversation) > 1 or not isinstance(conversation[0]["content"], str):
        raise DataError(
            f"{where}: several messages (a system prompt is one) need a chat template; set data.chat_template=True"
        )
    return conversation[0]["content"]
