"""Safetensors files written as the tensors come, so that a rank never holds more than one file's worth of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlcore.errors import CheckpointError

_SHARD_BYTES = 2 << 30


class ShardWriter:
    """Writes `STEM-00001-of-0000N.safetensors` and `STEM.safetensors.index.json`, the way Hugging Face names them.

    `convert` renames or reshapes what is about to be written (name -> tensor).
    """

    def __init__(
        self,
        directory: Path,
        stem: str,
        convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        self.directory, self.stem, self.convert, self.shard_bytes = directory, stem, convert, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._files: list[list[str]] = []
        self._total = 0
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes a copy of the tensor, on the host."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        self._pending[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        self._pending_bytes += size

    def close(self) -> None:
        """Write what is left, give the files their final names, write the index."""
        self._flush()
        count = len(self._files)
        where: dict[str, str] = {}
        for i, names in enumerate(self._files):
            final = f"{self.stem}-{i + 1:05d}-of-{count:05d}.safetensors"
            self._partial(i).rename(self.directory / final)
            where |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": where}
        (self.directory / f"{self.stem}.safetensors.index.json").write_text(
            json.dumps(index, indent=1), encoding="utf-8"
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        ready = self.convert(self._pending) if self.convert else self._pending
        ready = {k: v.contiguous() for k, v in ready.items()}
        save_file(ready, self._partial(len(self._files)), metadata={"format": "pt"})
        self._files.append(list(ready))
        self._total += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def _partial(self, i: int) -> Path:
        return self.directory / f"{self.stem}-{i + 1:05d}.partial"


def read_shards(directory: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor a ShardWriter wrote, one at a time, in its order. CheckpointError when files are missing or torn."""
    index = directory / f"{stem}.safetensors.index.json"
    try:
        where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{index}: missing or not a checkpoint index: {e}") from e
    file, opened = None, None
    for name, in_file in where.items():
        if in_file != file:
            file, opened = in_file, _opened(directory / in_file)
        assert opened is not None
        yield name, opened.get_tensor(name)


def _opened(path: Path):  # noqa: ANN202 - safetensors does not export the type
    try:
        return safe_open(path, framework="pt").__enter__()
    except Exception as e:  # safetensors raises its own error for a torn file
        raise CheckpointError(f"{path}: {e}") from e
