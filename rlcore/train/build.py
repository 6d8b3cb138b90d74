"""Config -> Run: what a stage has made ready is started, waited for, and put together with what every run has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.placement import Cluster
from rlcore.cluster.turns import Phases, Turns
from rlcore.config import Config, compute_dtype
from rlcore.data.endings import text_of
from rlcore.errors import ConfigError
from rlcore.models.embedded import EMBEDDED
from rlcore.plugins import plugin
from rlcore.runs.checkpoint import ASIDE, Best, Checkpoints, state_of, step_of
from rlcore.runs.export import export
from rlcore.runs.tracker import Tracker
from rlcore.surroundings import offline_without_hub
from rlcore.train.loop import train
from rlcore.train.prepare import Say
from rlcore.train.run import Parts, Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rlcore.compose.stages import Stage
    from rlcore.workers.group import WorkerGroup


class Ready(Protocol):
    """A stage whose rows are read and whose model is a directory; its class is made by (cfg, say).

    cfg      with that directory; `tokenizer` is the model's
    roles    devices of each role; `facts` of the rows, for the record; `require_same_rows` as a checkpoint's state has
    start    the groups of its roles, whose processes exist and have not loaded
    connect  once they have loaded
    parts    what the loop asks for
    """

    cfg: Config
    tokenizer: Any

    def roles(self) -> dict[str, int]: ...
    def facts(self) -> dict[str, Any]: ...
    def require_same_rows(self, state: Mapping[str, Any]) -> None: ...
    def start(self, cluster: Cluster, watch: Watch) -> list[WorkerGroup]: ...
    def connect(self) -> None: ...
    def parts(self, tracker: Tracker) -> Parts: ...
    def close(self) -> None: ...


class Finished(NamedTuple):
    """What came of a run: the exported model, what `whole_run` was told of unread keys, the best checkpoint."""

    exported: Path
    unread: dict[str, str]
    best: Best | None


def whole_run(
    cfg: Config,
    resolved: DictConfig,
    stage: Stage,
    say: Say,
    unread: Callable[[set[str]], dict[str, str]] = lambda read_by_workers: {},
    step: int | None = None,
) -> Finished:
    """Build, train, export; everything started is ended. `say(text)` tells the user what is being started.

    `unread` says which keys had no effect, given the config fields that the workers have read: an event at the end.
    `step`: which checkpoint to go on from; None: the newest, if there is one.
    """
    with ExitStack() as ending:
        run, groups = build(cfg, resolved, stage, say, ending, step)
        run.tracker.event("started", steps=cfg.steps)
        train(run)
        run_dir = run.tracker.run_dir
        exported = export(run_dir, run_dir / "export", compute_dtype(cfg.model, run.device))
        if keys := unread(set().union(*(group.fields_read() for group in groups))):
            run.tracker.event("unread", keys=keys)
        run.tracker.close("done")
        return Finished(exported, keys, run.checkpoints.best())


def build(
    cfg: Config, resolved: DictConfig, stage: Stage, say: Say, ending: ExitStack, step: int | None = None
) -> tuple[Run, list[WorkerGroup]]:
    """Start everything: what to go on from, rows, Ray, the models. `ending` ends it, however far it came."""
    run_dir = Path(str(cfg.run_dir))
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(run_dir, cfg.keep_checkpoints, cfg.keep_best)
    start = _start(checkpoints, step, cfg.steps, say)
    if any(path and path not in EMBEDDED and not Path(path).exists() for path in (cfg.model.path, cfg.model.tokenizer)):
        offline_without_hub()
    ready: Ready = plugin(stage.made_by, "stage")(cfg, say)
    ending.callback(ready.close)
    if start is not None:
        ready.require_same_rows(state_of(start))
    cfg, watch = ready.cfg, Watch()
    say("Ray: starting" if cfg.ray.address is None else f"Ray: joining {cfg.ray.address}")
    logs = run_dir / "ray_logs"
    cluster = ending.enter_context(Cluster(cfg.ray, cfg.placement, cfg.deadline, ready.roles(), watch, cfg.debug, logs))
    groups, started = _started(ready, cluster, watch, say)
    tracker = Tracker(run_dir, cfg.tracker, resolved, cfg.steps, decode=functools.partial(text_of, ready.tokenizer))
    ending.callback(tracker.close, "failed")
    watch.on_fatal.append(lambda error: tracker.event("failed", error="WorkerError", message=str(error)))
    tracker.event("data", **ready.facts())
    tracker.event("workers", **started)
    sleep = cluster.device == "gpu" and cluster.colocated and any(group.role == "rollout" for group in groups)
    run = Run(
        cfg=cfg,
        phase=Phases(watch, Turns(groups, sleep)),
        tracker=tracker,
        checkpoints=checkpoints,
        parts=ready.parts(tracker),
        device=cluster.device,
        start=start,
    )
    return run, groups


def _start(checkpoints: Checkpoints, step: int | None, steps: int, say: Say) -> Path | None:
    """The checkpoint to go on from, told and verified. ConfigError where the run would be over before it."""
    for path in checkpoints.left_by_a_kill():
        say(f"checkpoints: passing over {path}: a process was killed while it saved or deleted it")
    found = checkpoints.latest(step)
    if found is not None:
        if step_of(found) > steps:
            raise ConfigError(
                f"steps is {steps}, and {found} is of step {step_of(found)}: steps counts from the run's beginning; "
                "raise it, or take an older checkpoint with step=N"
            )
        say(f"checkpoints: going on from step {step_of(found)}, {found}")
        later = [path.name for path in checkpoints.all() if step_of(path) > step_of(found)]
        if later:
            say(f"checkpoints: {', '.join(later)} will be set aside in {checkpoints.directory / ASIDE}")
    return found


def _started(ready: Ready, cluster: Cluster, watch: Watch, say: Say) -> tuple[list[WorkerGroup], dict[str, Any]]:
    """Every role at once, then one wait for all of them: the groups, and what each worker said of its start."""
    cfg = ready.cfg
    groups = ready.start(cluster, watch)
    dtype = compute_dtype(cfg.model, cluster.device)
    say(f"workers: starting {' + '.join(f'{len(g.workers)} {g.role}' for g in groups)} on {cluster.device}, {dtype}")
    workers = [worker for group in groups for worker in group.workers]
    refs = [ref for group in groups for ref in group.begin("start")]
    answers = watch.gather(workers, refs, "start", cfg.deadline.start_seconds)
    ready.connect()
    return groups, {str(worker): answer for worker, answer in zip(workers, answers, strict=True)}
