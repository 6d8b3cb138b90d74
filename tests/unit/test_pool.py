"""The reward pool with real processes: what a bad function costs, and that nothing is left behind."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.pool import Result, RewardPool, names
from rewards.process import Process
from rewards.worker import PROGRESS
from rlcore.errors import ConfigError, RewardError
from rlcore.records import Prompt

REPO = Path(__file__).parents[2]

# One function that does what the response says.
BAD = """
import os, signal, subprocess, sys, time
from rlcore.records import Score

def act(prompt, response):
    if response == "hang":
        time.sleep(1000)
    if response == "hold_interpreter":
        9 ** 9 ** 9
    if response == "ignore_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if response == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if response == "exit":
        os._exit(0)
    if response == "sys_exit":
        sys.exit(3)
    if response == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "kill_group":
        os.killpg(0, signal.SIGKILL)
    if response == "close_pipes":
        os.closerange(3, 1000)
    if response == "fork":
        os.fork()
    if response == "fork_and_hang":
        if os.fork() == 0:
            time.sleep(1000)
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    if response == "leave_children":
        if os.fork() == 0:
            time.sleep(1000)
        subprocess.Popen(["sleep", "1000"])
    if response == "raise":
        raise RuntimeError("no such luck")
    if response == "timeout_error":
        raise TimeoutError("gave up")
    if response == "none":
        return None
    if response == "nan":
        return float("nan")
    if response == "text":
        return "1.0"
    if response == "print":
        print("noise " * 10000)
        sys.stderr.write("noise\\n")
    if response == "score":
        return Score(0.5, {"act": 7.0, "half": 0.5, "second": 9.0})
    if response == "slow":
        time.sleep(0.05)
    return True

def second(prompt, response):
    if response == "hang_in_second":
        time.sleep(1000)
    return prompt.row["value"]
"""


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.py"
    file.write_text(BAD)
    return str(file)


@pytest.fixture
def pools() -> Iterator[list[RewardPool]]:
    made: list[RewardPool] = []
    yield made
    for pool in made:
        pool.close()


def prompt(i: int = 0, **row: Any) -> Prompt:
    return Prompt(id=f"test:{i}", tokens=[1, 2], answer="3", row=row)


def collect(pool: RewardPool, seconds: float = 120.0) -> dict[Any, Result]:
    """Everything pending; fails when it does not come."""
    results: dict[Any, Result] = {}
    until = time.monotonic() + seconds
    while pool.pending:
        for key, result in pool.poll(wait_seconds=1.0):
            assert key not in results
            results[key] = result
        assert time.monotonic() < until, f"{pool.pending} samples never came"
    return results


def alive_in_groups(groups: set[int]) -> list[str]:
    """Processes, zombies aside, whose process group is one of these."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) in groups and state not in "ZX":
            found.append(f"{stat.parent.name} {state}")
    return found


def assert_gone(groups: set[int]) -> None:
    until = time.monotonic() + 30
    while left := alive_in_groups(groups):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_weighted_sum_and_parts(bad: str, pools: list[RewardPool]) -> None:
    pools.append(pool := RewardPool([f"{bad}:act", f"{bad}:second"], [2.0, -0.5], 2, 30.0))
    pool.ready(60)
    pool.submit("a", prompt(value=4.0), "score")
    pool.submit(("b", 1), prompt(value=True), "fine")
    assert pool.pending == 2
    results = collect(pool)
    assert results["a"].reward == 2 * 0.5 - 0.5 * 4.0
    assert results["a"].parts == {"act": 0.5, "second": 4.0, "half": 0.5, "act/act": 7.0, "act/second": 9.0}
    assert results["a"].status == {} and results["a"].seconds >= 0
    assert results["b", 1][:3] == (1.5, {"act": 1.0, "second": 1.0}, {})
    assert pool.pending == 0 and pool.poll(wait_seconds=1000.0) == []


def test_every_failure_costs_its_own_sample_only(bad: str, tmp_path: Path, pools: list[RewardPool]) -> None:
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    pools.append(pool := RewardPool([f"{bad}:act"], [], 2, 1.5, quarantine))
    pool.ready(60)
    statuses = {
        "hang": "timeout",
        "hold_interpreter": "timeout",
        "ignore_sigterm": "timeout",
        "stop": "timeout",
        "fork_and_hang": "timeout",
        "timeout_error": "timeout",
        "exit": "crashed",
        "segfault": "crashed",
        "kill_group": "crashed",
        "close_pipes": "crashed",
        "sys_exit": "error",
        "raise": "error",
        "none": "bad_value",
        "nan": "bad_value",
        "text": "bad_value",
    }
    fine = ["fine", "fork", "print", "slow", "\ud800 lone", "leave_children"]
    groups = set(pool.pids)
    for i, response in enumerate([*statuses, *fine] + ["fine"] * 200):
        pool.submit((i, response), prompt(i, value=1.0, when=object), response)
    results: dict[Any, Result] = {}
    while pool.pending:
        results |= dict(pool.poll(wait_seconds=1.0))
        groups |= set(pool.pids)
    assert len(results) == len(statuses) + len(fine) + 200
    for (_, response), result in results.items():
        expected = {"act": statuses[response]} if response in statuses else {}
        assert result.status == expected, (response, result)
        assert result.reward == (None if expected else 1.0)
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert {line["response"]: line["status"] for line in lines} == statuses
    raised = next(line for line in lines if line["response"] == "raise")
    assert "no such luck" in raised["traceback"] and "in act" in raised["traceback"]
    assert raised["prompt"].startswith("test:") and raised["row"]["value"] == 1.0 and raised["function"] == "act"
    assert pool.errors["act: error: RuntimeError: no such luck"] == 1
    assert sum(pool.errors.values()) == len(statuses)
    pool.ready(60)
    assert len(set(pool.pids)) == 2 and all(alive_in_groups({pid}) for pid in pool.pids)
    pool.close()
    assert_gone(groups)


