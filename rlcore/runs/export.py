"""A checkpoint as a Hugging Face model: what was saved, in another dtype, every tensor accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from rlcore.errors import CheckpointError
from rlcore.files import written_aside
from rlcore.runs.checkpoint import Checkpoints, step_of

_INDEX = "model.safetensors.index.json"


def export(
    run_dir: Path, out: Path, dtype: str, step: int | None = None, say: Callable[[str], None] = lambda text: None
) -> Path:
    """The newest (or that step's) checkpoint as a Hugging Face model in `dtype` at `out`. Returns `out`.

    `say` is told which one was taken. Raises CheckpointError when the run has no such checkpoint, when it is not whole
    or has no weights, or when `out` holds something that is not RUN_DIR/export.
    """
    own = out.resolve() == (run_dir / "export").resolve()
    if not own and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not empty; export to a new directory")
    found = Checkpoints(run_dir, keep=1).latest(step)
    if found is None:
        raise CheckpointError(f"{run_dir} has no checkpoint")
    with written_aside(out) as aside:
        shutil.copytree(found / "model", aside)
        tensors = _convert(aside, dtype, found / "model")
    say(f"exported step {step_of(found)} ({tensors} tensors, {dtype}) to {out}")
    return out


def _convert(model: Path, dtype: str, source: Path) -> int:
    """Make the weights of a Hugging Face directory those of another dtype, one file after the other, and read them
    back. Gives how many tensors there are; CheckpointError names the file of `source` that has not what it should."""
    import safetensors.torch
    import torch

    expected = _tensors(model, source)
    size = 0
    for shard, names in expected.items():
        tensors = safetensors.torch.load_file(model / shard)
        if tensors.keys() != names:
            wrong = sorted(tensors.keys() ^ names)[0]
            raise CheckpointError(f"{source / shard}: {wrong} is in it or in {_INDEX}, not in both")
        wanted = getattr(torch, dtype)
        tensors = {k: v.to(wanted) if v.is_floating_point() else v for k, v in tensors.items()}
        safetensors.torch.save_file(tensors, model / shard, {"format": "pt"})
        size += sum(v.numel() * v.element_size() for v in tensors.values())
        if _names_in(model / shard) != names:
            raise CheckpointError(f"{model / shard}: what was written is not there when it is read back")
    if (model / _INDEX).exists():
        index = json.loads((model / _INDEX).read_text(encoding="utf-8"))
        (model / _INDEX).write_text(json.dumps(index | {"metadata": {"total_size": size}}, indent=1), encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    (model / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2), encoding="utf-8")
    return sum(map(len, expected.values()))


def _tensors(model: Path, source: Path) -> dict[str, set[str]]:
    """The weight files of a Hugging Face directory, each with the names of its tensors; there is at least one."""
    shards: dict[str, set[str]] = {}
    if (model / _INDEX).exists():
        for name, shard in json.loads((model / _INDEX).read_text(encoding="utf-8"))["weight_map"].items():
            shards.setdefault(shard, set()).add(name)
    elif (model / "model.safetensors").exists():
        shards["model.safetensors"] = _names_in(model / "model.safetensors")
    more = {path.name for path in model.glob("*.safetensors")} - shards.keys()
    if more:
        raise CheckpointError(f"{source / min(more)}: weights that {_INDEX} does not name")
    if not any(shards.values()):
        raise CheckpointError(f"{source}: no weights; there is neither {_INDEX} nor model.safetensors with a tensor")
    return shards


def _names_in(shard: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as opened:
        return set(opened.keys())
