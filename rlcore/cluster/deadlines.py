"""Every wait for a Ray call. A wait has a deadline and a name, and ends at once when anything it depends on has died.

`Calls` is the one way to wait. The driver's `Watch` also knows every Ray actor of the run and every process of the
local Ray: while it waits for one of them it looks at all of them once a second, so a reference rank killed during the
rollout phase ends the run then, not when it is next needed. `deadline` is for calls that take no timeout.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import ray
from ray._private import state
from ray._private import worker as ray_worker
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from rlcore.cluster import deaths
from rlcore.errors import DiskError, RlcoreError, WorkerError, is_of_disk
from rlcore.screen import message
from rlcore.waiting import Waiting

_LOOK_EVERY_SECONDS = 1.0
_NEWS_OF_A_DEATH_SECONDS = 2.0


class Worker(NamedTuple):
    """A Ray actor of the run: `Worker("actor", 0, handle)` prints as `actor rank 0`."""

    role: str
    rank: int
    handle: Any

    def __str__(self) -> str:
        return f"{self.role} rank {self.rank}"


class Calls:
    """Waits for Ray calls. Every error names the worker and `during`, what was going on: "load_bucket"."""

    def __init__(self, during: str) -> None:
        self.during = during
        self.logs = "Ray's logs are under /tmp/ray/session_latest/logs of its machine"

    def look(self) -> None:
        """Raise WorkerError if anything has died that the waits depend on. Here nothing is known of others."""

    def blame(self, worker: Worker, error: BaseException) -> None:
        """Raise WorkerError if `worker` raised because another has died. Here nothing is known of others."""

    def any(self, refs: Mapping[ray.ObjectRef, Worker], seconds: float) -> list[ray.ObjectRef]:
        """The refs that are ready, after at most `seconds`; [] if none is. All ready ones at once, never one by one."""
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
            if not ready:
                ready, _ = ray.wait(list(refs), num_returns=1, timeout=min(left, _LOOK_EVERY_SECONDS))
            self.look()
            if ready or time.monotonic() >= until:
                return ready

    def get(self, ref: ray.ObjectRef, worker: Worker) -> Any:
        """The value of a ref that is ready; what the worker raised comes out naming role, rank and `during`."""
        try:
            return ray.get(ref, timeout=60)
        except RayTaskError as e:
            cause = e.cause if isinstance(e.cause, Exception) else e
            self.blame(worker, cause)
            if isinstance(cause, RlcoreError):
                raise type(cause)(f"{worker}, {self.during}: {cause}") from e
            kind = DiskError if is_of_disk(cause) else WorkerError
            error = kind(f"{worker} raised in {self.during}: {type(cause).__name__}: {cause}")
            error.details = str(e)
            raise error from e
        except (ActorDiedError, ActorUnavailableError) as e:
            raise self.death_of(worker, str(e)) from e
        except GetTimeoutError as e:
            raise WorkerError(f"{worker}: its finished result did not arrive in 60 s, {self.during}") from e
        except RayError as e:  # for one, what it returned was lost with another
            self.blame(worker, e)
            raise WorkerError(f"{worker}, {self.during}: {type(e).__name__}: {e}") from e

    def death_of(self, worker: Worker, notice: str) -> WorkerError:
        error = WorkerError(f"{worker} died during {self.during}: {deaths.short(notice, self.logs)}")
        error.details = notice
        return error

    def gather(self, workers: Sequence[Worker], refs: Sequence[ray.ObjectRef], what: str, seconds: float) -> list[Any]:
        """All results, in order. Fails on the first worker that raises or dies, or after `seconds`."""
        worker_of = dict(zip(refs, workers, strict=True))
        results: dict[ray.ObjectRef, Any] = {}
        waiting = self.waiting(what, seconds)
        while len(results) < len(refs):
            left = {r: w for r, w in worker_of.items() if r not in results}
            for ref in self.any(left, min(_LOOK_EVERY_SECONDS, seconds - waiting.seconds)):
                results[ref] = self.get(ref, worker_of[ref])
            late = ", ".join(str(w) for r, w in worker_of.items() if r not in results)
            if late and waiting.seconds > seconds:
                raise WorkerError(f"{what}: no answer from {late} within {seconds:g} s, {self.during}")
            waiting.look(lambda late=late: f"{late}, {self.during},")
        self.over(waiting)
        return [results[r] for r in refs]

    def waiting(self, what: str, seconds: float) -> Waiting:
        """A wait that begins now and says what for, where somebody can read it. Here nobody can: this is no driver."""
        return Waiting(what, seconds, say=lambda text: None)

    def over(self, waiting: Waiting) -> None:
        """It has ended well: the next of its kind may take as long."""


class Watch(Calls):
    """Waits on behalf of the driver.

    `phase` names what the run is doing. `also_alive` are further checks, each a function that returns None or what has
    died (the local Ray's own processes, the cleanup process).
    """

    def __init__(self) -> None:
        super().__init__("phase start")
        self.workers: list[Worker] = []
        self.also_alive: list[Callable[[], str | None]] = []
        self.closed = False  # set when the run ends: what dies from then on is meant to
        self.on_fatal: list[Callable[[WorkerError], None]] = []  # the last things done before such an exit
        self._looked = 0.0
        self._usual: dict[str, float] = {}  # seconds that waits took, by their names

    def waiting(self, what: str, seconds: float) -> Waiting:
        return Waiting(what, seconds, self._usual.get(what, 0.0))

    def over(self, waiting: Waiting) -> None:
        self._usual[waiting.what] = max(self._usual.get(waiting.what, 0.0), waiting.seconds)

    @property
    def phase(self) -> str:
        return self.during.removeprefix("phase ")

    @phase.setter
    def phase(self, name: str) -> None:
        self.during = f"phase {name}"

    def look(self) -> None:
        """Raise WorkerError if anything of the run has died. Cheap: at most once a second it really looks."""
        if time.monotonic() - self._looked < _LOOK_EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        if (death := self._death()) is not None:
            raise death

    def blame(self, worker: Worker, error: BaseException) -> None:
        """Raise WorkerError if `worker` raised because another has died: who died is the news, who noticed is not.

        A broken connection may reach `worker` before Ray knows of the death, so this looks for up to 2 s.
        """
        until = time.monotonic() + _NEWS_OF_A_DEATH_SECONDS
        while (death := self._death()) is None and time.monotonic() < until:
            time.sleep(0.1)
        if death is not None:
            told = WorkerError(f"{death}; {worker} then raised {type(error).__name__}")
            told.details = death.details
            raise told from error

    def _death(self) -> WorkerError | None:
        """What of the run has died, in words."""
        if (died := self._process_that_died()) is not None:
            return WorkerError(f"{died} died during {self.during}; the run cannot go on without it")
        if not self.workers:
            return None
        dead = state.actors(job_id=ray_worker.global_worker.current_job_id, actor_state_name="DEAD")
        for each in self.workers:
            if info := dead.get(each.handle._actor_id.hex()):
                return self.death_of(each, deaths.notice(info["DeathCause"]))
        return None

    def _process_that_died(self) -> str | None:
        return next((died for alive in self.also_alive if (died := alive()) is not None), None)

    def guard(self) -> None:
        """Watch `also_alive` from a thread too: when Ray's own processes die, a call into Ray may never return.

        The driver gets 10 s to raise by itself; then the process says what died and exits, and the rest is cleaned up.
        """
        with without_signals():  # they are for the main thread
            threading.Thread(target=self._guard, daemon=True).start()

    def _guard(self) -> None:
        while not self.closed:
            time.sleep(_LOOK_EVERY_SECONDS)
            if (died := self._process_that_died()) is None:
                continue
            time.sleep(10)
            if self.closed:
                return
            _exit(WorkerError(f"{died} died during {self.during}, and Ray no longer answers"), self.on_fatal)


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End the process with a name when `what` takes longer: for calls into Ray that cannot be given a timeout."""
    late = WorkerError(f"{what} took longer than {seconds:g} s")
    timer = threading.Timer(seconds, _exit, [late])
    timer.daemon = True
    with without_signals():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit(error: WorkerError, before: Sequence[Callable[[WorkerError], None]] = ()) -> None:
    """End the process from a thread, where raising would not reach the driver."""
    say = functools.partial(print, f"rlcore: WorkerError: {message(str(error))}", file=sys.stderr, flush=True)
    try:
        for each in (say, *(functools.partial(last, error) for last in before)):
            with suppress(Exception):  # a screen that is gone, a full disk: else the process would stay for ever
                each()
    finally:
        os._exit(error.exit_code)


@contextmanager
def without_signals() -> Iterator[None]:
    """A thread that is started in here is never the one that a signal interrupts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
