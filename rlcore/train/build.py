"""Config -> Run: what a stage has made ready is started, waited for, and put together with what every run has."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.cluster.turns import Phases, Turns
from rlcore.config import Config, compute_dtype
from rlcore.runs.checkpoint import Checkpoints, export
from rlcore.runs.tracker import Tracker
from rlcore.train.loop import train
from rlcore.train.prepare import Say
from rlcore.train.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcore.train.stages import Ready, Stage
    from rlcore.workers.group import WorkerGroup


class Finished(NamedTuple):
    """What came of a run: the exported model, and the config fields that its workers have read."""

    exported: Path
    read_by_workers: set[str]


def whole_run(cfg: Config, resolved: DictConfig, stage: Stage, say: Say) -> Finished:
    """Build, train, export; everything started is ended. `say(text)` tells the user what is being started.

    Raises ConfigError, DataError and what can go wrong in a run.
    """
    with ExitStack() as ending:
        run, groups = build(cfg, resolved, stage, say, ending)
        run.tracker.event("started", steps=cfg.steps)
        train(run)
        run_dir = run.tracker.run_dir
        exported = export(run_dir, run_dir / "export", compute_dtype(cfg.model, run.device))
        read = set().union(*(group.fields_read() for group in groups))
        run.tracker.close("done")
        return Finished(exported, read)


def build(
    cfg: Config, resolved: DictConfig, stage: Stage, say: Say, ending: ExitStack
) -> tuple[Run, list[WorkerGroup]]:  # fmt: skip
    """Start everything: rows first, then Ray, then the models. `ending` ends it, however far it came."""
    run_dir = Path(str(cfg.run_dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    ready = stage.ready(cfg, say)
    ending.callback(ready.close)
    cfg, watch = ready.cfg, Watch()
    say("Ray: starting" if cfg.ray.address is None else f"Ray: joining {cfg.ray.address}")
    cluster = Cluster(cfg.ray, cfg.placement, cfg.deadline, ready.roles(), watch, cfg.debug)
    ending.callback(cluster.close)
    groups, started = _started(ready, cluster, watch, say)
    tracker = Tracker(run_dir, cfg.tracker, resolved, cfg.steps, decode=ready.tokenizer.decode)
    ending.callback(tracker.close, "failed")
    watch.on_fatal = lambda error: tracker.event("failed", error="WorkerError", message=str(error))
    tracker.event("data", **ready.facts())
    tracker.event("workers", **started)
    sleep = cluster.device == "gpu" and cluster.colocated and any(group.role == "rollout" for group in groups)
    run = Run(
        cfg=cfg,
        phase=Phases(watch, Turns(groups, sleep)),
        tracker=tracker,
        checkpoints=Checkpoints(run_dir, cfg.keep_checkpoints, cfg.keep_best),
        parts=ready.parts(tracker),
        device=cluster.device,
    )
    return run, groups


def _started(
    ready: Ready, cluster: Cluster, watch: Watch, say: Say
) -> tuple[list[WorkerGroup], dict[str, Any]]:  # fmt: skip
    """Every role at once, then one wait for all of them: the groups, and what each worker said of its start."""
    cfg = ready.cfg
    groups = ready.start(cluster, watch)
    dtype = compute_dtype(cfg.model, cluster.device)
    say(f"workers: starting {' + '.join(f'{len(g.workers)} {g.role}' for g in groups)} on {cluster.device}, {dtype}")
    workers = [worker for group in groups for worker in group.workers]
    refs = [ref for group in groups for ref in group.begin("start")]
    answers = watch.gather(workers, refs, "start", cfg.deadline.start_seconds)
    of_role: dict[str, list[dict[str, Any]]] = {}
    for worker, answer in zip(workers, answers, strict=True):
        of_role.setdefault(worker.role, []).append(answer)
    ready.connect(of_role)
    return groups, {str(worker): answer for worker, answer in zip(workers, answers, strict=True)}
