"""One process of a pool: `python -m rlcore.isolated.caller REQUESTS ANSWERS PAGE TRACE`, four inherited descriptors.

REQUESTS brings frames, ANSWERS takes one a request: one outcome a submission, or that they are to be scored again,
apart. PAGE is shared memory that says what the process is doing (shared_state.py); into TRACE it writes where it
crashes, or hangs when SIGUSR2 asks it. The main thread makes the calls; docs/isolation.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import os
import random
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, NamedTuple

from rlcore.errors import ConfigError
from rlcore.isolated.frames import APART, FRESH, Frames, Hello, packed
from rlcore.isolated.guard import guarded
from rlcore.isolated.outcome import BadValue, Outcome, failure, from_the_call_on
from rlcore.isolated.rule import Call, Rule, Submission
from rlcore.isolated.shared_state import Page
from rlcore.plugins import plugin
from rlcore.records import Prompt, Response
from rlcore.screen import screen_prints

_BEAT_SECONDS = 0.05
_LATE_SECONDS = 0.2  # a beat later than this: some function blocked the event loop
_LEFT_COROUTINES = 8  # that ignored their cancellation, before the process is exchanged for a new one


class Request(NamedTuple):
    number: int
    rule: Rule
    submissions: list[Submission]
    concurrent: bool


class Loop(asyncio.SelectorEventLoop):
    """A copy of the process that a coroutine forked ends before it takes a step of any other coroutine."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        return super().call_soon(self._here, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._here, callback, *args, context=context)

    def _here(self, callback: Callable[..., Any], *args: Any) -> None:
        if os.getpid() != self._pid:
            os._exit(0)
        callback(*args)


