"""One atomic commit of everything a run needs to go on, safetensors and JSON only: nothing in it is executed.

docs/run_directory.md says what lies in a checkpoint. One that is there is whole: it is written aside and renamed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlcore.errors import CheckpointError
from rlcore.files import remove, sweep, written_aside


class Best(NamedTuple):
    """The step whose checkpoint is best by a number, and that number."""

    step: int
    value: float


class Checkpoints:
    """The checkpoints of one run directory. The `keep` newest stay, and the one that is best by the number `best`.

    Larger is better, unless the number's name ends in "loss". What is not finite is never best; of equals the first is.
    """

    def __init__(self, run_dir: Path, keep: int, best: str | None = None) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep, self._best = keep, best

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
            sizes = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
            (aside / "manifest.json").write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        self._retire()
        return final

    def all(self) -> list[Path]:
        """Committed checkpoints, oldest first."""
        return sorted(p for p in self.directory.glob("step_*") if (p / "manifest.json").is_file())

    def latest(self) -> Path | None:
        """The newest checkpoint, its files checked against its manifest; None when there is none.

        Raises CheckpointError naming the file that is missing or cut.
        """
        found = self.all()
        if not found:
            return None
        verify(found[-1])
        return found[-1]

    def is_better(self, value: float | None) -> bool:
        """Whether a step of this `best` is worth a checkpoint: none that is there is as good."""
        if value is None or not math.isfinite(value):
            return False
        known = self.best()
        return known is None or (value < known.value if str(self._best).endswith("loss") else value > known.value)

    def best(self) -> Best | None:
        """The best of the checkpoints that are there, by what each says of itself; None when none says."""
        found = [best for path in self.all() if (best := self._value(path)) is not None]
        smaller = str(self._best).endswith("loss")
        return max(found, key=lambda best: (-best.value if smaller else best.value, -best.step), default=None)

    def _value(self, checkpoint: Path) -> Best | None:
        try:
            state = state_of(checkpoint)
        except (OSError, ValueError):  # damaged, which `verify` says where it is used
            return None
        known = state.get("best", {})
        if known.get("name") != self._best or known.get("value") is None:
            return None
        return Best(state["step"], known["value"])

    def _retire(self) -> None:
        best = self.best()
        for old in self.all()[: -self.keep]:
            if best is None or old.name != _name(best.step):
                remove(old)
        sweep(self.directory)


def _name(step: int) -> str:
    return f"step_{step:06d}"


def verify(checkpoint: Path) -> None:
    """Raise CheckpointError naming the file of `checkpoint` that is missing or cut."""
    for name, size in json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8")).items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            there = path.stat().st_size if path.is_file() else "no"
            raise CheckpointError(
                f"{path}: {there} bytes, the manifest says {size}; delete {checkpoint} to go on from the one before"
            )


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def export(run_dir: Path, out: Path, dtype: str, step: int | None = None) -> Path:
    """The newest (or that step's) checkpoint as a Hugging Face model in `dtype` at `out`. Returns `out`.

    Raises CheckpointError when the run has no such checkpoint, or `out` holds something that is not RUN_DIR/export.
    """
    checkpoints = Checkpoints(run_dir, keep=1)
    found = checkpoints.latest() if step is None else checkpoints.directory / _name(step)
    if found is None or not (found / "manifest.json").is_file():
        there = ", ".join(p.name for p in checkpoints.all()) or "none"
        raise CheckpointError(
            f"{run_dir} has no checkpoint{f' of step {step}' if step is not None else ''}; there: {there}"
        )
    verify(found)
    own = out.resolve() == (run_dir / "export").resolve()
    if not own and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty; export to a new directory")
    with written_aside(out) as aside:
        shutil.copytree(found / "model", aside)
        _convert(aside, dtype)
    return out


def _convert(model: Path, dtype: str) -> None:
    """Make the weights of a Hugging Face directory those of another dtype, one file after the other."""
    import safetensors.torch
    import torch

    for shard in model.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(shard)
        safetensors.torch.save_file(
            {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}, shard, {"format": "pt"}
        )
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    (model / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2), encoding="utf-8")