def test_the_function_at_fault_is_named(bad: str, pools: list[RewardPool]) -> None:
    pools.append(pool := RewardPool([f"{bad}:act", f"{bad}:second"], [], 1, 1.0))
    pool.ready(60)
    pool.submit(0, prompt(value=1.0), "hang_in_second")
    pool.submit(1, prompt(value=1.0), "raise")
    pool.submit(2, prompt(), "fine")
    results = collect(pool)
    assert results[0].status == {"second": "timeout"} and results[0].seconds >= 1.0
    assert results[1].status == {"act": "error"} and results[1].parts == {"second": 1.0}
    assert results[2].status == {"second": "error"} and results[2].parts == {"act": 1.0}


def test_timeout_counts_from_the_beginning_of_the_sample(bad: str, pools: list[RewardPool]) -> None:
    """40 samples of 0.05 s behind one worker: the last waits longer than the timeout and is still scored."""
    pools.append(pool := RewardPool([f"{bad}:act"], [], 1, 0.9))
    pool.ready(60)
    for i in range(40):
        pool.submit(i, prompt(), "slow")
    assert all(r.reward == 1.0 for r in collect(pool).values())


def test_a_sample_that_overran_unwatched_is_a_timeout_too(bad: str, pools: list[RewardPool]) -> None:
    pools.append(pool := RewardPool([f"{bad}:act"], [], 1, 0.01))
    pool.ready(60)
    pool.submit(0, prompt(), "slow")
    assert select.select([pool._processes[0].answers], [], [], 60)[0]  # finished before the driver looks
    assert collect(pool)[0].status == {"act": "timeout"}


def test_workers_killed_from_outside_cost_nothing(bad: str, pools: list[RewardPool]) -> None:
    pools.append(pool := RewardPool([f"{bad}:act"], [], 2, 30.0))
    pool.ready(60)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    for i in range(300):
        pool.submit(i, prompt(i), "fine")
    results = collect(pool)
    assert len(results) == 300 and all(r.reward == 1.0 for r in results.values())


def test_megabytes_go_through_and_submit_does_not_wait(bad: str, pools: list[RewardPool]) -> None:
    pools.append(pool := RewardPool([f"{bad}:act"], [], 1, 30.0))
    pool.ready(60)
    pool.submit("hanging", prompt(), "slow")
    for i in range(4):
        pool.submit(i, prompt(), "x" * 10_000_000)
    assert pool.pending == 5
    assert all(r.reward == 1.0 for r in collect(pool).values())


def test_same_verdict_from_every_worker(tmp_path: Path, pools: list[RewardPool]) -> None:
    file = tmp_path / "dice.py"
    file.write_text(
        "import random\n"
        "def dice(prompt, response):\n"
        "    return random.random() + len(str({'a', 'b', response})) + hash(response) % 97\n"
    )
    scores: list[list[float | None]] = []
    for workers in (1, 3):
        pools.append(pool := RewardPool([f"{file}:dice"], [], workers, 30.0))
        pool.ready(60)
        for i in range(60):
            pool.submit(i, prompt(i), f"response {i % 7}")
        results = collect(pool)
        scores.append([results[i].reward for i in range(60)])
    assert scores[0] == scores[1] and len(set(scores[0])) == 60


def test_functions_that_cannot_be_loaded(bad: str, tmp_path: Path, pools: list[RewardPool]) -> None:
    (tmp_path / "broken.py").write_text("import surely_no_such_module\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(1000)\n")
    for spec, says, seconds in [
        (f"{tmp_path}/broken.py:f", "No module named 'surely_no_such_module'", 60),
        (f"{bad}:nothing", "no function nothing", 60),
        ("nothing", "not a built-in name", 60),
        (f"{tmp_path}/dies.py:f", "loading ends the process", 60),
        (f"{tmp_path}/sleeps.py:f", "not loaded within 1 s", 1),
    ]:
        pools.append(pool := RewardPool([spec], [], 1, 1.0))
        with pytest.raises(ConfigError, match=f"reward.fns.*{says}"):
            pool.ready(seconds)
        groups = set(pool.pids)
        pool.close()
        assert_gone(groups)


