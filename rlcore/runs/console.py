"""What a run shows: a line a step; on a terminal, under it, a bar with what is going on and the time left."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rlcore.screen import message

# What the console shows of a step: metric, its short name, its format.
_SHOWN = (
    ("reward/mean", "reward", ".3f"),
    ("reward/failed_fraction", "failed", ".1%"),
    ("response/tokens_mean", "tokens", ".0f"),
    ("actor/loss", "loss", ".4f"),
    ("train/loss", "loss", ".4f"),
    ("train/accuracy", "ranked right", ".1%"),
    ("actor/accuracy", "ranked right", ".1%"),
    ("actor/margin", "margin", ".2f"),
    ("actor/kl", "kl", ".2g"),
    ("sync/logp_diff_max", "sync", ".1g"),
    ("actor/skipped_updates", "skipped", ".0f"),
)
_ONLY_ABOVE_ZERO = {"actor/skipped_updates"}
_RECENT = 10  # steps the time left is estimated from


class Console:
    """One run's lines, and its bar where standard output is a terminal. `steps` is of the whole run."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: list[float] = []  # of the last steps, and of the moment before the first
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if sys.stdout.isatty():
            now = TextColumn("{task.fields[left]}  {task.description}")
            self._bar = Progress(BarColumn(), MofNCompleteColumn(), now, transient=True)

    def begin(self, step: int) -> None:
        self._ends = [time.monotonic()]
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self._steps, completed=max(0, step - 1), left="")
            self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        took = time.monotonic() - self._ends[-1]
        self._ends = [*self._ends, time.monotonic()][-_RECENT - 1 :]
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        left = f"{_clock(each * (self._steps - step))} left" if step < self._steps else "last step done"
        told = {key for key in metrics if metrics[key] > 0 or key not in _ONLY_ABOVE_ZERO}
        shown = [f"{name} {metrics[key]:{form}}" for key, name, form in _SHOWN if key in told]
        if metrics.get("group/used") != metrics.get("group/drawn"):
            shown.append(f"groups {metrics['group/used']:.0f}/{metrics['group/drawn']:.0f}")
        shown += [f"{key} {value:.4g}" for key, value in metrics.items() if re.fullmatch(r"eval/.*/accuracy", key)]
        self.say("  ".join([f"step {step}/{self._steps}", *shown, f"{took:.1f} s", left]))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, left=left, description="")

    def phase(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(message(text), markup=False, highlight=False)
        else:
            print(message(text), flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
