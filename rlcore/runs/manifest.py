"""A checkpoint's manifest.json: every file's size and SHA-256, and its own digest. Whether it is true of what is there.

Nothing of a checkpoint is opened by a name that leads out of it: no links, no `..`, no absolute paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlcore.errors import CheckpointError

NAME = "manifest.json"
_FORMAT = 1
_MOST_THREADS = 8  # hashing leaves the interpreter to others; more than these wait for the disk


class _File(NamedTuple):
    bytes: int
    sha256: str


def write_manifest(directory: Path) -> None:
    """Of all files that are there now."""
    sizes = _files_in(directory)
    hashes = _hashes(directory, list(sizes))
    files = {name: {"bytes": size, "sha256": hashes[name]} for name, size in sizes.items()}
    manifest = {"format": _FORMAT, "files": files}
    (directory / NAME).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1), encoding="utf-8")


def verify(directory: Path, contents: bool = True) -> None:
    """Raise CheckpointError naming the file of `directory` that is missing, cut, changed, a link or not listed, or that
    names a file outside. Without `contents` only names, sizes and the manifest's own digest are looked at."""
    if directory.is_symlink() or not directory.is_dir():
        raise CheckpointError(f"{directory}: a checkpoint is a directory, this is a link or a file")
    there = _files_in(directory)
    files = _listed(directory)
    for name, file in files.items():
        if name not in there:
            raise CheckpointError(f"{directory / name}: missing, {NAME} lists it")
        if there[name] != file.bytes:
            raise CheckpointError(f"{directory / name}: {there[name]} bytes, {NAME} says {file.bytes}")
    if more := sorted(there.keys() - files.keys() - {NAME}):
        raise CheckpointError(f"{directory / more[0]}: {NAME} does not list it; it is of nothing that was saved here")
    if not contents:
        return
    for name, found in _hashes(directory, list(files)).items():
        if found != files[name].sha256:
            raise CheckpointError(f"{directory / name}: its content is not what was saved: {NAME} has another SHA-256")
    for name in files:
        if name.endswith(".index.json"):
            _require_own_shards(directory, name, files)


def _listed(directory: Path) -> dict[str, _File]:
    """What the manifest says. Every name in it stays inside."""
    path = directory / NAME
    try:
        manifest = json.loads(path.read_bytes())
        claimed = manifest.pop("sha256")
        files = {name: _File(**file) for name, file in manifest["files"].items()}
        known = manifest["format"] == _FORMAT and manifest.keys() == {"format", "files"}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; what lies here is no whole checkpoint") from None
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path}: torn, or no manifest of format {_FORMAT}") from e
    if not known:
        raise CheckpointError(f"{path}: a manifest of another format than {_FORMAT}, or with more in it")
    if claimed != _digest(manifest):
        raise CheckpointError(f"{path}: it has been changed: its own SHA-256 is another")
    for name in files:
        if not _stays_inside(name):
            raise CheckpointError(f"{path}: it names {name!r}, which is outside of the checkpoint")
    return files


def _files_in(directory: Path) -> dict[str, int]:
    """Every file below: its name relative to `directory`, its size. CheckpointError for what is no plain file."""
    found: dict[str, int] = {}
    for at, directories, names in os.walk(directory):
        for path in (Path(at, name) for name in [*directories, *names]):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[path.relative_to(directory).as_posix()] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise CheckpointError(f"{path}: a link or a special file; a checkpoint has files of its own only")
    return dict(sorted(found.items()))


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and name not in ("", ".", NAME)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hashes(directory: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each, read once from its beginning to its end, several files at a time."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), max(1, len(names)))
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(names, pool.map(lambda name: _hash(directory / name), names), strict=True))


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e


def _require_own_shards(directory: Path, name: str, files: Mapping[str, _File]) -> None:
    """An index of shards names files beside it, of which the manifest knows."""
    try:
        named = set(json.loads((directory / name).read_bytes())["weight_map"].values())
        wrong = sorted(shard for shard in named if (PurePosixPath(name).parent / shard).as_posix() not in files)
        wrong += sorted(shard for shard in named if PurePosixPath(shard).name != shard)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{directory / name}: not an index of shards") from e
    if wrong:
        raise CheckpointError(f"{directory / name}: it names {wrong[0]!r}, which is no file beside it")
