"""Whose turn it is on a shared device, and how long each phase of a step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rlcore.cluster.deadlines import Watch
from rlcore.config import DeadlineConfig


FIRST = "rollout"  # the phase that a step begins with


class Role(Protocol):
    """The workers of one role, which `sleep` and `wake` by a call on all of them: a WorkerGroup."""

    role: str
    deadline: DeadlineConfig

    def call(self, method: str, *, seconds: float) -> Any: ...


class Turns:
    """Whose turn a shared GPU is: who samples (engines, and the reward model that scores as samples finish) and who
    trains sleep and wake by turns. On CPU, or split, nobody sleeps."""

    def __init__(self, roles: Sequence[Role], active: bool) -> None:
        self.samplers = [r for r in roles if r.role in ("rollout", "reward_model")]
        self.trainers = [r for r in roles if r not in self.samplers]
        self.active, self.awake = active, {r.role for r in roles}

    def __call__(self, phase: str) -> None:
        if not self.active:
            return
        # A sleeping engine has dropped its weights: it may sleep only where a publish comes before the next sample.
        self._set(self.samplers, phase not in ("credit", "update"))
        self._set(self.trainers, phase not in ("rollout", "eval"))

    def _set(self, roles: Sequence[Role], awake: bool) -> None:
        for each in roles:
            if (each.role in self.awake) == awake:
                continue
            each.call("wake" if awake else "sleep", seconds=each.deadline.publish_seconds)
            (self.awake.add if awake else self.awake.discard)(each.role)


class Phases:
    """A clock over one step, and whose turn it is on shared devices: `with phase("rollout"): ...`.

    `seconds` is how long each phase took since the step's first, FIRST, was entered. `turn(phase)` is called on
    entering: it wakes and sleeps what takes turns.
    """

    def __init__(self, watch: Watch, turn: Callable[[str], None]) -> None:
        self.watch, self.turn = watch, turn
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.watch.phase = name
        if name == FIRST:
            self.seconds.clear()
        began = time.monotonic()
        self.turn(name)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def metrics(self) -> dict[str, float]:
        return {f"time/{name}_s": s for name, s in self.seconds.items()}
