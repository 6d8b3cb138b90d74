"""The reward pool with real processes: what a bad function costs, and that nothing is left behind."""

from __future__ import annotations

import dataclasses
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

import psutil
import pytest

from rewards.pools import check_gold, gold_name, reward_pool
from rewards.signatures import Fn
from rlcore.errors import ConfigError, RewardError
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.pool import Pool
from rlcore.isolated.shared_state import PAGE_BYTES, Page
from rlcore.records import Response
from tests.processes.misbehaving import FAILS, VALUES, WORKS
from tests.processes.pools import MISBEHAVING, Tagged, collect, fn, prompt, run

REPO = Path(__file__).parents[2]
MIB = 500


@pytest.fixture
def pools() -> Iterator[list[Pool]]:
    made: list[Pool] = []
    yield made
    for pool in made:
        pool.close()


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> Tagged:
    return Tagged(monkeypatch.setenv)


def file_fn(tmp_path: Path, name: str, code: str, **args: Any) -> Fn:
    file = tmp_path / f"{name}.py"
    file.write_text(code)
    return fn(name, str(file), **args)


def test_outcomes_of_each_function(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act"), fn("batch"), fn("later", name="async")], 2, 30.0, MIB))
    pool.ready(60)
    pool.submit("a", prompt(), Response("score"))
    pool.submit(("b", 1), prompt(), Response("raise"), names=["batch"])
    assert pool.pending == 2
    results = collect(pool)
    assert set(results["a"]) == {"act", "batch", "async"}
    assert all(o[:3] == (0.5, {"half": 0.5}, "") and o.seconds > 0 for o in results["a"].values())
    assert set(results["b", 1]) == {"batch"}
    failed = results["b", 1]["batch"]
    assert failed[:4] == (None, {}, "error", "RuntimeError: no such luck")
    assert failed.traceback.splitlines()[1].strip().startswith(f'File "{MISBEHAVING}"') and "_raise" in failed.traceback
    assert pool.pending == 0 and pool.poll(wait_seconds=1000.0) == []


@pytest.mark.parametrize("function", ["act", "batch", "later", "batch_later"])
def test_every_failure_costs_its_own_sample_only(function: str, pools: list[Pool], tagged: Tagged) -> None:
    expected = {name: status for name, (_, status) in (FAILS | VALUES).items()} | dict.fromkeys(WORKS, "")
    if "batch" in function:
        expected |= {"none": ""}  # "does not apply", in a list
    if "later" in function:
        expected |= {"spin": "timeout", "sleep": "timeout", "stubborn": "timeout"}
        expected |= {"cancel_all": "crashed", "stop_loop": "crashed"}
    pools.append(pool := reward_pool([fn(function)], 2, 1.5, MIB))
    pool.ready(60)
    responses = [*expected] + ["fine"] * 100
    outcomes = run(pool, responses)
    wrong = [(r, o) for r, o in zip(responses, outcomes, strict=True) if o.status != expected.get(r, "")]
    assert not wrong
    by_name = dict(zip(responses, outcomes, strict=True))
    assert all((o.reward is None) == bool(o.status) for r, o in by_name.items() if r != "none")
    assert "500 MiB, reward.memory_mib" in by_name["eat"].message and "_eat" in by_name["eat"].traceback
    assert by_name["segfault"].message == "ended its process: signal SIGSEGV"
    assert by_name["hang"].message == "took longer than 1.5 s (reward.timeout_seconds)"
    assert "in _recurse" in by_name["recurse"].traceback
    assert "string_at" in by_name["segfault"].traceback and "in act" in by_name["hang"].traceback
    assert MISBEHAVING in by_name["hold_interpreter"].traceback and "worker.py" not in by_name["hang"].traceback
    pool.ready(60)
    assert len(set(pool.pids)) == 2 and [o.status for o in run(pool, ["fine"] * 4)] == [""] * 4
    pool.close()
    tagged.assert_gone()


def test_what_moved_to_another_session_ends_without_its_guard_too(pools: list[Pool], tagged: Tagged) -> None:
    """Orphans of a guard that is killed are nobody's children any more; they are found by their mark."""
    pools.append(pool := reward_pool([fn("act")], 1, 60.0, MIB))
    pool.ready(60)
    assert [o.status for o in run(pool, ["leave_children", "kill_guard", "fine"])] == ["", "crashed", ""]
    pool.close()
    tagged.assert_gone()


@pytest.mark.parametrize("returned", ["[1.0]", "[1.0] * (n - 1) if n > 1 else [1.0]", "float(n)"])
def test_a_list_of_another_length_is_no_reward_of_any_sample(tmp_path: Path, pools: list[Pool], returned: str) -> None:
    """Scored one by one a list of one would fit every sample: a value of one spread over all."""
    (tmp_path / "short.py").write_text(
        "import time\ndef short(prompts, responses):\n    time.sleep(0.2)\n    n = len(prompts)\n"
        f"    return {returned}\n"
    )
    pools.append(pool := reward_pool([fn("short", str(tmp_path / "short.py"))], 1, 10.0, 2048))
    outcomes = run(pool, ["a"] * 40)
    bad = [o for o in outcomes if o.status == "bad_value"]
    assert len(bad) >= 38 and all("short returned" in o.message for o in bad)


def test_memory_of_children_and_shared_memory_count(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act")], 1, 60.0, MIB))
    pool.ready(60)
    outcomes = run(pool, ["eat_shared", "child_eats", "fine"])
    assert [o.status for o in outcomes] == ["crashed", "crashed", ""]
    assert all(o.message == "held more than 500 MiB (reward.memory_mib)" for o in outcomes[:2])


def test_the_other_functions_of_a_failed_sample_still_score_it(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act"), fn("act", name="again"), Fn("gsm8k", "gsm8k")], 1, 1.0, MIB))
    pool.ready(60)
    pool.submit(0, prompt(), Response("exit"))
    outcomes = collect(pool)[0]
    assert [outcomes[n].status for n in pool.names] == ["crashed", "crashed", ""]
    assert outcomes["gsm8k"].reward == 0.0


def test_no_failure_is_charged_to_the_next_sample(pools: list[Pool]) -> None:
    """A thread left behind ends or blocks the process while the samples after it are scored."""
    pools.append(pool := reward_pool([fn("act")], 1, 2.0, MIB))
    pool.ready(60)
    for bad in ("exit_later", "hold_later", "leave_alarm"):
        assert [o.status for o in run(pool, [bad] + ["slow"] * 5)] == [""] * 6
    run(pool, ["hold_later"])
    time.sleep(0.3)  # the thread holds the interpreter before the next sample is there
    assert [o.status for o in run(pool, ["slow"] * 5)] == [""] * 5


def test_a_coroutine_that_blocks_costs_no_other_its_time(tmp_path: Path, pools: list[Pool]) -> None:
    code = (
        "import asyncio, time\n"
        "async def waits(prompt, response):\n"
        "    for _ in range(4):\n"
        "        await asyncio.sleep(0.1)\n"
        "        response == 'wait' or time.sleep(0.3)\n"
        "    return 1.0\n"
    )
    pools.append(pool := reward_pool([file_fn(tmp_path, "waits", code)], 1, 2.0, MIB))
    pool.ready(60)
    assert [o.status for o in run(pool, ["wait", "block", "block", "block", "wait"])] == [""] * 5


def test_a_forked_copy_takes_no_step_of_other_coroutines(tmp_path: Path, pools: list[Pool]) -> None:
    log = tmp_path / "log"
    code = (
        "import asyncio, os\n"
        "async def writes(prompt, response):\n"
        "    await asyncio.sleep(0.2)\n"
        "    if response == 'fork':\n        os.fork()\n        await asyncio.sleep(0)\n"
        f"    with open({str(log)!r}, 'a') as file:\n        file.write(prompt.id + '\\n')\n"
        "    return 1.0\n"
    )
    pools.append(pool := reward_pool([file_fn(tmp_path, "writes", code)], 1, 30.0, MIB))
    pool.ready(60)
    assert [o.reward for o in run(pool, ["fork"] + ["write"] * 30)] == [1.0] * 31
    time.sleep(0.3)
    assert sorted(log.read_text().split()) == sorted(f"test:{i}" for i in range(31))


def test_memory_that_earlier_samples_kept_is_not_charged_to_a_later_one(tmp_path: Path, pools: list[Pool]) -> None:
    code = "kept = []\ndef leaks(prompt, response):\n    kept.append(bytearray(int(response) << 20))\n    return 1.0\n"
    pools.append(pool := reward_pool([file_fn(tmp_path, "leaks", code)], 1, 30.0, 300))
    pool.ready(60)
    outcomes = run(pool, ["90"] * 10 + ["1000"] + ["90"] * 3)
    assert [o.status for o in outcomes] == [""] * 10 + ["error"] + [""] * 3


def test_timeout_counts_from_the_beginning_of_the_call(pools: list[Pool]) -> None:
    """40 samples of 0.05 s behind one worker: the last waits longer than the timeout and is still scored."""
    pools.append(pool := reward_pool([fn("act")], 1, 0.9, MIB))
    pool.ready(60)
    assert all(o.reward == 1.0 for o in run(pool, ["slow"] * 40))


def test_a_sample_that_overran_unwatched_is_a_timeout_too(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act")], 1, 0.01, MIB))
    pool.ready(60)
    pool.submit(0, prompt(), Response("slow"))
    assert select.select([pool], [], [], 60)[0]  # finished before the driver looks
    assert collect(pool)[0]["act"].status == "timeout"


def test_workers_killed_from_outside_cost_nothing(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act"), fn("later")], 2, 30.0, MIB))
    pool.ready(60)
    os.kill(pool.pids[0], signal.SIGKILL)
    os.kill(psutil.Process(pool.pids[1]).ppid(), signal.SIGKILL)  # its guard
    for i in range(300):
        pool.submit(i, prompt(i), Response("fine"))
    results = collect(pool)
    assert len(results) == 300 and all(o.reward == 1.0 for r in results.values() for o in r.values())


def test_megabytes_go_through_and_submit_does_not_wait(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([Fn("gsm8k", "gsm8k")], 1, 30.0, MIB))
    for i in range(4):
        pool.submit(i, prompt(), Response("x" * 10_000_000 + " 3"))
    assert pool.pending == 4
    assert all(r["gsm8k"].reward == 1.0 for r in collect(pool).values())


def test_the_file_descriptor_says_when_to_poll(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([fn("act")], 1, 30.0, MIB))
    pool.ready(60)
    assert pool.poll(0.0) == [] and not select.select([pool], [], [], 0)[0]
    pool.submit(0, prompt(), Response("slow"))
    assert select.select([pool], [], [], 60)[0]
    assert [key for key, _ in pool.poll(10.0)] == [0]
    pool.submit(1, prompt(), Response("fine"), names=[])
    assert select.select([pool], [], [], 0)[0] and pool.poll(0.0) == [(1, {})]
    assert not select.select([pool], [], [], 0)[0]


def test_same_verdict_from_every_worker(tmp_path: Path, pools: list[Pool]) -> None:
    code = (
        "import random\n"
        "def dice(prompt, response):\n"
        "    return random.random() + len(str({'a', 'b', response})) + hash(response) % 97\n"
    )
    scores: list[list[float | None]] = []
    for workers in (1, 3):
        pools.append(pool := reward_pool([file_fn(tmp_path, "dice", code)], workers, 30.0, MIB))
        pool.ready(60)
        scores.append([o.reward for o in run(pool, [f"response {i % 7}" for i in range(60)])])
    assert scores[0] == scores[1] and len(set(scores[0])) == 60


def test_functions_that_cannot_be_loaded(tmp_path: Path, pools: list[Pool], tagged: Tagged) -> None:
    for each, says, seconds in [
        (file_fn(tmp_path, "broken", "import surely_no_such_module\n"), "No module named 'surely_no_such_module'", 60),
        (fn("nothing"), "no function nothing", 60),
        (Fn("nothing", "nothing"), "not a built-in name", 60),
        (file_fn(tmp_path, "dies", "import os\nos._exit(7)\n"), "loading ends the process.*exit code 7", 60),
        (file_fn(tmp_path, "sleeps", "import time\ntime.sleep(1000)\n"), "not loaded within 1 s", 1),
        (file_fn(tmp_path, "large", "kept = bytearray(3 << 30)\n"), "MemoryError", 60),
    ]:
        pools.append(pool := reward_pool([each], 1, 1.0, MIB))
        with pytest.raises(ConfigError, match=f"reward.fns.*{says}"):
            pool.ready(seconds)
        pool.close()
        tagged.assert_gone()


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("repetition", {"ngram": 0}, "ngram"),
        ("repetition", {"ngram": "abc"}, "reward.args.repetition.ngram: 'abc' is not int"),
        ("repetition", {"penalty": "abc"}, "reward.args.repetition.penalty: 'abc' is not float"),
        ("repetition", {"penalty": True}, "reward.args.repetition.penalty: True is not float"),
        ("judge", {"url": "http://127.0.0.1:1", "model": "m", "retries": "many"}, "judge.retries: 'many' is not int"),
        ("language", {"language": "xx"}, "xx"),
        ("length_cosine", {"of": "nosuch"}, "nosuch"),
        ("overlong", {"fraction": 2.0}, "overlong.fraction is 2.0"),
    ],
)
def test_values_of_options_are_refused_before_the_first_sample(
    rule: str, options: dict, words: str, pools: list[Pool]
) -> None:
    pools.append(pool := reward_pool([Fn(rule, rule, options)], 1, 10.0, 2048, {"max_response_tokens": 99}))
    with pytest.raises(ConfigError, match=words):
        pool.ready(60.0)


def test_workers_that_cannot_be_kept_alive_end_the_run(tmp_path: Path, pools: list[Pool]) -> None:
    code = (
        "import os, pathlib\n"
        f"marker = pathlib.Path({str(tmp_path / 'marker')!r})\n"
        "if marker.exists():\n    os._exit(9)\n"
        "def once(prompt, response):\n    marker.touch()\n    os._exit(9)\n"
    )
    pools.append(pool := reward_pool([file_fn(tmp_path, "once", code)], 1, 30.0, MIB))
    pool.ready(60)
    pool.submit(0, prompt(), Response("x"))
    pool.submit(1, prompt(), Response("x"))
    with pytest.raises(RewardError, match="5 times in a row.*exit code 9.*once"):
        collect(pool)


def test_values_that_cannot_work() -> None:
    for workers, seconds, memory, says in [
        (0, 1.0, 1, "reward.workers: 0"),
        (1, 0.0, 1, "reward.timeout_seconds"),
        (1, float("nan"), 1, "reward.timeout_seconds"),
        (1, 1.0, 0, "reward.memory_mib: 0"),
    ]:
        with pytest.raises(ConfigError, match=says):
            reward_pool([fn("act")], workers, seconds, memory)


def test_gold_answers_are_checked_by_the_functions_that_can(pools: list[Pool]) -> None:
    pools.append(pool := reward_pool([Fn("countdown", "countdown"), fn("act")], 2, 30.0, MIB))
    pool.ready(60)
    good, bad = prompt(0, nums=[1, 2, 3], target=6), prompt(1, nums="1, 2", target=6)
    check_gold(pool, [("good", good), ("bad", bad)])
    pool.submit("score", good, Response("<answer>1 + 2 + 3</answer>"), names=["countdown"])
    results = collect(pool)
    gold = gold_name("countdown")
    assert results["good"] == {gold: Outcome(None, seconds=results["good"][gold].seconds)}
    assert list(results["bad"]) == [gold] and results["bad"][gold].status == "unparseable_gold"
    assert "nums" in results["bad"][gold].message
    assert results["score"]["countdown"].reward == 1.0


def test_gold_answers_are_read_many_at_a_time(tmp_path: Path, pools: list[Pool]) -> None:
    """One that cannot be read costs no second look at the others; one that hangs or crashes costs only itself."""
    log = tmp_path / "log"
    code = f"""
from rewards import GOLD
from tests.processes.misbehaving import act
GOLD["gsm8k"] = __file__ + ":reads"

def unused(prompt, response):
    return 1.0

def reads(prompt):
    assert not prompt.tokens and not prompt.messages
    with open({str(log)!r}, "a") as file:
        file.write(prompt.id + "\\n")
    act(prompt, prompt.answer)
"""
    fns = [file_fn(tmp_path, "unused", code), Fn("gsm8k", "gsm8k")]  # loading the first changes what reads for gsm8k
    pools.append(pool := reward_pool(fns, 1, 2.0, MIB))
    pool.ready(60)
    answers = ["gold", "fine", "fine"] * 40
    golds = [dataclasses.replace(prompt(i), answer=answer) for i, answer in enumerate(answers)]
    check_gold(pool, enumerate(golds))
    together, gold = collect(pool), gold_name("gsm8k")
    assert [together[i][gold].status for i in range(120)] == ["unparseable_gold", "", ""] * 40
    assert len({together[i][gold].seconds for i in range(120)}) < 5, "each call shares its seconds out"
    assert log.read_text().split() == [row.id for row in golds]

    answers = ["fine", "hang", "gold", "exit", "fine", "raise", "timeout_error", "segfault", "sys_exit", "fine"]
    golds = [dataclasses.replace(prompt(i), answer=answer) for i, answer in enumerate(answers)]
    check_gold(pool, enumerate(golds))
    together = collect(pool)
    for i, row in enumerate(golds):
        check_gold(pool, [(i, row)])
        alone = collect(pool)[i][gold]
        assert together[i][gold][:4] == alone[:4], row.answer
        assert alone.status == (FAILS[row.answer][1] if row.answer in FAILS else "")


def test_built_ins_and_the_example_through_the_pool(pools: list[Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    specs = ["gsm8k", "boxed_math", "format", "examples/custom_reward.py:score", "rewards.gsm8k.gsm8k_strict"]
    pools.append(pool := reward_pool([Fn(f"f{i}", spec) for i, spec in enumerate(specs)], 1, 60.0, MIB))
    pool.ready(60)
    pool.submit(0, prompt(words=4), Response("two WORDS \\boxed{3} ok"))
    outcomes = collect(pool)[0]
    assert [outcomes[f"f{i}"].reward for i in range(5)] == [1.0, 1.0, 0.0, 0.875, 0.0]
    assert outcomes["f3"].parts == {"length": 1.0, "shouting": 0.25, "words": 4.0}


def test_a_replacement_starts_where_the_first_did(pools: list[Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    pools.append(pool := reward_pool([Fn("score", "examples/custom_reward.py:score")], 1, 60.0, MIB))
    pool.ready(60)
    monkeypatch.chdir("/")
    os.kill(pool.pids[0], signal.SIGKILL)
    pool.submit(0, prompt(words=1), Response("one"))
    assert collect(pool)[0]["score"].reward == 1.0


def test_nothing_outlives_a_killed_driver(tagged: Tagged) -> None:
    """Workers that wait, hang, or have left children behind: all gone after SIGKILL of the driver."""
    code = f"""
import sys, time
from rewards.pools import reward_pool
from rlcore.isolated.pool import Pool
from rewards.signatures import Fn
from rlcore.records import Prompt, Response
pool = reward_pool([Fn("act", "{MISBEHAVING}:act")], 4, 1000.0, 2000)
pool.ready(60)
for i, response in enumerate(["hang", "hold_interpreter", "fork_and_hang", "leave_children"]):
    pool.submit(i, Prompt("p", [], ""), Response(response))
print("ready", flush=True)
time.sleep(1000)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    until = time.monotonic() + 60
    while len(tagged.alive()) < 1 + 4 * 2 + 2 + 4:  # each worker has a guard; and the children
        assert time.monotonic() < until, tagged.alive()
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    tagged.assert_gone()
    driver.stdout.close()


def test_a_sample_never_seems_to_have_run_since_the_beginning_of_time() -> None:
    """Seen in a real run: a read between two writes of the worker gave start 0 with a number, a false timeout."""
    writer = """
import sys, time
from rlcore.isolated.shared_state import Page
page = Page(int(sys.argv[1]))
number = 0
while True:
    number += 1
    page.begin(time.monotonic(), False, number)
    page.idle()
"""
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_BYTES)
        page = Page(file.fileno())
        child = subprocess.Popen([sys.executable, "-c", writer, str(file.fileno())], pass_fds=[file.fileno()])
        try:
            began = time.monotonic()
            running = []
            while time.monotonic() < began + 3 or not running:
                seen = page.running()
                if seen.number:
                    running.append(time.monotonic() - seen.started)
            assert max(running) < 60
        finally:
            child.kill()
            child.wait()
