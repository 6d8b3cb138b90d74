"""Supervised training, resumable: rows to batches to updates. What `rlcore sft` and `rlcore train-rm` share.

The same ranks, packing and checkpoints as reinforcement learning; prompts_per_step rows make one optimizer update.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.config import Config, compute_dtype
from rlcore.runs import checkpoint
from rlcore.runs.checkpoint import Checkpoints, export
from rlcore.runs.tracker import Tracker

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcore.data.examples import Examples
    from rlcore.data.preferences import Pairs
    from rlcore.records import Batch
    from rlcore.workers.group import Actor, PreferenceModel

_OF_AN_ENGINE = ("sync/", "correction/")  # metrics that compare with an engine's probabilities: here is no engine


def fit(
    cfg: Config, resolved: DictConfig, command: str, role: str,
    ranks: Callable[[Config, Cluster, Watch], Actor | PreferenceModel], rows: Examples | Pairs,
    lay_down: Callable[[Any], Batch], evaluate: Callable[[Any], dict[str, float]] | None = None,
) -> tuple[Path, set[str]]:  # fmt: skip
    """Train for `steps` updates, from the newest checkpoint on. Returns the exported model's directory,
    `run_dir/export`, and the config fields the workers read.

    command   of `rlcore`; names the phase
    role      what the cluster gives actor.ranks devices to; `ranks` makes its workers
    lay_down  what `rows.take` gives -> the batch of one update
    evaluate  what `ranks` made -> metrics of its weights: before the first update, as eval.every_steps says, at the end
    """
    run_dir = Path(str(cfg.run_dir))
    watch = Watch()
    tracker, step, status = None, 0, "failed"
    cluster = Cluster(cfg.ray, cfg.placement, cfg.deadline, {role: cfg.actor.ranks}, watch)
    try:
        model = ranks(cfg, cluster, watch)
        model.group.call("start", seconds=cfg.deadline.start_seconds)
        checkpoints = Checkpoints(run_dir, cfg.keep_checkpoints)
        if (found := checkpoints.latest()) is not None:
            model.load(found)
            state = checkpoint.state_of(found)
            step = state["step"]
            rows.restore(state["data"])
        # -1: of an attempt that left no checkpoint nothing stays, the evaluation at step 0 neither.
        tracker = Tracker(run_dir, cfg.tracker, resolved, cfg.steps, resume_at=step or -1)
        watch.phase = command
        if step == 0 and evaluate is not None and (before := evaluate(model)):
            tracker.log(0, before)
        while step < cfg.steps:
            began = time.monotonic()
            batch = lay_down(rows.take(cfg.prompts_per_step))
            numbers = {k: v for k, v in model.update(batch, step).items() if not k.startswith(_OF_AN_ENGINE)}
            step += 1
            numbers["perf/tokens_per_second"] = len(batch.tokens) / (time.monotonic() - began)
            last = step == cfg.steps
            if evaluate is not None and (last or (cfg.eval.every_steps and step % cfg.eval.every_steps == 0)):
                numbers |= evaluate(model)
            tracker.log(step, numbers)
            if last or (cfg.save_every_steps and step % cfg.save_every_steps == 0):
                checkpoints.save(step, model.save, {"data": rows.state()})
        out, read = (
            export(run_dir, run_dir / "export", compute_dtype(cfg.model, cluster.device)),
            model.group.fields_read(),
        )
        status = "done"
        return out, read
    finally:
        if tracker is not None:
            tracker.close(status)
        cluster.close()