class Caller:
    """Makes the calls that the pool asks for, until the driver is gone."""

    def __init__(self, requests: int, answers: int, page: Page) -> None:
        self._frames = Frames(requests)
        self._answers = answers
        self._page = page
        self._me = os.getpid()
        self._rules: list[Rule] = []
        self._held: deque[Request] = deque()  # to be called alone, when those side by side are done
        self._hello = Hello("", {}, "", 0.0, 0)
        self._served = 0
        self._threads = 0  # of the process when its functions were loaded
        self._loop: asyncio.AbstractEventLoop | None = None
        self._late = 0.0  # seconds that functions have blocked the event loop
        self._beaten = 0.0
        self._left: set[asyncio.Task[Any]] = set()

    def serve(self) -> None:
        hello = self._frames.wait()
        if hello is None or not self._set_up(Hello(**hello[1])):
            return
        while (request := self._next()) is not None:
            if request.concurrent:
                self._event_loop().run_until_complete(self._side_by_side(request))
                self._page.beat = 0.0
            else:
                self._alone(request)

    def _next(self) -> Request | None:
        if self._held:
            return self._held.popleft()
        frame = self._frames.wait()
        return None if frame is None else self._request(*frame)

    def _set_up(self, hello: Hello) -> bool:
        self._hello = hello
        limit = hello.memory_mib << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # counts what is written to; not mapped libraries
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            self._rules = plugin(hello.loader, hello.section)(**hello.given)
        except ConfigError as e:
            self._answer(0, {"failed": str(e)})
            return False
        self._threads = _threads()
        self._answer(0, {"rules": [[rule.many, rule.asynchronous] for rule in self._rules]})
        return True

    def _request(self, number: int, message: dict[str, Any]) -> Request:
        submissions = [Submission(Prompt(**prompt), Response(*response)) for prompt, response in message["submissions"]]
        return Request(number, self._rules[message["rule"]], submissions, message["concurrent"])

    def _alone(self, request: Request) -> None:
        """One call on the main thread, with nothing beside it."""
        began = time.monotonic()
        self._page.begin(began, self._leftovers(), request.number)
        random.seed(_seed(request.submissions[0]))  # the same verdict from every process, whatever it scored before
        if request.rule.asynchronous:
            results = self._event_loop().run_until_complete(self._limited(_awaited(request)))
        else:
            results = _called(request)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left armed would ring in the next sample
        seconds = time.monotonic() - began
        if os.getpid() != self._me:  # the function forked, and its child came back too
            os._exit(0)
        outcomes = self._outcomes(request, results)
        self._page.idle()
        try:
            self._reply(request, outcomes, seconds)
        except OSError:  # the function has closed our pipe
            self._page.begin(began, False, request.number)
            os._exit(1)

    def _outcomes(self, request: Request, results: Any) -> list[Outcome] | str:
        """One a submission of what `_called` returned, or how they are to be scored again."""
        if isinstance(results, BaseException):
            return self._failed(request, results)
        try:
            return request.rule.outcomes(request.submissions, results)
        except BaseException as e:
            return self._failed(request, from_the_call_on(e))

    def _failed(self, request: Request, error: BaseException) -> list[Outcome] | str:
        """The outcome of a call that raised; of several samples nobody knows whose fault it was. But a list of
        the wrong length or type is the function's fault: of one sample alone, any list of one would fit."""
        if isinstance(error, BadValue):
            return [failure(error)] * len(request.submissions)
        if _is_memory(error):
            self._page.retired = True  # what it holds on to would cost the next samples
            if self._served or len(request.submissions) > 1 or request.concurrent:
                return FRESH if len(request.submissions) == 1 else APART
            outcome = failure(error)
            limit = f"(limit: {self._hello.memory_mib} MiB, {self._hello.section}.memory_mib)"
            return [outcome._replace(message=f"{outcome.message} {limit}")]
        return APART if len(request.submissions) > 1 else [failure(error)]

    def _reply(self, request: Request, outcomes: list[Outcome] | str, seconds: float) -> None:
        if isinstance(outcomes, str):
            self._answer(request.number, {"again": outcomes, "seconds": seconds})
        else:
            share = seconds / len(outcomes)
            rows = [outcome._replace(seconds=share) for outcome in outcomes]
            self._answer(request.number, {"outcomes": rows, "seconds": seconds})
        self._served += 1
        if self._page.retired:
            os._exit(0)

    def _answer(self, number: int, message: Any) -> None:
        if os.getpid() != self._me:
            os._exit(0)
        left = memoryview(packed(number, message))
        while left:
            left = left[os.write(self._answers, left) :]

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = Loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def _leftovers(self) -> bool:
        """Whether earlier samples left threads, children or coroutines behind, which could be what ends this one."""
        if self._left or _threads() > self._threads:
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    async def _side_by_side(self, first: Request) -> None:
        """`first` and what comes while it or another one runs, each answered as it finishes."""
        loop = asyncio.get_running_loop()
        running = {loop.create_task(self._one_of_many(first))}

        def arrived() -> None:
            if os.getpid() != self._me:
                os._exit(0)
            self._frames.read()
            if self._frames.closed:
                os._exit(0)
            while (frame := self._frames.next()) is not None:
                request = self._request(*frame)
                if request.concurrent:
                    running.add(loop.create_task(self._one_of_many(request)))
                else:  # the last of `running` has been answered, and this loop is about to end
                    self._held.append(request)

        loop.add_reader(self._frames.fd, arrived)
        beat = loop.create_task(self._beat())
        arrived()
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            running -= done
            for task in done:
                task.result()
        loop.remove_reader(self._frames.fd)
        beat.cancel()

    async def _beat(self) -> None:
        self._beaten = time.monotonic()
        while True:
            self._page.beat = now = time.monotonic()
            self._late += self._lateness(now)
            self._beaten = now
            await asyncio.sleep(_BEAT_SECONDS)

    def _lateness(self, now: float) -> float:
        late = now - self._beaten - _BEAT_SECONDS
        return late if late > _LATE_SECONDS else 0.0

    async def _one_of_many(self, request: Request) -> None:
        began, late = time.monotonic(), self._late
        random.seed(_seed(request.submissions[0]))
        results = await self._limited(_awaited(request))
        now = time.monotonic()
        blocked = self._late + self._lateness(now) - late > 0.1 * self._hello.timeout_seconds
        # Another function blocked the loop while this one's time ran: it is scored again.
        again = isinstance(results, TimeoutError) and blocked
        outcomes = APART if again else self._outcomes(request, results)
        self._reply(request, outcomes, now - began)

    async def _limited(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What `call` returns, or the TimeoutError. A coroutine that ignores its cancellation is left behind."""
        task = asyncio.get_running_loop().create_task(call)
        done, _ = await asyncio.wait({task}, timeout=self._hello.timeout_seconds)
        if done:
            return task.result()
        task.cancel()
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        await asyncio.sleep(0)
        if len(self._left) > _LEFT_COROUTINES:
            self._page.retired = True
        limit = f"{self._hello.timeout_seconds:g} s ({self._hello.section}.timeout_seconds)"
        return TimeoutError(f"took longer than {limit}")


def _called(request: Request) -> list[tuple[Call, Any]] | BaseException:
    """What each call returned, or what one raised: sys.exit() is an error of its sample, not the end of the process."""
    results = []
    try:
        for call in request.rule.calls(request.submissions):
            results.append((call, request.rule.fn(*call.args, **call.kwargs)))
    except BaseException as e:
        return from_the_call_on(e)
    return results


async def _awaited(request: Request) -> list[tuple[Call, Any]] | BaseException:
    """As `_called`."""
    results = []
    try:
        for call in request.rule.calls(request.submissions):
            results.append((call, await request.rule.fn(*call.args, **call.kwargs)))
    except BaseException as e:
        return from_the_call_on(e)
    return results


def _seed(submission: Submission) -> bytes:
    return f"{submission.prompt.id}\n{submission.response.text}".encode(errors="surrogatepass")


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    requests, answers, fd, trace = (int(argument) for argument in sys.argv[1:5])
    for each in (requests, answers, fd, trace):
        os.set_inheritable(each, False)  # a program that a function starts gets none of them
    page = Page(fd)
    os.close(fd)
    guarded(requests, (answers, trace), page)
    screen_prints()
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR2, trace)
    os.register_at_fork(after_in_child=lambda: _forget(requests, answers))
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there never shadows a module
    Caller(requests, answers, page).serve()


def _forget(*fds: int) -> None:
    """A child that a function forks must neither take the process's requests nor keep its pipe open."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


if __name__ == "__main__":
    main()
