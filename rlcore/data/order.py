"""In which order rows are handed out: a new one every epoch, a function of (seed, epoch) alone, and it resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlcore.errors import DataError
from rlcore.records import Prompt

Content = dict[str, str]  # of each source, as it is written in data.train: a hash of its rows


class Order:
    """Which row comes next. Epochs count from 1.

    With `difficulty`, a number for each row, the rows of lower numbers come first in every epoch. `content` says what
    it is an order of: its state is of nothing else.
    """

    def __init__(
        self,
        source: str,
        rows: int,
        seed: int,
        shuffle: bool,
        difficulty: Sequence[float] | None = None,
        content: Callable[[], Content] = dict,
    ) -> None:
        self._source, self._rows, self._seed, self._shuffle = source, rows, seed, shuffle
        self._difficulty, self._content = difficulty, content
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
        """The next n (row, epoch); the end of an epoch runs on into the next, and no row is left out of an epoch."""
        taken: list[tuple[int, int]] = []
        while len(taken) < n:
            if self._position == self._rows:
                self._epoch, self._position = self._epoch + 1, 0
                self._indices = self._of_epoch(self._epoch)
            part = self._indices[self._position : self._position + n - len(taken)]
            self._position += len(part)
            taken += [(i, self._epoch) for i in part]
        return taken

    def ahead(self, n: int, state: Mapping[str, Any] | None) -> list[tuple[int, int]]:
        """The n (row, epoch) that come after `state`; None: the first of a run. Does not move `take`."""
        fresh = Order(self._source, self._rows, self._seed, self._shuffle, self._difficulty, self._content)
        if state is not None:
            fresh.restore(state)
        return fresh.take(n)

    def state(self) -> dict[str, Any]:
        """Where `take` stands, as plain JSON values."""
        where = {"epoch": self._epoch, "position": self._position}
        return {**self._rule(), "content": self._content(), **where}

    def _rule(self) -> dict[str, Any]:
        """What a permutation of the rows is a function of, beside the epoch."""
        by = None if self._difficulty is None else digest((i, {"": each}) for i, each in enumerate(self._difficulty))
        return {"rows": self._rows, "seed": self._seed, "shuffle": self._shuffle, "curriculum": by}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken. Raises DataError when the rows have changed since."""
        for name, now in self._rule().items():
            if state.get(name, now) != now:
                raise DataError(f"{self._source}: {name} is {now}, was {state[name]} when saved: another data order")
        require_same(state.get("content"), self._content())
        self._epoch, self._position = state["epoch"], state["position"]
        self._indices = self._of_epoch(self._epoch)


def digest(rows: Iterable[tuple[Any, Mapping[str, Any]]]) -> str:
    """A hash of rows, each with its number; the order of a row's columns does not count."""
    known = hashlib.blake2b(digest_size=16)
    for number, row in rows:
        known.update(json.dumps([number, sorted(row.items(), key=lambda cell: cell[0])], default=str).encode())
    return known.hexdigest()


def require_same(saved: Content | None, now: Content) -> None:
    """DataError naming the sources whose rows are not those that a checkpoint is of. A file may have moved."""
    if saved is None:
        raise DataError(
            "the checkpoint does not say which rows it is of: an earlier rlcore wrote it; start a new run from its "
            "model (rlcore export)"
        )
    known = list(saved.values())
    if known != list(now.values()):
        changed = [source for i, (source, rows) in enumerate(now.items()) if known[i : i + 1] != [rows]]
        raise DataError(
            f"{', '.join(changed or now)}: not the rows that the run began with; give it the same, or start a new run "
            "from its model (rlcore export)"
        )


def in_epoch(prompt: Prompt, epoch: int) -> Prompt:
    """The prompt by its name in that epoch: `train.jsonl:17` is `train.jsonl:17@2` in the second."""
    return prompt if epoch == 1 else dataclasses.replace(prompt, id=f"{prompt.id}@{epoch}")