def test_workers_that_cannot_be_kept_alive_end_the_run(tmp_path: Path, pools: list[RewardPool]) -> None:
    file = tmp_path / "once.py"
    file.write_text(
        "import os, pathlib, threading, time\n"
        f"marker = pathlib.Path({str(tmp_path / 'marker')!r})\n"
        "if marker.exists():\n    os._exit(9)\n"
        "def once(prompt, response):\n    marker.touch()\n    os._exit(9)\n"
    )
    pools.append(pool := RewardPool([f"{file}:once"], [], 1, 30.0))
    pool.ready(60)
    pool.submit(0, prompt(), "x")
    pool.submit(1, prompt(), "x")
    with pytest.raises(RewardError, match="5 times in a row.*exit code 9.*once"):
        collect(pool)


def test_values_that_cannot_work(bad: str) -> None:
    fn = f"{bad}:act"
    for fns, weights, workers, seconds, says in [
        ([], [], 1, 1.0, "reward.fns: empty"),
        ([fn, fn], [], 1, 1.0, "reward.fns: bad.act is there 2 times"),
        ([fn], [1.0, 2.0], 1, 1.0, "reward.weights: 2 weights for 1"),
        ([fn], [float("nan")], 1, 1.0, "reward.weights"),
        ([fn], [], 0, 1.0, "reward.workers: 0"),
        ([fn], [], 1, 0.0, "reward.timeout_seconds"),
    ]:
        with pytest.raises(ConfigError, match=says):
            RewardPool(fns, weights, workers, seconds)


def test_names() -> None:
    assert names(["gsm8k", "pkg.module.judge", "dir/file.py:score"]) == ["gsm8k", "judge", "score"]
    assert names(["a.py:score", "dir/b.py:score", "c.d.score"]) == ["a.score", "b.score", "c.d.score"]


def test_built_ins_and_the_example_through_the_pool(pools: list[RewardPool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    fns = ["gsm8k", "boxed_math", "format", "examples/custom_reward.py:score", "rewards.gsm8k.gsm8k_strict"]
    pools.append(pool := RewardPool(fns, [], 1, 60.0))
    pool.ready(60)
    pool.submit(0, prompt(words=4), "two WORDS \\boxed{3} ok")
    result = collect(pool)[0]
    assert result.status == {}
    assert result.parts == {
        "gsm8k": 1.0, "boxed_math": 1.0, "format": 0.0, "score": 0.875, "gsm8k_strict": 0.0,
        "boxed": 1.0, "length": 1.0, "shouting": 0.25, "words": 4.0,
    }  # fmt: skip
    assert result.reward == 2.875


def test_a_replacement_starts_where_the_first_did(pools: list[RewardPool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    pools.append(pool := RewardPool(["examples/custom_reward.py:score"], [], 1, 60.0))
    pool.ready(60)
    monkeypatch.chdir("/")
    os.kill(pool.pids[0], signal.SIGKILL)
    pool.submit(0, prompt(words=1), "one")
    assert collect(pool)[0].reward == 1.0


def test_nothing_outlives_a_killed_driver(bad: str) -> None:
    """Workers that wait, hang, or have left children behind: all gone after SIGKILL of the driver."""
    code = f"""
import sys, time
from rewards.pool import RewardPool
from rlcore.records import Prompt
pool = RewardPool(["{bad}:act"], [], 4, 1000.0)
pool.ready(60)
for i, response in enumerate(["hang", "hold_interpreter", "fork_and_hang"]):
    pool.submit(i, Prompt("p", [], ""), response)
print(*pool.pids, flush=True)
time.sleep(1000)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert driver.stdout is not None
    groups = {int(pid) for pid in driver.stdout.readline().split()}
    assert len(groups) == 4
    until = time.monotonic() + 60
    while len(alive_in_groups(groups)) < 4 * 2 + 2:  # each with its guard, and two children
        assert time.monotonic() < until
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert_gone(groups)
    driver.stdout.close()


def test_a_sample_never_seems_to_have_run_since_the_beginning_of_time() -> None:
    """Seen in a real run: a read between two writes of the worker gave start 0 with a number, a false timeout."""
    writer = """
import mmap, sys, time
from rewards.worker import PROGRESS
page = mmap.mmap(int(sys.argv[1]), PROGRESS.size)
number = 0
while True:
    number += 1
    PROGRESS.pack_into(page, 0, time.monotonic(), 0, number)
    PROGRESS.pack_into(page, 0, 0.0, 0, 0)
"""
    with tempfile.TemporaryFile() as file:
        file.truncate(PROGRESS.size)
        process = object.__new__(Process)
        process._progress = mmap.mmap(file.fileno(), PROGRESS.size)
        child = subprocess.Popen([sys.executable, "-c", writer, str(file.fileno())], pass_fds=[file.fileno()])
        try:
            began = time.monotonic()
            running = []
            while time.monotonic() < began + 3 or not running:
                seen = process.progress()
                if seen.number:
                    running.append(time.monotonic() - seen.started)
            assert max(running) < 60
        finally:
            child.kill()
            child.wait()
