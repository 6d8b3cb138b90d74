"""The embedded models, warmed up: `rlcore sft` makes one the first time it is asked for, then it is cached."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from rlcore.compose.compose import RECIPES, as_config, compose
from rlcore.compose.stages import STAGES
from rlcore.data.generate import splits
from rlcore.files import locked, written_aside
from rlcore.models import embedded as demo
from rlcore.train.build import whole_run

_ANOTHER_MAKES_IT_SECONDS = 3600.0


def embedded_model(name: str, cache: Path, say: Callable[[str], None]) -> Path:
    """The embedded model `name`, warmed up: made once by `rlcore sft` with its recipe, then kept in `cache`.

    The cache is keyed by everything that makes it: generators, tokenizer, recipe and library versions.
    """
    import torch
    import transformers

    digest = hashlib.sha256(b"\0".join(p.read_bytes() for p in made_of(name)))
    digest.update(f"{torch.__version__} {transformers.__version__}".encode())
    ready = cache / f"{name}-{digest.hexdigest()[:16]}"
    if (ready / "config.json").is_file():
        return ready
    with locked(cache / f".lock-{name}", wait_seconds=_ANOTHER_MAKES_IT_SECONDS):
        return ready if (ready / "config.json").is_file() else _make(name, ready, say)


def made_of(name: str) -> list[Path]:
    """The files that decide what the embedded model `name` is: a generator builds on another one's file, so all do."""
    generate = Path(splits.__file__).parent
    generators = [generate / f"{each}.py" for each in ("arithmetic", "countdown", "knights_knaves", "splits")]
    return [Path(demo.__file__), *generators, RECIPES / f"{demo.EMBEDDED[name].warm_up}.yaml"]


def _make(name: str, ready: Path, say: Callable[[str], None]) -> Path:
    work = ready.parent / f".{ready.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    base = demo.make_base(work / "base", name)
    composed, _ = compose(demo.EMBEDDED[name].warm_up, [f"model.path={base}", f"run_dir={work / 'run'}"])
    steps = composed.config.steps
    say(f"model {name}: warming up a fresh one by supervised training ({steps} steps, once; cached after)")
    finished = whole_run(as_config(composed.config), composed.config, STAGES["sft"], say)
    with written_aside(ready) as aside:
        finished.exported.rename(aside)
    shutil.rmtree(work, ignore_errors=True)
    return ready
