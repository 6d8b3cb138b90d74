"""One reward process: `python -m rewards.worker REQUESTS ANSWERS PROGRESS`, three inherited file descriptors.

REQUESTS brings frames, ANSWERS takes one frame a request; a frame is a HEADER, then JSON. Frame 0 is about the process
itself: first the functions to load, then the answer that they are loaded or why not. PROGRESS is a shared page where
the process says what it is doing, readable by the pool even when a function holds the interpreter for ever.

Functions run on the main thread, one sample at a time: alarm-based timeouts work. What they print is not the protocol.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import mmap
import numbers
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from rewards import BUILTIN
from rlcore.errors import ConfigError
from rlcore.protocols import plugin
from rlcore.records import Prompt, Score

HEADER = struct.Struct("<QQ")  # bytes of JSON that follow, number of the sample (0: about the process)
# Start of the sample (time.monotonic), index of the function it is in, number of the sample (0: none). The number comes
# last because fields are written in order: who reads it sees a start that belongs to it, or 0.
PROGRESS = struct.Struct("<dQQ")

_MESSAGE = 500  # characters kept of an error's message
_TRACEBACK = 8000


class BadValue(Exception):
    """A reward function returned something that is not a reward."""


def load(spec: str) -> Callable[..., Any]:
    """The function behind a built-in name, a dotted path or `file.py:function`; ConfigError says why there is none."""
    try:
        fn = plugin(BUILTIN.get(spec, spec), "reward.fns")
    except ConfigError:
        raise
    except BaseException as e:
        raise ConfigError(f"reward.fns: {spec} cannot be loaded: {_last_line(e)}") from e
    try:
        inspect.signature(fn).bind(None, "")
    except TypeError as e:
        raise ConfigError(f"reward.fns: {spec} is called as fn(prompt, response): {e}") from e
    except ValueError:  # a built-in without a signature
        pass
    return fn


def checked(spec: str, value: Any) -> Score:
    """`value` as a Score of finite floats. Takes a Score, a bool, any real number, or a 0-d array or tensor."""
    reward, parts = value if isinstance(value, Score) else (value, {})
    return Score(_finite(spec, reward), {str(k): _finite(f"{spec}, part {k}", v) for k, v in parts.items()})


def _finite(where: str, value: Any) -> float:
    number = value
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        number = value.item()
    if not isinstance(number, numbers.Real):
        raise BadValue(f"{where} returned {type(value).__name__} {repr(value)[:80]}, not a float or a Score")
    number = float(number)
    if not math.isfinite(number):
        raise BadValue(f"{where} returned {number} ({type(value).__name__}), not a finite number")
    return number


def score(spec: str, fn: Callable[..., Any], prompt: Prompt, response: str) -> dict[str, Any]:
    """What one function says about one sample: `{"reward", "parts"}`, or `{"status", "message", "traceback"}`.

    Either way with its "seconds". `sys.exit()` in a function is an error of this sample, not the end of the worker.
    """
    began = time.monotonic()
    try:
        result = checked(spec, fn(prompt, response))
        outcome: dict[str, Any] = {"reward": result.reward, "parts": result.parts}
    except BadValue as e:
        outcome = {"status": "bad_value", "message": str(e)[:_MESSAGE], "traceback": ""}
    except BaseException as e:
        # The first frame is this one; a reader wants the function's own.
        lines = traceback.format_exception(type(e), e, e.__traceback__ and e.__traceback__.tb_next, limit=-20)
        status = "timeout" if isinstance(e, TimeoutError) else "error"
        outcome = {"status": status, "message": _last_line(e), "traceback": "".join(lines)[-_TRACEBACK:]}
    return outcome | {"seconds": time.monotonic() - began}


def _last_line(e: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(e), e)).strip().splitlines()[-1][:_MESSAGE]


def _answer(answers: int, number: int, message: Any) -> None:
    body = json.dumps(message).encode()
    frame = memoryview(HEADER.pack(len(body), number) + body)
    while frame:
        frame = frame[os.write(answers, frame) :]


def _frames(requests: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, JSON bytes) of each request, until the driver is gone."""
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        size, number = HEADER.unpack(header)
        body = requests.read(size)
        if len(body) < size:
            return
        yield number, body


def _guard(requests: int, others: Sequence[int]) -> None:
    """Leave a process behind that ends this whole process group the moment the driver is gone.

    A worker that hangs in one C call notices nothing and its children know nothing; a poll on the request pipe, which
    only the driver writes to, reports the end of the driver however it ended. (A parent-death signal would miss the
    children, and fires when the thread that started the worker ends.) Forked twice so that a function that waits for
    all its children does not wait for this one.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    for fd in (0, 1, 2, *others):
        with contextlib.suppress(OSError):
            os.close(fd)
    poll = select.poll()
    poll.register(requests, 0)  # an end of file is reported unasked
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def _serve(requests: BinaryIO, answers: int, progress: mmap.mmap) -> None:
    frames = _frames(requests)
    specs: list[str] = json.loads(next(frames, (0, b"[]"))[1])
    try:
        fns = [load(spec) for spec in specs]
    except ConfigError as e:
        _answer(answers, 0, {"failed": str(e)})
        return
    _answer(answers, 0, {})
    me = os.getpid()
    for number, body in frames:
        began = time.monotonic()
        PROGRESS.pack_into(progress, 0, began, 0, number)
        task = json.loads(body)
        prompt, response = Prompt(**task["prompt"]), task["response"]
        seed = f"{prompt.id}\n{response}".encode(errors="surrogatepass")
        outcomes = []
        for i, (spec, fn) in enumerate(zip(specs, fns, strict=True)):
            PROGRESS.pack_into(progress, 0, began, i, number)
            random.seed(seed)  # the same verdict from every worker, whatever it scored before
            outcomes.append(score(spec, fn, prompt, response))
            if os.getpid() != me:  # the function forked, and its child came back too
                os._exit(0)
        _answer(answers, number, {"fns": outcomes, "seconds": time.monotonic() - began})
        PROGRESS.pack_into(progress, 0, 0.0, 0, 0)


def main() -> None:
    requests, answers, page = (int(argument) for argument in sys.argv[1:4])
    for fd in (requests, answers, page):
        os.set_inheritable(fd, False)  # a program that a function starts gets none of them
    _guard(requests, (answers, page))
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there never shadows a module
    with mmap.mmap(page, PROGRESS.size) as progress, os.fdopen(requests, "rb", buffering=1 << 16) as incoming:
        _serve(incoming, answers, progress)


if __name__ == "__main__":
    main()
