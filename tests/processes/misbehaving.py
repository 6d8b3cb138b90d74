"""A reward that does what the response says, in every shape a reward function may have. Not a test itself."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rlcore.errors import UnparseableGold
from rlcore.records import Prompt, Score

kept: list[Any] = []


def _eat(mib: int) -> None:
    kept.append(bytearray(mib << 20))


def _eat_shared(mib: int) -> None:
    memory = mmap.mmap(-1, mib << 20)
    for at in range(0, mib << 20, 4096):
        memory[at] = 1
    time.sleep(1000)


def _in_child(act: Any, *args: Any) -> None:
    if os.fork() == 0:
        act(*args)
        os._exit(0)


def _recurse() -> int:
    return 1 + _recurse()


def _exit_later(seconds: float) -> None:
    threading.Thread(target=lambda: (time.sleep(seconds), os._exit(5)), daemon=True).start()


def _hold_later(seconds: float) -> None:
    threading.Thread(target=lambda: (time.sleep(seconds), 9**9**9), daemon=True).start()


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def _raise(error: BaseException) -> None:
    raise error


def _fork_and_hang() -> None:
    _in_child(time.sleep, 1000)
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def _leave_children() -> None:
    _in_child(time.sleep, 1000)
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    _in_child(_daemon)


def _daemon() -> None:
    os.setsid()
    _in_child(time.sleep, 1000)


def _kill_guard() -> None:
    """Never anything but the guard: outside of a scoring process it does nothing."""
    parent = os.getppid()
    if b"rlcore.isolated.caller" in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0"):
        os.kill(parent, signal.SIGKILL)
    time.sleep(1000)


def _noise() -> None:
    print("noise " * 2_000_000)
    sys.stderr.write("noise\n")


# What is done, and the status it must end with.
FAILS: dict[str, tuple[Any, str]] = {
    "hang": (lambda: time.sleep(1000), "timeout"),
    "hold_interpreter": (lambda: 9**9**9, "timeout"),
    "ignore_sigterm": (_ignore_sigterm, "timeout"),
    "stop": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "timeout"),
    "fork_and_hang": (_fork_and_hang, "timeout"),
    "timeout_error": (lambda: _raise(TimeoutError("gave up")), "timeout"),
    "exit": (lambda: os._exit(0), "crashed"),
    "segfault": (lambda: ctypes.string_at(0), "crashed"),
    "kill_group": (lambda: os.killpg(os.getpid(), signal.SIGKILL), "crashed"),
    "kill_guard": (_kill_guard, "crashed"),
    "close_pipes": (lambda: os.closerange(3, 1000), "crashed"),
    "eat": (lambda: _eat(2000), "error"),
    "sys_exit": (lambda: sys.exit(3), "error"),
    "recurse": (_recurse, "error"),
    "raise": (lambda: _raise(RuntimeError("no such luck")), "error"),
    "gold": (lambda: _raise(UnparseableGold("what is this")), "unparseable_gold"),
}
EATS: dict[str, Any] = {
    "child_eats": lambda: (_in_child(_eat_shared, 600), time.sleep(1000)),
    "eat_shared": lambda: _eat_shared(600),
}
WORKS: dict[str, Any] = {
    "fork": os.fork,
    "noise": _noise,
    "slow": lambda: time.sleep(0.05),
    "leave_children": _leave_children,
    "leave_thread": lambda: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(),
    "leave_alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 0.01),
    "lone \ud800": lambda: None,
    "fine": lambda: None,
    "exit_later": lambda: _exit_later(0.02),
    "hold_later": lambda: _hold_later(0.02),
}
VALUES: dict[str, tuple[Any, str]] = {
    "none": (None, "bad_value"),
    "nan": (float("nan"), "bad_value"),
    "inf": (-float("inf"), "bad_value"),
    "text": ("1.0", "bad_value"),
    "list": ([1.0], "bad_value"),
    "no_score": ({"reward": 1.0}, "bad_value"),
    "true": (True, ""),
    "int": (3, ""),
    "dict": ({"score": 0.25, "a": 2, "b": "text", "c": None}, ""),
    "nan_part": ({"score": 0.25, "a": float("nan")}, "bad_value"),
    "score": (Score(0.5, {"half": 0.5}), ""),
}


def act(prompt: Prompt, response: str) -> Any:
    if response in VALUES:
        return VALUES[response][0]
    (FAILS[response][0] if response in FAILS else (WORKS | EATS)[response])()
    return True


def batch(prompts: list[Prompt], responses: list[str]) -> Any:
    return [act(p, r) for p, r in zip(prompts, responses, strict=True)]


async def later(prompt: Prompt, response: str) -> Any:
    await asyncio.sleep(0.01)
    if response == "spin":
        while True:
            pass
    if response == "sleep":
        await asyncio.sleep(1000)
    if response == "stubborn":
        await _stubborn()
    if response == "cancel_all":
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(1000)
    if response == "stop_loop":
        asyncio.get_running_loop().stop()
        await asyncio.sleep(1000)
    return act(prompt, response)


async def _stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass


async def batch_later(prompts: list[Prompt], responses: list[str]) -> Any:
    return [await later(p, r) for p, r in zip(prompts, responses, strict=True)]


def trl(prompts: list[str], completions: list[str], value: list[float], **columns: Any) -> Any:
    assert prompts == [f"question {v:g}" for v in value] == columns["question"]
    return [act(Prompt("", [], ""), c) for c in completions]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    assert (data_source, ground_truth) == ("test", "3")
    return act(Prompt("", [], ""), solution_str)
