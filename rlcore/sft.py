"""Supervised fine-tuning: the training half of the loop on rows of prompts and responses, loss on the response only.

The same ranks, packing, loss and checkpoints as reinforcement learning; the policy loss is `sft`, and prompts_per_step
rows make one optimizer update.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore import checkpoint
from rlcore.build import as_directory, cache_dir, start_actor, with_model
from rlcore.checkpoint import Checkpoints, export
from rlcore.config import Config, compute_dtype
from rlcore.data import Examples
from rlcore.placement import Cluster
from rlcore.records import Batch, Group
from rlcore.run_dir import locked
from rlcore.tracker import Tracker
from rlcore.waits import Watch

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ANOTHER_MAKES_IT_SECONDS = 3600.0


def sft(cfg: Config, resolved: DictConfig, say: Callable[[str], None]) -> tuple[Path, set[str]]:
    """Train for `steps` updates; resumes as training does. Returns the exported model's directory, `run_dir/export`,
    and the config fields the workers read."""
    from rlcore.workers.model import load_tokenizer

    cfg = as_directory(cfg)
    assert cfg.run_dir is not None
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    examples = Examples(cfg.data.train, cfg.data, load_tokenizer(cfg.model), cfg.seed, cfg.rollout.max_response_tokens)
    say(f"data: {len(examples)} examples; {examples.dropped} left out as too long")
    watch = Watch()
    tracker, step = None, 0
    cluster = Cluster(cfg.ray, cfg.placement, cfg.deadline, {"actor": cfg.actor.ranks}, watch)
    try:
        actor = start_actor(cfg, cluster, watch)
        actor.group.call("start", seconds=cfg.deadline.start_seconds)
        checkpoints = Checkpoints(run_dir, cfg.keep_checkpoints)
        if (found := checkpoints.latest()) is not None:
            actor.load(found)
            state = checkpoint.state_of(found)
            step = state["step"]
            examples.restore(state["data"])
        tracker = Tracker(run_dir, cfg.tracker, resolved, cfg.steps, resume_at=step)
        watch.phase = "sft"
        while step < cfg.steps:
            began = time.monotonic()
            batch = Batch.from_groups([Group([r]) for r in examples.take(cfg.prompts_per_step)])
            numbers = actor.update(batch, step)
            step += 1
            numbers["perf/tokens_per_second"] = len(batch.tokens) / (time.monotonic() - began)
            tracker.log(step, {k: v for k, v in numbers.items() if k.startswith(("actor/", "perf/"))})
            if step == cfg.steps or (cfg.save_every_steps and step % cfg.save_every_steps == 0):
                checkpoints.save(step, actor.save, {"data": examples.state()})
        out = export(run_dir, run_dir / "export", compute_dtype(cfg.model, cluster.device))
        return out, actor.group.fields_read()
    finally:
        if tracker is not None:
            tracker.close("done" if step == cfg.steps else "failed")
        cluster.close()


def embedded_model(name: str, say: Callable[[str], None]) -> Path:
    """The embedded model `name`, warmed up: made once on this machine by `rlcore sft` with its recipe, then cached.

    The cache is keyed by everything that makes it: generators, tokenizer, recipe and library versions.
    """
    import torch
    import transformers

    digest = hashlib.sha256(b"\0".join(p.read_bytes() for p in made_of(name)))
    digest.update(f"{torch.__version__} {transformers.__version__}".encode())
    ready = cache_dir() / f"{name}-{digest.hexdigest()[:16]}"
    if (ready / "config.json").is_file():
        return ready
    with locked(cache_dir() / f".lock-{name}", wait_seconds=_ANOTHER_MAKES_IT_SECONDS):
        return ready if (ready / "config.json").is_file() else _make(name, ready, say)


def made_of(name: str) -> list[Path]:
    """The files that decide what the embedded model `name` is: a generator builds on another one's file, so all do."""
    from rlcore import demo, problems, puzzles
    from rlcore.compose import RECIPES

    code = [Path(str(module.__file__)) for module in (demo, problems, puzzles)]
    return [*code, RECIPES / f"{demo.EMBEDDED[name].warm_up}.yaml"]


def _make(name: str, ready: Path, say: Callable[[str], None]) -> Path:
    from rlcore import demo
    from rlcore.compose import as_config, compose

    work = cache_dir() / f".{ready.name}.partial"
    shutil.rmtree(work, ignore_errors=True)
    base = demo.make_base(work / "base", name)
    composed, _ = compose(demo.EMBEDDED[name].warm_up, [f"model.path={base}", f"run_dir={work / 'run'}"])
    steps = composed.config.steps
    say(f"model {name}: warming up a fresh one by supervised training ({steps} steps, once; cached after)")
    out, _ = sft(with_model(as_config(composed.config), str(base)), composed.config, say)
    out.rename(ready)
    shutil.rmtree(work, ignore_errors=True)
    return ready
