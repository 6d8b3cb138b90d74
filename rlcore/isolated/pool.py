"""Somebody else's functions in killable processes: a submission that hangs or crashes costs only itself.

pool = Pool(Hello("a.module.loader", {...}, "reward", 10.0, 4096), ["gsm8k"], processes=2)
pool.ready(deadline_seconds=60.0); pool.submit(key, prompt, Response("so it is 72"))
for key, outcomes in pool.poll(wait_seconds=0.1): outcomes["gsm8k"].reward   # in the end pool.close()
"""

from __future__ import annotations

import math
import os
import selectors
import time
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from rlcore.errors import ConfigError, RewardError
from rlcore.isolated.frames import APART, FRESH, Hello
from rlcore.isolated.memory import memory_bytes, own_bytes
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.process import Frame, Process, Task
from rlcore.isolated.rule import Submission
from rlcore.processes import tree
from rlcore.records import Prompt, Response
from rlcore.waiting import Waiting

_LOOK_SECONDS = 0.2  # how often the clock and the processes are looked at while nothing arrives
_AHEAD_SECONDS = 0.25  # work a process is given in advance, so that it need not wait for the next poll
_AHEAD = 64  # submissions; also the most of a batch, and the most that one process has side by side
_MEMORY_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 1.0  # processes end async calls themselves; later than this they hang
_STUCK_SECONDS = 5.0  # without a call begun, a process with work to do is stuck
_START_SECONDS = 120.0  # a replacement that has not loaded its functions by then has failed
_START_FAILURES = 5  # in a row, before the pool gives up


