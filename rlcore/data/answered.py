"""Rows that bring their own answers: learned from where nothing is sampled, in groups as samples come."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.config import DataConfig
from rlcore.data.order import Content, Order, digest, in_epoch
from rlcore.data.sources import source_names
from rlcore.errors import DataError
from rlcore.records import Group, Prompt, Rollout


class AnsweredRows:
    """A group a row, in a seeded order that resumes. `dropped` counts the rows that were left out: None in `groups`.

    `notes` say what was taken of each source. Raises DataError when all are left out, which `why` explains.
    """

    notes: Sequence[str] = ()
    last_only = 0  # rows of several turns of the assistant's of which only the last can be learned

    def __init__(
        self, sources: Sequence[str], groups: Sequence[Group | None], why: str, cfg: DataConfig, seed: int
    ) -> None:
        self._groups = [group for group in groups if group is not None]
        self.dropped = len(groups) - len(self._groups)
        name = ", ".join(sources)
        if not self._groups:
            raise DataError(f"{name}: all {self.dropped} {why}")
        self._sources = sources
        self._order = Order(name, len(self._groups), seed, cfg.shuffle, content=lambda: self.content)

    def __len__(self) -> int:
        return len(self._groups)

    def take(self, n: int) -> list[Group]:
        """The next n rows; the end of an epoch runs on into the next."""
        return [_in_epoch(self._groups[i], epoch) for i, epoch in self._order.take(n)]

    def all(self, limit: int = 0) -> list[Group]:
        """The first `limit` rows in the order of the sources; 0: all. Does not move `take`."""
        return self._groups[: limit or None]

    def ahead(self, n: int, state: Mapping[str, Any] | None) -> list[Group]:
        """The rows that the `n` after `state` are, each once; None: the first of a run. Does not move `take`."""
        rows = dict.fromkeys(i for i, _ in self._order.ahead(n, state))
        return [self._groups[i] for i in rows]

    @functools.cached_property
    def content(self) -> Content:
        """What the rows of each source are, of those that were not left out."""
        of: dict[str, list[Prompt]] = {name: [] for name in source_names(self._sources)}
        for group in self._groups:
            of.setdefault(group.prompt.id.rpartition(":")[0], []).append(group.prompt)
        return {
            source: digest((prompt.id, prompt.row) for prompt in prompts)
            for source, prompts in zip(self._sources, of.values(), strict=False)
        }

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        return self._order.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the sources have changed since."""
        self._order.restore(state)


def answer(prompt: Prompt, tokens: list[int], learned: int, text: str, reward: float) -> Rollout:
    """An answer as if version 0 had just given it: `tokens` are the prompt's and its own, the last `learned` masked."""
    mask = [False] * (len(tokens) - learned) + [True] * learned
    return Rollout(prompt, tokens, [0.0] * len(tokens), mask, "stop", 0, text, reward)


def _in_epoch(group: Group, epoch: int) -> Group:
    prompt = in_epoch(group.prompt, epoch)
    return Group([dataclasses.replace(rollout, prompt=prompt) for rollout in group.rollouts])
