"""Reward functions in killable worker processes: a sample that hangs or crashes costs only itself.

    pool = RewardPool(["gsm8k", "examples/custom_reward.py:score"], [1.0, 0.5], workers=2, timeout_seconds=10.0)
    pool.ready(deadline_seconds=60.0)
    pool.submit(key, prompt, response)
    for key, result in pool.poll(wait_seconds=0.1): ...
    pool.close()

A worker that dies or overruns is killed with everything it started, and replaced; the samples it had not begun go to
another. One thread at a time may use a pool.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import time
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewards import BUILTIN
from rewards.process import Process, Progress, Task, plain
from rlcore.errors import ConfigError, RewardError
from rlcore.records import Prompt

_LOOK_SECONDS = 0.2  # how often the clock and the processes are looked at while nothing arrives
_AHEAD_SECONDS = 0.25  # work a worker is given in advance, so that it need not wait for the next poll
_AHEAD_SAMPLES = 64
_START_SECONDS = 120.0  # a replacement that has not loaded its functions by then has failed
_START_FAILURES = 5  # in a row, before the pool gives up


class Result(NamedTuple):
    """One scored sample.

    reward   weighted sum over the functions; None if one of them failed
    parts    each function's unweighted value under its name, and the parts of its Score
    status   {function name: "error" | "timeout" | "crashed" | "bad_value"}; empty if none failed
    seconds  from the worker's beginning of the sample to its end
    """

    reward: float | None
    parts: dict[str, float]
    status: dict[str, str]
    seconds: float


class RewardPool:
    """Scores samples with `fns` in `workers` processes, started here and kept warm.

    fns              a name of rewards.BUILTIN, a dotted path, or file.py:function
    weights          one a function; empty: all 1
    timeout_seconds  for one sample, all functions together, counted from its beginning in the worker
    quarantine       a JSON-lines file that gets every failed sample: traceback, prompt id, row, response

    `errors` counts the failures so far by "function: status: message". Raises ConfigError for values that cannot work,
    `ready` for functions that cannot be loaded; `poll` raises RewardError when workers cannot be kept alive.
    """

    def __init__(
        self,
        fns: Sequence[str],
        weights: Sequence[float],
        workers: int,
        timeout_seconds: float,
        quarantine: Path | None = None,
    ) -> None:
        _check(fns, weights, workers, timeout_seconds)
        self.names = names(fns)
        self.errors: Counter[str] = Counter()
        self._fns = list(fns)
        self._weights = list(weights) or [1.0] * len(fns)
        self._timeout = timeout_seconds
        self._quarantine = quarantine
        self._cwd = os.getcwd()
        self._selector = selectors.DefaultSelector()
        self._queue: deque[Task] = deque()
        self._done: list[tuple[Any, Result]] = []
        self._number = 0
        self._start_failures = 0
        self._mean_seconds = 0.01  # of a sample, moving; a first guess
        self._processes = [self._start() for _ in range(workers)]

    @property
    def pending(self) -> int:
        """Samples submitted whose result `poll` has not returned."""
        return len(self._queue) + sum(len(p.inflight) for p in self._processes) + len(self._done)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers now; each leads a process group of the same number."""
        return [p.pid for p in self._processes]

    def ready(self, deadline_seconds: float) -> None:
        """Wait until every worker has loaded the functions. ConfigError says why one cannot."""
        until = time.monotonic() + deadline_seconds
        while not all(p.ready for p in self._processes):
            try:
                self._advance(min(_LOOK_SECONDS, max(0.0, until - time.monotonic())))
            except RewardError as e:
                raise ConfigError(f"reward.fns: loading ends the process: {e}") from e
            if time.monotonic() > until and not all(p.ready for p in self._processes):
                raise ConfigError(f"reward.fns: {', '.join(self._fns)} not loaded within {deadline_seconds:g} s")

    def submit(self, key: Hashable, prompt: Prompt, response: str) -> None:
        """Queue one sample; `key` comes back with its result."""
        self._number += 1
        self._queue.append(Task(self._number, key, prompt, response))
        self._feed()

    def poll(self, wait_seconds: float) -> list[tuple[Any, Result]]:
        """Results as soon as there are any, first finished first; [] after `wait_seconds` or if none is pending."""
        until = time.monotonic() + wait_seconds
        self._advance(0.0)
        while not self._done and self.pending and (left := until - time.monotonic()) > 0:
            self._advance(min(left, _LOOK_SECONDS))
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End every worker and all they started. Samples still pending are dropped."""
        for process in self._processes:
            process.kill()
            process.close()
        self._processes.clear()
        self._queue.clear()
        self._selector.close()

    def _start(self) -> Process:
        process = Process(self._fns, self._cwd)
        self._selector.register(process.answers, selectors.EVENT_READ, process)
        if process.outgoing:
            self._selector.register(process.requests, selectors.EVENT_WRITE, process)
        return process

    def _advance(self, wait_seconds: float) -> None:
        """One turn: move bytes, take answers, end what overran, replace what died, hand out work."""
        for key, events in self._selector.select(wait_seconds):
            if events & selectors.EVENT_WRITE:
                self._flush(key.data)
        for process in list(self._processes):
            self._take(process)
            if process.failed is not None:
                raise ConfigError(process.failed)
            if process.dead():
                self._replace(process, "crashed")
            elif self._overran(process):
                self._replace(process, "timeout")
        self._feed()

    def _flush(self, process: Process) -> None:
        """Write, and watch the request pipe only while something is left to write."""
        process.flush()
        watched = process.requests in self._selector.get_map()
        if process.outgoing and not watched:
            self._selector.register(process.requests, selectors.EVENT_WRITE, process)
        elif watched and not process.outgoing:
            self._selector.unregister(process.requests)

    def _feed(self) -> None:
        """Give queued samples to the workers with least to do, each about `_AHEAD_SECONDS` of work ahead."""
        ahead = max(1, min(_AHEAD_SAMPLES, int(_AHEAD_SECONDS / self._mean_seconds)))
        ready = [p for p in self._processes if p.ready]
        while self._queue and ready:
            process = min(ready, key=lambda p: len(p.inflight))
            if len(process.inflight) >= ahead:
                return
            process.give(self._queue.popleft())
            self._flush(process)

    def _take(self, process: Process) -> None:
        for number, message in process.read():
            if number == 0:
                process.failed = message.get("failed")
                process.ready = process.failed is None
                continue
            task = process.inflight.popleft()
            assert task.number == number, f"answer {number} to sample {task.number}"
            process.finished += 1
            self._start_failures = 0
            self._mean_seconds += 0.1 * (message["seconds"] - self._mean_seconds)
            outcomes = message["fns"]
            if message["seconds"] > self._timeout:  # the driver was busy elsewhere; the verdict must not depend on that
                slowest = max(range(len(outcomes)), key=lambda i: outcomes[i]["seconds"])
                outcomes[slowest] = _failed("timeout", message["seconds"])
            self._finish(task, outcomes, message["seconds"])

    def _overran(self, process: Process) -> bool:
        if not process.ready:
            return time.monotonic() - process.started > _START_SECONDS
        running = process.progress()
        return running.number > 0 and time.monotonic() - running.started > self._timeout

    def _replace(self, process: Process, status: str) -> None:
        """Kill the worker, charge the sample it was at, take back the others, start a new one in its place."""
        process.kill()
        self._take(process)  # what it had finished in the meantime counts
        running = process.progress()
        if process.inflight and process.inflight[0].number == running.number:
            self._charge(process.inflight.popleft(), running, status)
            self._start_failures = 0
        elif process.finished == 0:
            self._start_failures += 1
        self._queue.extendleft(reversed(process.inflight))
        for fd in (process.answers, process.requests):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        process.close()
        if self._start_failures >= _START_FAILURES:
            self._processes.remove(process)
            raise RewardError(
                f"reward workers died {self._start_failures} times in a row before they scored a sample "
                f"(last exit code {process.popen.returncode}); functions {', '.join(self._fns)}"
            )
        self._processes[self._processes.index(process)] = self._start()

    def _charge(self, task: Task, running: Progress, status: str) -> None:
        """The sample that hung or crashed: functions before the one at fault ran, those after it did not."""
        seconds = time.monotonic() - running.started
        outcomes: list[dict[str, Any]] = [{} for _ in self._fns]
        outcomes[min(running.fn, len(outcomes) - 1)] = _failed(status, seconds)
        self._finish(task, outcomes, seconds)

    def _finish(self, task: Task, outcomes: Sequence[dict[str, Any]], seconds: float) -> None:
        """`outcomes`: one a function, in order; {} for one that did not get to run."""
        parts: dict[str, float] = {n: o["reward"] for n, o in zip(self.names, outcomes, strict=True) if "reward" in o}
        status: dict[str, str] = {}
        for name, outcome in zip(self.names, outcomes, strict=True):
            for part, value in outcome.get("parts", {}).items():
                parts[f"{name}/{part}" if part in parts or part in self.names else part] = value
            if "status" in outcome:
                status[name] = outcome["status"]
                self._report(task, name, outcome)
        reward = None
        if not status:
            reward = math.fsum(w * o["reward"] for w, o in zip(self._weights, outcomes, strict=True))
        self._done.append((task.key, Result(reward, parts, status, seconds)))

    def _report(self, task: Task, name: str, outcome: dict[str, Any]) -> None:
        self.errors[f"{name}: {outcome['status']}: {outcome['message']}"] += 1
        if self._quarantine is None:
            return
        line = {
            "function": name,
            **outcome,
            "prompt": task.prompt.id,
            "answer": task.prompt.answer,
            "row": task.prompt.row,
            "response": task.response,
        }
        self._quarantine.parent.mkdir(parents=True, exist_ok=True)
        with self._quarantine.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=plain) + "\n")


def _failed(status: str, seconds: float) -> dict[str, Any]:
    message = "took too long" if status == "timeout" else "ended its process"
    return {"status": status, "message": message, "traceback": "", "seconds": seconds}


def names(fns: Sequence[str]) -> list[str]:
    """What each function is called in parts, status and metrics: a built-in's name, else the name of the function.

    Functions of one name in two files get the file's or module's name too: `a.score`, `b.score`.
    """
    short = [f if f in BUILTIN else f.replace(":", ".").rpartition(".")[2] for f in fns]
    twice = {n for n, count in Counter(short).items() if count > 1}
    return [f"{_home(f)}.{n}" if n in twice else n for f, n in zip(fns, short, strict=True)]


def _home(spec: str) -> str:
    file, colon, _ = spec.rpartition(":")
    return Path(file).stem if colon else spec.rpartition(".")[0]


def _check(fns: Sequence[str], weights: Sequence[float], workers: int, timeout_seconds: float) -> None:
    if not fns:
        raise ConfigError("reward.fns: empty; name at least one reward function")
    for name, count in Counter(names(fns)).items():
        if count > 1:
            raise ConfigError(f"reward.fns: {name} is there {count} times")
    if weights and len(weights) != len(fns):
        raise ConfigError(f"reward.weights: {len(weights)} weights for {len(fns)} functions")
    if not all(math.isfinite(w) for w in weights):
        raise ConfigError(f"reward.weights: {list(weights)} must be finite")
    if workers < 1:
        raise ConfigError(f"reward.workers: {workers}, must be at least 1")
    if not timeout_seconds > 0:
        raise ConfigError(f"reward.timeout_seconds: {timeout_seconds:g}, must be above 0")
