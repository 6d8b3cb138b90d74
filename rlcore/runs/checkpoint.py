"""One atomic commit of everything a run needs to go on, safetensors and JSON only: nothing in it is executed.

docs/run_directory.md says what lies in a checkpoint. One that is there is whole: it is written aside and renamed, and
read back against its manifest before anything is made of it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlcore.errors import CheckpointError
from rlcore.files import remove, sweep, written_aside
from rlcore.runs.manifest import verify, write_manifest

ASIDE = "set_aside"


class Best(NamedTuple):
    """The step whose checkpoint is best by a number, and that number."""

    step: int
    value: float


class Checkpoints:
    """The checkpoints of one run directory. The `keep` newest whole ones stay, and the best by the number `best`.

    Larger is better, unless the number's name ends in "loss". What is not finite is never best; of equals the first is.
    """

    def __init__(self, run_dir: Path, keep: int, best: str | None = None) -> None:
        self.run_dir = run_dir
        self.directory = run_dir / "checkpoints"
        self.keep, self._best = keep, best
        self._whole: dict[Path, bool] = {}  # of those whose every byte this process has written or read

    def save(self, step: int, write: Callable[[Path], None], state: dict[str, Any], value: float | None = None) -> Path:
        """`write(directory)` puts the trainer's files there; then state and manifest. `value` is this step's `best`."""
        final = self.directory / _name(step)
        known = {"step": step, **state}
        if self._best is not None and value is not None:
            known["best"] = {"name": self._best, "value": value if math.isfinite(value) else None}
        with written_aside(final) as aside:
            aside.mkdir()
            write(aside)
            (aside / "state.json").write_text(json.dumps(known, indent=1), encoding="utf-8")
            write_manifest(aside)
        self._whole[final] = True
        self._retire(final)
        return final

    def all(self) -> list[Path]:
        """Every checkpoint that is there, whole or not, oldest first."""
        return sorted((p for p in self.directory.glob("step_*") if step_of(p) >= 0), key=step_of)

    def left_by_a_kill(self) -> list[Path]:
        """What a process killed while it saved or deleted a checkpoint has left; the next save deletes it."""
        return sorted(self.directory.glob(".step_*.partial"))

    def latest(self, step: int | None = None) -> Path | None:
        """The newest checkpoint, or that of `step`, every byte read and checked; None when there is none at all.

        Raises CheckpointError naming the file that is wrong and which older checkpoints there are, or no such `step`.
        """
        there = self.all()
        if step is not None and self.directory / _name(step) not in there:
            raise CheckpointError(
                f"{self.run_dir} has no checkpoint of step {step}; there: {', '.join(p.name for p in there) or 'none'}"
            )
        if not there:
            return None
        found = there[-1] if step is None else self.directory / _name(step)
        try:
            _require_whole(found)
        except CheckpointError as e:
            raise CheckpointError(f"{e}; {self._instead_of(found)}") from e
        self._whole[found] = True
        return found

    def _instead_of(self, damaged: Path) -> str:
        older = [step_of(p) for p in self.all() if step_of(p) < step_of(damaged) and self._is_whole(p)]
        if not older:
            return "there is no older checkpoint that is whole"
        run = shlex.quote(str(self.run_dir))
        return (
            f"older and whole: step {', '.join(map(str, older))}; `rlcore resume {run} step={older[-1]}` goes on from "
            f"it, `rlcore export {run} --step {older[-1]}` exports it"
        )

    def set_aside_after(self, step: int) -> list[Path]:
        """Move the checkpoints of later steps to checkpoints/set_aside/, where nothing counts or deletes them: the run
        goes another way from `step` on. Gives where they are now."""
        moved = []
        for path in (p for p in self.all() if step_of(p) > step):
            names = itertools.chain([path.name], (f"{path.name}-{i}" for i in itertools.count(2)))
            target = next(t for name in names if not (t := self.directory / ASIDE / name).exists())
            target.parent.mkdir(exist_ok=True)
            moved.append(path.rename(target))
        return moved

    def is_better(self, value: float | None) -> bool:
        """Whether a step of this `best` is worth a checkpoint: none that is there is as good."""
        if value is None or not math.isfinite(value):
            return False
        known = self.best()
        return known is None or (value < known.value if str(self._best).endswith("loss") else value > known.value)

    def best(self) -> Best | None:
        """The best of the whole checkpoints, by what each says of itself; None when none says."""
        found = [best for path in self.all() if (best := self._value(path)) is not None]
        smaller = str(self._best).endswith("loss")
        return max(found, key=lambda best: (-best.value if smaller else best.value, -best.step), default=None)

    def _value(self, checkpoint: Path) -> Best | None:
        if self._best is None or not self._is_whole(checkpoint):
            return None
        known = state_of(checkpoint).get("best", {})
        if known.get("name") != self._best or known.get("value") is None:
            return None
        return Best(step_of(checkpoint), known["value"])

    def _is_whole(self, checkpoint: Path) -> bool:
        """Its contents are read once, and not at all where they were written here."""
        if self._whole.get(checkpoint, True):
            try:
                _require_whole(checkpoint, contents=checkpoint not in self._whole)
                self._whole[checkpoint] = True
            except CheckpointError:
                self._whole[checkpoint] = False
        return self._whole[checkpoint]

    def _retire(self, saved: Path) -> None:
        """What is damaged does not count: nothing whole is deleted for its sake."""
        best, kept = self.best(), [saved]
        for path in reversed(self.all()):
            if path == saved:
                continue
            if len(kept) >= self.keep:
                if best is None or path.name != _name(best.step):
                    remove(path)
            elif self._is_whole(path):
                kept.append(path)
        sweep(self.directory)


def _name(step: int) -> str:
    return f"step_{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for a name that is none."""
    found = re.fullmatch(r"step_([0-9]{6,})", checkpoint.name)
    return int(found[1]) if found and _name(int(found[1])) == checkpoint.name else -1


def _require_whole(checkpoint: Path, contents: bool = True) -> None:
    verify(checkpoint, contents)
    path = checkpoint / "state.json"
    try:
        step = state_of(checkpoint)["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path}: missing, torn or without a step") from e
    if step != step_of(checkpoint):
        raise CheckpointError(f"{path}: it is of step {step}, so {checkpoint.name} is another's name")


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
