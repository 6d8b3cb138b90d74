"""What a run tells: files in the run directory, a console line a step, and the trackers of `tracker.sinks`.

    config.yaml               the resolved run
    metrics.jsonl             one object a step: {"step": 3, "time": ..., "reward/mean": 0.45, ...}
    rollouts/step_000003.jsonl, rollouts/eval_NAME_step_000003.jsonl    one object a rollout
    events.jsonl              what happened: {"time": ..., "event": "saved", ...}

Lines are appended and flushed, so a run killed at any moment loses at most the line being written.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from rlcore.cluster import cleanup as janitor
from rlcore.config import TrackerConfig
from rlcore.errors import ConfigError
from rlcore.records import Group, Rollout

# What the console shows of a step: metric, its short name, its format.
_SHOWN = (
    ("reward/mean", "reward", ".3f"),
    ("reward/failed_fraction", "failed", ".1%"),
    ("response/tokens_mean", "tokens", ".0f"),
    ("actor/loss", "loss", ".4f"),
    ("train/loss", "loss", ".4f"),
    ("train/accuracy", "ranked right", ".1%"),
    ("actor/kl", "kl", ".2g"),
    ("sync/logp_diff_max", "sync", ".1g"),
    ("actor/skipped_updates", "skipped", ".0f"),
)
_ONLY_ABOVE_ZERO = {"actor/skipped_updates"}
_RECENT = 10  # steps the time left is estimated from
_FINISH_SECONDS = 60  # most that wandb may take to upload what is left


class Tracker:
    """The one writer of a run's metrics, rollouts and events; implements protocols.Tracker.

    config  the resolved run: written to config.yaml and to the sinks
    steps   of the whole run, for the progress bar
    decode  prompt tokens -> text, for the rollout files; None: they hold the tokens

    Call from one thread. What earlier, unfinished attempts at a step left behind is dropped when the step is written
    anew: the first step logged, or whose rollouts are written, is the first of this process. `resume_at=s` drops
    everything after step s at once. Raises ConfigError for a sink that does not exist, is not installed or does not
    start, and for a run directory that cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        cfg: TrackerConfig,
        config: Mapping[str, Any] | DictConfig,
        steps: int,
        resume_at: int | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        for sink in cfg.sinks:
            if sink not in SINKS:
                raise ConfigError(f"tracker.sinks: no sink {sink!r}; there are: {', '.join(SINKS)}")
            if importlib.util.find_spec(sink) is None:
                raise ConfigError(f"tracker.sinks: {sink} is not installed; pip install 'rlcore[trackers]'")
        self.run_dir = run_dir
        self.decode = decode
        self._cfg = cfg
        self._config = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        self._sinks: list[_Wandb | _TensorBoard] = []
        self._metrics: IO[str] | None = None
        self._closed = False
        try:
            (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
            _replace(run_dir / "config.yaml", OmegaConf.to_yaml(self._config))
            _drop_lines(run_dir / "events.jsonl", lambda line: True)
            self._events = (run_dir / "events.jsonl").open("a", encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"run_dir: cannot write to {run_dir}: {e}") from e
        self._console = _Console(steps)
        if resume_at is not None:
            self._begin(resume_at + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step's numbers, everywhere. What is not finite becomes null, and an event says so."""
        self._begin(step)
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        if len(finite) < len(numbers):
            self.event("non_finite", step=step, metrics={n: str(v) for n, v in numbers.items() if n not in finite})
        line = {"step": step, "time": time.time()} | {name: finite.get(name) for name in numbers}
        assert self._metrics is not None
        _append(self._metrics, line)
        for sink in self._sinks:
            sink.log(step, finite)
        self._console.step(step, finite)

    def rollouts(self, step: int, groups: Sequence[Group]) -> None:
        """The step's rollouts, one line each, in sample order; each says what it is of `use` for, see `_use`."""
        self._begin(step)
        self._write_rollouts(f"step_{step:06d}.jsonl", groups, _use)

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        """One held-out source's result at `step`: an event, a console line, its rollouts. `log` takes the metrics."""
        self._begin(step)
        file = f"eval_{re.sub(r'[^A-Za-z0-9.-]', '_', name)}_step_{step:06d}.jsonl"
        self._write_rollouts(file, groups, lambda group, rollout: {})
        self.event("evaluated", step=step, source=name, **metrics)
        self._console.say(f"step {step}  eval {name}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def event(self, name: str, **fields: Any) -> None:
        """Something that happened, with the time. What JSON cannot hold is written as text."""
        _append(self._events, {"time": time.time(), "event": name} | fields)

    def progress(self, done: int, total: int, phase: str = "rollout") -> None:
        """How far the step's current phase is; seen on a terminal only."""
        self._console.phase(f"{phase} {done}/{total}")

    def close(self, status: str) -> None:
        """End the run's record with `status` ("done", "failed", ...). A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._console.close()
        self.event("closed", status=status)
        self._events.close()
        if self._metrics is not None:
            self._metrics.close()
        for sink in self._sinks:
            sink.close(status)

    def _begin(self, step: int) -> None:
        """On the first call: drop what the files have of `step` and later, then open them and the sinks."""
        if self._metrics is not None:
            return
        path = self.run_dir / "metrics.jsonl"
        _drop_lines(path, lambda line: line["step"] < step)
        for old in (self.run_dir / "rollouts").glob("*step_*.jsonl"):
            if int(old.stem.rpartition("_")[2]) >= step:
                old.unlink()
        self._metrics = path.open("a", encoding="utf-8")
        self._console.begin(step)
        for name in self._cfg.sinks:
            self._sinks.append(SINKS[name](self.run_dir, self._cfg, self._config, step))

    def _write_rollouts(
        self, name: str, groups: Sequence[Group], more: Callable[[Group, Rollout], dict[str, str]]
    ) -> None:
        with (self.run_dir / "rollouts" / name).open("w", encoding="utf-8") as file:
            for group in groups:
                tokens = group.prompt.tokens
                text = self.decode(tokens) if self.decode is not None else tokens
                for i, rollout in enumerate(group.drawn):
                    file.write(_json(_of_rollout(rollout, i, text) | more(group, rollout)) + "\n")


def _use(group: Group, rollout: Rollout) -> dict[str, str]:
    """ "loss": its tokens are trained on; "baseline": only its reward counts (a greedy answer, a cut one that
    rollout.train_truncated leaves out); "none": it has no reward, or its group was left out of the batch."""
    if rollout.reward is None or not group.used:
        return {"use": "none"}
    return {"use": "loss" if rollout.trains and rollout is not group.greedy else "baseline"}


def _of_rollout(rollout: Rollout, sample: int, prompt: str | list[int]) -> dict[str, Any]:
    return {
        "prompt_id": rollout.prompt.id,
        "sample": sample,
        "prompt": prompt,
        "answer": rollout.prompt.answer,
        "response": rollout.text,
        "reward": rollout.reward,
        "parts": rollout.parts,
        "status": rollout.status,
        "why": rollout.why,
        "finish": rollout.finish,
        "tokens": rollout.response_tokens,
        "version": rollout.version,
    }


class _Console:
    """A line a step; under it, where standard output is a terminal, a bar with what is going on and the time left."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: list[float] = []  # of the last steps, and of the moment before the first
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if sys.stdout.isatty():
            now = TextColumn("{task.fields[left]}  {task.description}")
            self._bar = Progress(BarColumn(), MofNCompleteColumn(), now, transient=True)

    def begin(self, step: int) -> None:
        self._ends = [time.monotonic()]
        if self._bar is not None:
            self._task = self._bar.add_task("", total=self._steps, completed=max(0, step - 1), left="")
            self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        took = time.monotonic() - self._ends[-1]
        self._ends = [*self._ends, time.monotonic()][-_RECENT - 1 :]
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        left = f"{_clock(each * (self._steps - step))} left" if step < self._steps else "last step done"
        told = {key for key in metrics if metrics[key] > 0 or key not in _ONLY_ABOVE_ZERO}
        shown = [f"{name} {metrics[key]:{form}}" for key, name, form in _SHOWN if key in told]
        if metrics.get("group/used") != metrics.get("group/drawn"):
            shown.append(f"groups {metrics['group/used']:.0f}/{metrics['group/drawn']:.0f}")
        shown += [f"{key} {value:.4g}" for key, value in metrics.items() if re.fullmatch(r"eval/.*/accuracy", key)]
        self.say("  ".join([f"step {step}/{self._steps}", *shown, f"{took:.1f} s", left]))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, left=left, description="")

    def phase(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class _Wandb:
    """Weights & Biases. WANDB_MODE=offline and disabled work without an account; a resumed run goes on in its own."""

    def __init__(self, run_dir: Path, cfg: TrackerConfig, config: DictConfig, step: int) -> None:
        import wandb

        identity = run_dir / "wandb_id"
        marker = os.environ.pop(
            janitor.VARIABLE, None
        )  # wandb's own process outlives the workers, to send the last lines
        if step <= 1 or not identity.exists():
            _replace(identity, uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=cfg.project,
                name=cfg.name or run_dir.resolve().name,
                dir=str(run_dir),
                id=identity.read_text(),
                resume="allow",
                config=OmegaConf.to_container(config, throw_on_missing=False, enum_to_str=True),  # type: ignore[arg-type]
                settings=wandb.Settings(console="off", finish_timeout=_FINISH_SECONDS),
            )
        except wandb.Error as e:
            raise ConfigError(f"tracker.sinks: wandb does not start: {e}; WANDB_MODE=offline works without it") from e
        finally:
            if marker is not None:
                os.environ[janitor.VARIABLE] = marker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


class _TensorBoard:
    """Event files in RUN_DIR/tensorboard."""

    def __init__(self, run_dir: Path, cfg: TrackerConfig, config: DictConfig, step: int) -> None:
        # TensorBoard looks for TensorFlow to say that it is not there.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)
        self._writer.add_text("config", f"```yaml\n{OmegaConf.to_yaml(config)}```", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        self._writer.close()


SINKS = {"wandb": _Wandb, "tensorboard": _TensorBoard}


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _append(file: IO[str], line: Mapping[str, Any]) -> None:
    file.write(_json(line) + "\n")
    file.flush()


def _replace(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _drop_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the whole lines that `keep` wants; a line torn by a kill goes. One atomic step, and none if nothing goes."""
    if not path.exists():
        return
    old = path.read_text(encoding="utf-8", errors="replace")
    new = "".join(line + "\n" for line in old.splitlines() if (parsed := _parsed(line)) is not None and keep(parsed))
    if new != old:
        _replace(path, new)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