class Pool:
    """Puts submissions to rules in processes, started here and kept warm; what a failure costs: docs/isolation.md.

    Raises ConfigError for values that cannot work, `ready` for rules that cannot be loaded; `poll` raises RewardError
    when processes cannot be kept alive. One thread at a time may use a pool. Timeouts need somebody who polls.
    """

    def __init__(self, hello: Hello, names: Sequence[str], processes: int, on_request: Sequence[str] = ()) -> None:
        _check(hello, processes)
        self.names = list(names)  # of the rules, in the order in which `hello.loader` returns them
        self.on_request = list(on_request)  # and of those it returns after them: asked only where `submit` names them
        self._rules = self.names + self.on_request  # as the processes number them
        assert self.names and len(set(self._rules)) == len(self._rules), f"names of rules: {self._rules}"
        self._kinds: list[tuple[bool, bool]] = []  # of each: many submissions a call, async
        self._hello = hello
        self._cwd = os.getcwd()
        self._selector = selectors.EpollSelector()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # rings when a result is there without an answer
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._queues: list[deque[Task]] = [deque() for _ in self._rules]
        self._apart: deque[tuple[int, Task]] = deque()  # to be scored one by one, before all others
        self._done: list[tuple[Any, dict[str, Outcome]]] = []
        self._tasks = 0
        self._frames = 0
        self._open = 0  # tasks not done
        self._start_failures = 0
        self._seconds = [0.01] * len(self._rules)  # of a submission, moving mean; a first guess
        self._memory_look = 0.0
        self._processes = [self._start() for _ in range(processes)]

    @property
    def pending(self) -> int:
        """Submissions whose outcomes `poll` has not returned."""
        return self._open + len(self._done)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes now; each leads a process group of the same number."""
        return [p.pid for p in self._processes]

    def fileno(self) -> int:
        """Readable when `poll` has something to do, but for the clock: poll a few times a second nevertheless."""
        return self._selector.fileno()

    def ready(self, deadline_seconds: float) -> None:
        """Wait until every process has loaded the rules. ConfigError says why one cannot."""
        until = time.monotonic() + deadline_seconds
        waiting = Waiting(f"{self._hello.section}.fns", deadline_seconds)
        while not all(p.ready for p in self._processes):
            waiting.look(lambda: f"{', '.join(self.names)} to load")
            try:
                self._advance(min(_LOOK_SECONDS, max(0.0, until - time.monotonic())))
            except RewardError as e:
                raise ConfigError(f"{self._hello.section}.fns: loading ends the process: {e}") from e
            if time.monotonic() > until and not all(p.ready for p in self._processes):
                who = f"{self._hello.section}.fns: {', '.join(self.names)}"
                raise ConfigError(f"{who} not loaded within {deadline_seconds:g} s")

    def submit(self, key: Hashable, prompt: Prompt, response: Response, names: Sequence[str] | None = None) -> None:
        """Queue one response for the rules `names` (None: all but those on request); `key` comes back with outcomes."""
        self.submit_all([(key, Submission(prompt, response))], names)

    def submit_all(
        self, submissions: Iterable[tuple[Hashable, Submission]], names: Sequence[str] | None = None
    ) -> None:
        """`submit` many: rules that take several at a time get full batches from the first on."""
        rules = [self._rules.index(name) for name in (self.names if names is None else names)]
        for key, submission in submissions:
            self._queue(key, submission, rules)
        self._feed()

    def poll(self, wait_seconds: float) -> list[tuple[Any, dict[str, Outcome]]]:
        """Outcomes as soon as there are any, first finished first; [] after `wait_seconds` or if none is pending."""
        until = time.monotonic() + wait_seconds
        self._advance(0.0)
        while not self._done and self.pending and (left := until - time.monotonic()) > 0:
            self._advance(min(left, _LOOK_SECONDS))
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End every process and all they started. What is still pending is dropped."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            process.close()
        self._processes.clear()
        if self._bell >= 0:
            self._selector.close()
            os.close(self._bell)
            self._bell = -1

    def _queue(self, key: Any, submission: Submission, rules: Sequence[int]) -> None:
        self._tasks += 1
        self._open += 1
        task = Task(self._tasks, key, submission, set(rules))
        for rule in rules:
            self._queues[rule].append(task)
        if not rules:
            self._finish(task)
            os.eventfd_write(self._bell, 1)

    def _start(self) -> Process:
        process = Process(self._hello, self._cwd)
        self._selector.register(process.answers, selectors.EVENT_READ, process)
        if process.outgoing:
            self._selector.register(process.requests, selectors.EVENT_WRITE, process)
        return process

    def _advance(self, wait_seconds: float) -> None:
        """One turn: move bytes, take answers, end what overran, replace what died, hand out work."""
        for key, events in self._selector.select(wait_seconds):
            if key.data is None:
                os.eventfd_read(self._bell)
            elif events & selectors.EVENT_WRITE:
                self._flush(key.data)
        greedy = self._over_memory()
        for process in list(self._processes):
            self._take(process)
            if process.dead():
                self._replace(process, "crashed")
            elif process in greedy:
                self._replace(process, "memory")
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
        """Give what is queued to the processes with least to do."""
        hungry = [p for p in self._processes if p.ready and not p.page.retired]
        while hungry:
            process = min(hungry, key=lambda p: p.submissions)
            frame = self._next(process)
            if frame is None:
                hungry.remove(process)
                continue
            if not process.inflight:
                process.burst = self._tasks
            process.give(frame)
            self._flush(process)

    def _next(self, process: Process) -> Frame | None:
        """What to give to this process now, if anything.

        Async calls and others never share a process at one time: the first would stand still. A process that is at one
        kind goes on with it while older than what waits of the other.
        """
        first = process.first
        if process.reserved:
            return process.reserved.pop(0) if first is None else None
        if first is not None and first.final:
            return None
        if self._apart:
            rule, task = self._apart[0]
            if (first is not None and first.concurrent) or not self._has_room(process, rule, many=False):
                return None
            self._apart.popleft()
            return self._frame(rule, [task], apart=True)
        waiting = sorted((q[0].number, rule) for rule, q in enumerate(self._queues) if q)
        fits = [each for each in waiting if first is None or self._kinds[each[1]][1] == first.concurrent]
        if not fits or (len(fits) < len(waiting) and fits[0][0] > process.burst):
            return None
        rule = fits[0][1]
        many, concurrent = self._kinds[rule]
        if concurrent and process.submissions >= _AHEAD:
            return None
        if not concurrent and not self._has_room(process, rule, many):
            return None
        queue = self._queues[rule]
        count = self._batch(rule, _AHEAD - process.submissions if concurrent else _AHEAD) if many else 1
        return self._frame(rule, [queue.popleft() for _ in range(count)], concurrent=concurrent)

    def _has_room(self, process: Process, rule: int, many: bool) -> bool:
        """Whether a process may be given one more call to make after those it has: none beside a batch."""
        if process.first is None or many or len(process.first.tasks) > 1:
            return process.first is None
        return process.submissions < max(1, min(_AHEAD, int(_AHEAD_SECONDS / self._seconds[rule])))

    def _batch(self, rule: int, most: int) -> int:
        """How many of a queue to score in one call: a fair share, and as many as are done in half the timeout."""
        share = math.ceil(len(self._queues[rule]) / sum(p.ready for p in self._processes))
        return max(1, min(most, share, int(self._hello.timeout_seconds / 2 / self._seconds[rule])))

    def _frame(self, rule: int, tasks: list[Task], **how: bool) -> Frame:
        self._frames += 1
        return Frame(self._frames, rule, tasks, **how)

    def _take(self, process: Process) -> None:
        for number, message in process.read():
            if number == 0:
                if "failed" in message:
                    raise ConfigError(message["failed"])
                self._kinds = [(many, concurrent) for many, concurrent in message["rules"]]
                process.ready = True
                continue
            frame = process.answered(number)
            self._start_failures = 0
            self._answered(process, frame, message)

    def _answered(self, process: Process, frame: Frame, message: dict[str, Any]) -> None:
        seconds, again = message["seconds"], message.get("again")
        mean = self._seconds[frame.rule]
        self._seconds[frame.rule] = max(1e-4, mean + 0.1 * (seconds / len(frame.tasks) - mean))
        late = seconds > self._hello.timeout_seconds and not self._kinds[frame.rule][1]
        if again == FRESH:
            process.reserved.append(self._frame(frame.rule, frame.tasks, final=True))
        elif again == APART or (late and len(frame.tasks) > 1):
            self._apart.extendleft((frame.rule, task) for task in reversed(frame.tasks))
        elif late:  # nobody looked when it overran; the verdict must not depend on that
            self._settle(frame.tasks[0], frame.rule, process.outcome("timeout", seconds))
        else:
            for task, outcome in zip(frame.tasks, message["outcomes"], strict=True):
                self._settle(task, frame.rule, Outcome(*outcome))

    def _overran(self, process: Process) -> bool:
        now = time.monotonic()
        if not process.ready:
            return now - process.started > _START_SECONDS
        first = process.first
        if first is not None and first.concurrent:
            return now - max(process.page.beat, process.moved, first.given) > self._hello.timeout_seconds
        running = process.page.running()
        if not running.number:  # with work to do: something left behind keeps it from its next sample
            return bool(process.inflight) and now - process.moved > max(self._hello.timeout_seconds, _STUCK_SECONDS)
        frame = process.inflight.get(running.number)
        grace = _GRACE_SECONDS if frame is not None and self._kinds[frame.rule][1] else 0.0
        return now - running.started > self._hello.timeout_seconds + grace

    def _over_memory(self) -> list[Process]:
        """Processes that hold, children included, more than they may; looked for once in a while."""
        now = time.monotonic()
        if now < self._memory_look:
            return []
        limit = self._hello.memory_mib << 20
        held = memory_bytes([p.guard.pid for p in self._processes])
        self._memory_look = now + max(_MEMORY_LOOK_SECONDS, 100 * (time.monotonic() - now))  # at most 1 % of our time
        suspects = [p for p in self._processes if held[p.guard.pid] > limit]
        return [p for p in suspects if own_bytes(tree(p.guard.pid)) > limit]

    def _replace(self, process: Process, why: str) -> None:
        """Kill a process, charge the submission it was at, take back the others, start a new one in its place."""
        for fd in (process.answers, process.requests):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        if why == "timeout":
            process.show_stack()
        process.kill()
        process.wait()
        self._take(process)  # what it had finished in the meantime counts
        running = process.page.running()
        at_fault = [f for f in process.inflight.values() if f.concurrent or f.number == running.number]
        if process.page.retired:
            at_fault = []
        for frame in reversed([f for f in process.inflight.values() if f not in at_fault]):
            self._take_back(process, frame)
        for frame in reversed(at_fault):
            self._blame(process, frame, why)
        if at_fault:
            self._start_failures = 0
        elif process.finished == 0:
            self._start_failures += 1
        how = process.how_it_ended()
        process.close()
        if self._start_failures >= _START_FAILURES:
            self._processes.remove(process)
            raise RewardError(
                f"{self._hello.section} processes died {self._start_failures} times in a row before they scored a "
                f"sample ({how}); functions {', '.join(self.names)}"
            )
        new = self._start()
        new.reserved = process.reserved
        self._processes[self._processes.index(process)] = new

    def _take_back(self, process: Process, frame: Frame) -> None:
        """A frame that its process had not begun, or was not to blame for."""
        if frame.final:
            process.reserved.insert(0, frame)
        elif frame.apart:
            self._apart.appendleft((frame.rule, frame.tasks[0]))
        else:
            self._queues[frame.rule].extendleft(reversed(frame.tasks))

    def _blame(self, process: Process, frame: Frame, why: str) -> None:
        """What comes of a call that ended or hung its process: of one submission its status, of several another try."""
        if frame.concurrent or len(frame.tasks) > 1:
            self._apart.extendleft((frame.rule, task) for task in reversed(frame.tasks))
            return
        running = process.page.running()
        if process.finished and not frame.final and (running.leftovers or why == "memory"):
            process.reserved.append(self._frame(frame.rule, frame.tasks, final=True))
            return
        outcome = process.outcome(why, time.monotonic() - running.started)
        self._settle(frame.tasks[0], frame.rule, outcome)

    def _settle(self, task: Task, rule: int, outcome: Outcome) -> None:
        task.outcomes[self._rules[rule]] = outcome
        task.left.discard(rule)
        if not task.left:
            self._finish(task)

    def _finish(self, task: Task) -> None:
        self._open -= 1
        self._done.append((task.key, task.outcomes))


def _check(hello: Hello, processes: int) -> None:
    if processes < 1:
        raise ConfigError(f"{hello.section}.workers: {processes}, must be at least 1")
    if not hello.timeout_seconds > 0:
        raise ConfigError(f"{hello.section}.timeout_seconds: {hello.timeout_seconds:g}, must be above 0")
    if hello.memory_mib < 1:
        raise ConfigError(f"{hello.section}.memory_mib: {hello.memory_mib}, must be at least 1")
