"""What a run writes: metrics, rollouts and events, as JSON lines in the run directory. See docs/run_directory.md.

Lines are appended and flushed, so a run killed at any moment loses at most the line being written.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from rlcore.config import TrackerConfig
from rlcore.errors import ConfigError
from rlcore.files import write_text
from rlcore.records import Group, Rollout
from rlcore.runs.console import Console
from rlcore.runs.sinks import SINKS, TensorBoard, Wandb
from rlcore.secret_values import clean


class Tracker:
    """The one writer of a run's metrics, rollouts and events; call it from one thread.

    The first step logged is the first of this process: what earlier attempts left of it and of later steps is dropped.
    `decode` makes text of a prompt's tokens; else files hold tokens.
    Raises ConfigError for a sink that does not exist, is not installed or does not start, and for a bad run directory.
    """

    def __init__(
        self,
        run_dir: Path,
        cfg: TrackerConfig,
        config: Mapping[str, Any] | DictConfig,
        steps: int,
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
        self._sinks: list[Wandb | TensorBoard] = []
        self._metrics: IO[str] | None = None
        self._closed = False
        try:
            (run_dir / "rollouts").mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "config.yaml", OmegaConf.to_yaml(self._config))
            _drop_lines(run_dir / "events.jsonl", lambda line: True)
            if (run_dir / "metrics.jsonl").exists():  # it is opened at the first step only
                (run_dir / "metrics.jsonl").open("a", encoding="utf-8").close()
            self._events = (run_dir / "events.jsonl").open("a", encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"run_dir: cannot write to {run_dir}: {e}") from e
        self._console = Console(steps)

    def begin_after(self, step: int) -> None:
        """Drop what earlier attempts left of the steps after `step`; -1: of all steps, and of an evaluation before
        them."""
        self._begin(step + 1)

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
        if groups:
            self._write_evaluation(step, name, groups)
        self.event("evaluated", step=step, source=name, **metrics)
        self._console.say(f"step {step}  eval {name}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def _write_evaluation(self, step: int, name: str, groups: Sequence[Group]) -> None:
        file = f"eval_{re.sub(r'[^A-Za-z0-9.-]', '_', name)}_step_{step:06d}.jsonl"
        self._write_rollouts(file, groups, lambda group, rollout: {})

    def event(self, name: str, **fields: Any) -> None:
        """Something that happened, with the time. What JSON cannot hold is written as text, without secrets."""
        _append(self._events, {"time": time.time(), "event": name} | fields)

    def warn(self, name: str, message: str, **fields: Any) -> None:
        """An event that is shown too."""
        self.event(name, message=message, **fields)
        self._console.say(f"{name}: {message}")

    def progress(self, done: int, total: int) -> None:
        """How far the step's current phase is; seen on a terminal only."""
        self._console.phase(f"rollout {done}/{total}")

    def close(self, status: str) -> None:
        """End the run's record with `status` ("done", "failed", ...). A second call does nothing. Where the run has
        failed, a disk that is full as well, or a screen that is gone, hides nothing of why."""
        if self._closed:
            return
        self._closed = True
        parts = [self._console.close, lambda: self.event("closed", status=status), self._events.close]
        parts += [self._metrics.close] if self._metrics is not None else []
        parts += [functools.partial(sink.close, status) for sink in self._sinks]
        for close in parts:
            with suppress(OSError) if status == "failed" else nullcontext():
                close()

    def _begin(self, step: int) -> None:
        """On the first call: drop what the files have of `step` and later, then open them and the sinks."""
        if self._metrics is not None:
            return
        path = self.run_dir / "metrics.jsonl"
        _drop_lines(path, lambda line: isinstance(line.get("step"), int) and line["step"] < step)
        for old in (self.run_dir / "rollouts").glob("*step_*.jsonl"):
            of = re.search(r"step_([0-9]+)\.jsonl$", old.name)
            if of and int(of[1]) >= step:
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


def _json(value: Any) -> str:
    return json.dumps(clean(value))


def _append(file: IO[str], line: Mapping[str, Any]) -> None:
    file.write(_json(line) + "\n")
    file.flush()


def _drop_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the whole lines that `keep` wants; a line torn by a kill goes. One atomic step, and none if nothing goes."""
    if not path.exists():
        return
    old = path.read_text(encoding="utf-8", errors="replace")
    new = "".join(line + "\n" for line in old.splitlines() if (parsed := _parsed(line)) is not None and keep(parsed))
    if new != old:
        write_text(path, new)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
