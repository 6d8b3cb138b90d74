"""One atomic commit of everything a run needs to go on.

    checkpoints/step_000010/
      model/                HF format, fp32 master weights, config, tokenizer: `from_pretrained` loads it as it is
      optimizer-*.safetensors  Adam's moments by parameter name: any number of ranks, any ZeRO stage can read them
      critic/               the same files, of the critic, where there is one
      reference/            weights of the reference, once it has been refreshed
      state.json            step, data position, KL coefficient, scale of the returns
      manifest.json         every file and its size; written last

A checkpoint is written under a hidden name, flushed to disk and renamed, so a run killed at any moment has the old one
or the new one. safetensors and JSON only: nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlcore.errors import CheckpointError


class Checkpoints:
    """The checkpoints of one run directory; `keep` newest stay."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """`write(directory)` puts the trainer's files there; then state, manifest, flush, rename."""
        final = self.directory / f"step_{step:06d}"
        partial = self.directory / f".{final.name}.partial"
        for old in (partial, final):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        (partial / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        sizes = {str(p.relative_to(partial)): p.stat().st_size for p in files}
        (partial / "manifest.json").write_text(json.dumps(sizes, indent=1))
        for path in [*files, partial / "manifest.json", partial]:
            _flush(path)
        partial.rename(final)
        _flush(self.directory)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
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


def verify(checkpoint: Path) -> None:
    """Raise CheckpointError naming the file of `checkpoint` that is missing or cut."""
    for name, size in json.loads((checkpoint / "manifest.json").read_text()).items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            there = path.stat().st_size if path.is_file() else "no"
            raise CheckpointError(
                f"{path}: {there} bytes, the manifest says {size}; delete {checkpoint} to go on from the one before"
            )


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def export(run_dir: Path, out: Path, dtype: str, step: int | None = None) -> Path:
    """The newest (or that step's) checkpoint as a Hugging Face model in `dtype` at `out`. Returns `out`.

    Raises CheckpointError when the run has no such checkpoint, or `out` holds something that is not RUN_DIR/export.
    """
    checkpoints = Checkpoints(run_dir, keep=1)
    found = checkpoints.latest() if step is None else checkpoints.directory / f"step_{step:06d}"
    if found is None or not (found / "manifest.json").is_file():
        there = ", ".join(p.name for p in checkpoints.all()) or "none"
        raise CheckpointError(
            f"{run_dir} has no checkpoint{f' of step {step}' if step is not None else ''}; there: {there}"
        )
    verify(found)
    own = out.resolve() == (run_dir / "export").resolve()
    if not own and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty; export to a new directory")
    import safetensors.torch
    import torch

    partial = out.resolve().with_name(f".{out.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(found / "model", partial)
    for shard in partial.glob("*.safetensors"):
        tensors = safetensors.torch.load_file(shard)
        safetensors.torch.save_file(
            {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()}, shard, {"format": "pt"}
        )
    config = json.loads((partial / "config.json").read_text())
    config.pop("torch_dtype", None)
    (partial / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out
