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
from collections.abc import Mapping
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
from tests.processes.pools import MISBEHAVING, PATIENCE, Start, Tagged, collect, fn, prompt, run

REPO = Path(__file__).parents[2]
BLAMES = {name: status for name, (_, status) in (FAILS | VALUES).items()} | dict.fromkeys(WORKS, "")


def file_fn(tmp_path: Path, name: str, code: str, **args: Any) -> Fn:
    file = tmp_path / f"{name}.py"
    file.write_text(code)
    return fn(name, str(file), **args)


def test_outcomes_of_each_function(start: Start) -> None:
    pool = start([fn("act"), fn("batch"), fn("later", name="async")], 2)
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


def blamed(
    start: Start, each: Fn, responses: list[str], blames: Mapping[str, str], workers: int = 1
) -> tuple[Pool, dict[str, Outcome]]:
    """Score `responses`: each must end with its status in `blames`, "" if it has none there. On a busy machine one that
    is fine may come late: then all of them are scored anew with more time."""
    for seconds in PATIENCE:
        pool = start([each], workers, seconds)
        pool.ready(60)
        outcomes = run(pool, responses)
        wrong = [(r, o) for r, o in zip(responses, outcomes, strict=True) if o.status != blames.get(r, "")]
        if not wrong or any(o.status != "timeout" for _, o in wrong):
            break
        pool.close()
    assert not wrong
    return pool, dict(zip(responses, outcomes, strict=True))


def still_works(pool: Pool, workers: int) -> None:
    """Every worker has been replaced that had to be."""
    pool.ready(60)
    assert len(set(pool.pids)) == workers


def test_every_failure_costs_its_own_sample_only(start: Start, tagged: Tagged) -> None:
    pool, of = blamed(start, fn("act"), [*BLAMES] + ["fine"] * 100, BLAMES, workers=2)
    assert all((o.reward is None) == bool(o.status) for o in of.values())
    assert "500 MiB, reward.memory_mib" in of["eat"].message and "_eat" in of["eat"].traceback
    assert of["segfault"].message == "ended its process: signal SIGSEGV"
    assert of["hang"].message.startswith("took longer than ") and "(reward.timeout_seconds)" in of["hang"].message
    assert "in _recurse" in of["recurse"].traceback and "string_at" in of["segfault"].traceback
    still_works(pool, 2)
    pool.close()
    tagged.assert_gone()


# What a kind of function that is called otherwise can do with a failure that is like it in one of kind `act`.
OF_ITS_KIND = {
    "batch": (["hang", "exit", "eat", "raise", "sys_exit", "gold", "none", "nan", "fork"], {"none": ""}),
    "later": (
        ["hang", "spin", "sleep", "stubborn", "cancel_all", "stop_loop", "exit", "close_pipes", "eat", "raise",
         "sys_exit", "timeout_error", "none", "fork", "leave_alarm", "exit_later"],
        {"spin": "timeout", "sleep": "timeout", "stubborn": "timeout", "cancel_all": "crashed", "stop_loop": "crashed"},
    ),
    "batch_later": (["sleep", "spin", "stop_loop", "exit", "raise", "none"],
                    {"sleep": "timeout", "spin": "timeout", "stop_loop": "crashed", "none": ""}),
}  # fmt: skip


@pytest.mark.parametrize("function", OF_ITS_KIND)
def test_failures_among_samples_that_are_scored_together(function: str, start: Start, tagged: Tagged) -> None:
    """In a batch or an event loop that others are in: they are scored again, alone."""
    faults, own = OF_ITS_KIND[function]
    pool, of = blamed(start, fn(function), faults + ["fine"] * 100, BLAMES | own, workers=2)
    assert all((o.reward is None) == bool(o.status) for r, o in of.items() if r != "none")
    still_works(pool, 2)
    pool.close()
    tagged.assert_gone()


def test_where_a_sample_hangs_is_told(start: Start) -> None:
    """A worker that is to be ended is given a moment to say it, too short now and then on a busy machine."""
    pool = start([fn("act")], 2, 0.2)
    pool.ready(60)
    told = [o.traceback for o in run(pool, ["hang", "hold_interpreter"] * 4)]
    assert any("in act" in t for t in told[::2]) and any(MISBEHAVING in t for t in told[1::2])
    assert not any("worker.py" in t for t in told)


def test_what_moved_to_another_session_ends_without_its_guard_too(start: Start, tagged: Tagged) -> None:
    """Orphans of a guard that is killed are nobody's children any more; they are found by their mark."""
    pool = start([fn("act")], 1, 60.0)
    pool.ready(60)
    assert [o.status for o in run(pool, ["leave_children", "kill_guard", "fine"])] == ["", "crashed", ""]
    pool.close()
    tagged.assert_gone()


@pytest.mark.parametrize("returned", ["[1.0]", "[1.0] * (n - 1) if n > 1 else [1.0]", "float(n)"])
def test_a_list_of_another_length_is_no_reward_of_any_sample(tmp_path: Path, start: Start, returned: str) -> None:
    """Scored one by one a list of one would fit every sample: a value of one spread over all."""
    (tmp_path / "short.py").write_text(
        "import time\ndef short(prompts, responses):\n    time.sleep(0.2)\n    n = len(prompts)\n"
        f"    return {returned}\n"
    )
    pool = start([fn("short", str(tmp_path / "short.py"))], 1, 10.0, 2048)
    outcomes = run(pool, ["a"] * 40)
    bad = [o for o in outcomes if o.status == "bad_value"]
    assert len(bad) >= 38 and all("short returned" in o.message for o in bad)


def test_memory_of_children_and_shared_memory_count(start: Start) -> None:
    pool = start([fn("act")], 2, 60.0)  # somebody looks once a second: at both at once
    pool.ready(60)
    outcomes = run(pool, ["eat_shared", "child_eats", "fine"])
    assert [o.status for o in outcomes] == ["crashed", "crashed", ""]
    assert all(o.message == "held more than 500 MiB (reward.memory_mib)" for o in outcomes[:2])


def test_the_other_functions_of_a_failed_sample_still_score_it(start: Start) -> None:
    pool = start([fn("act"), fn("act", name="again"), Fn("gsm8k", "gsm8k")])
    pool.ready(60)
    pool.submit(0, prompt(), Response("exit"))
    outcomes = collect(pool)[0]
    assert [outcomes[n].status for n in pool.names] == ["crashed", "crashed", ""]
    assert outcomes["gsm8k"].reward == 0.0


def test_no_failure_is_charged_to_the_next_sample(start: Start) -> None:
    """A thread left behind ends or blocks the process while the samples after it are scored."""
    for bad in ("exit_later", "hold_later", "leave_alarm"):
        blamed(start, fn("act"), [bad] + ["slow"] * 5, {})


def test_a_worker_that_is_blocked_before_its_next_sample_is_replaced(start: Start) -> None:
    """It has begun no sample whose time could be over: it is given 5 s."""
    statuses: list[str] = []
    for seconds in PATIENCE:
        pool = start([fn("act")], 1, seconds)
        run(pool, ["hold_later"])
        time.sleep(0.3)  # the thread holds the interpreter before the next sample is there
        statuses = [o.status for o in run(pool, ["fine"] * 5)]
        if statuses == [""] * 5:
            break
    assert statuses == [""] * 5


def test_a_coroutine_that_blocks_costs_no_other_its_time(tmp_path: Path, start: Start) -> None:
    code = (
        "import asyncio, time\n"
        "async def waits(prompt, response):\n"
        "    for _ in range(2):\n"
        "        await asyncio.sleep(0.01)\n"
        "        time.sleep(float(response))\n"
        "    return 1.0\n"
    )
    outcomes: list[Outcome] = []
    for seconds in PATIENCE:  # all together need 2.5 times as long as one may take, each alone a quarter of it
        pool = start([file_fn(tmp_path, "waits", code)], 1, seconds)
        outcomes = run(pool, ["0", *[f"{seconds / 8}"] * 10, "0"])
        if all(o.reward == 1.0 for o in outcomes):
            break
    assert [o.status for o in outcomes] == [""] * 12


def test_a_forked_copy_takes_no_step_of_other_coroutines(tmp_path: Path, start: Start) -> None:
    log = tmp_path / "log"
    code = (
        "import asyncio, os\n"
        "async def writes(prompt, response):\n"
        "    await asyncio.sleep(0.2)\n"
        "    if response == 'fork':\n        os.fork()\n        await asyncio.sleep(0)\n"
        f"    with open({str(log)!r}, 'a') as file:\n        file.write(prompt.id + '\\n')\n"
        "    return 1.0\n"
    )
    pool = start([file_fn(tmp_path, "writes", code)], 1)
    pool.ready(60)
    assert [o.reward for o in run(pool, ["fork"] + ["write"] * 30)] == [1.0] * 31
    time.sleep(0.3)
    assert sorted(log.read_text().split()) == sorted(f"test:{i}" for i in range(31))


def test_memory_that_earlier_samples_kept_is_not_charged_to_a_later_one(tmp_path: Path, start: Start) -> None:
    code = "kept = []\ndef leaks(prompt, response):\n    kept.append(bytearray(int(response) << 20))\n    return 1.0\n"
    pool = start([file_fn(tmp_path, "leaks", code)], 1, 30.0, 300)
    pool.ready(60)
    outcomes = run(pool, ["90"] * 10 + ["1000"] + ["90"] * 3)
    assert [o.status for o in outcomes] == [""] * 10 + ["error"] + [""] * 3


def test_timeout_counts_from_the_beginning_of_the_call(start: Start) -> None:
    """Samples of 0.05 s behind one worker: the last waits longer than the timeout and is still scored."""
    outcomes: list[Outcome] = []
    for seconds in PATIENCE:
        pool = start([fn("act")], 1, seconds)
        outcomes = run(pool, ["slow"] * int(30 * seconds))
        if all(o.reward == 1.0 for o in outcomes):
            break
    assert all(o.reward == 1.0 for o in outcomes)


def test_a_sample_that_overran_unwatched_is_a_timeout_too(start: Start) -> None:
    pool = start([fn("act")], 1, 0.01)
    pool.ready(60)
    pool.submit(0, prompt(), Response("slow"))
    assert select.select([pool], [], [], 60)[0]  # finished before the driver looks
    assert collect(pool)[0]["act"].status == "timeout"


def test_workers_killed_from_outside_cost_nothing(start: Start) -> None:
    pool = start([fn("act"), fn("later")], 2)
    pool.ready(60)
    os.kill(pool.pids[0], signal.SIGKILL)
    os.kill(psutil.Process(pool.pids[1]).ppid(), signal.SIGKILL)  # its guard
    for i in range(300):
        pool.submit(i, prompt(i), Response("fine"))
    results = collect(pool)
    assert len(results) == 300 and all(o.reward == 1.0 for r in results.values() for o in r.values())


def test_megabytes_go_through_and_submit_does_not_wait(start: Start) -> None:
    pool = start([Fn("gsm8k", "gsm8k")], 1)
    for i in range(4):
        pool.submit(i, prompt(), Response("x" * 10_000_000 + " 3"))
    assert pool.pending == 4
    assert all(r["gsm8k"].reward == 1.0 for r in collect(pool).values())


def test_the_file_descriptor_says_when_to_poll(start: Start) -> None:
    pool = start([fn("act")], 1)
    pool.ready(60)
    assert pool.poll(0.0) == [] and not select.select([pool], [], [], 0)[0]
    pool.submit(0, prompt(), Response("slow"))
    assert select.select([pool], [], [], 60)[0]
    assert [key for key, _ in pool.poll(10.0)] == [0]
    pool.submit(1, prompt(), Response("fine"), names=[])
    assert select.select([pool], [], [], 0)[0] and pool.poll(0.0) == [(1, {})]
    assert not select.select([pool], [], [], 0)[0]


def test_same_verdict_from_every_worker(tmp_path: Path, start: Start) -> None:
    code = (
        "import random\n"
        "def dice(prompt, response):\n"
        "    return random.random() + len(str({'a', 'b', response})) + hash(response) % 97\n"
    )
    scores: list[list[float | None]] = []
    for workers in (1, 3):
        pool = start([file_fn(tmp_path, "dice", code)], workers)
        pool.ready(60)
        scores.append([o.reward for o in run(pool, [f"response {i % 7}" for i in range(60)])])
    assert scores[0] == scores[1] and len(set(scores[0])) == 60


def test_functions_that_cannot_be_loaded(tmp_path: Path, start: Start, tagged: Tagged) -> None:
    for each, says, seconds in [
        (file_fn(tmp_path, "broken", "import surely_no_such_module\n"), "No module named 'surely_no_such_module'", 60),
        (fn("nothing"), "no function nothing", 60),
        (Fn("nothing", "nothing"), "not a built-in name", 60),
        (file_fn(tmp_path, "dies", "import os\nos._exit(7)\n"), "loading ends the process.*exit code 7", 60),
        (file_fn(tmp_path, "sleeps", "import time\ntime.sleep(1000)\n"), "not loaded within 0.3 s", 0.3),
        (file_fn(tmp_path, "large", "kept = bytearray(3 << 30)\n"), "MemoryError", 60),
    ]:
        pool = start([each])
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
    rule: str, options: dict, words: str, start: Start
) -> None:
    pool = start([Fn(rule, rule, options)], memory_mib=2048, context={"max_response_tokens": 99})
    with pytest.raises(ConfigError, match=words):
        pool.ready(60.0)


def test_workers_that_cannot_be_kept_alive_end_the_run(tmp_path: Path, start: Start) -> None:
    code = (
        "import os, pathlib\n"
        f"marker = pathlib.Path({str(tmp_path / 'marker')!r})\n"
        "if marker.exists():\n    os._exit(9)\n"
        "def once(prompt, response):\n    marker.touch()\n    os._exit(9)\n"
    )
    pool = start([file_fn(tmp_path, "once", code)], 1)
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


def test_gold_answers_are_checked_by_the_functions_that_can(start: Start) -> None:
    pool = start([Fn("countdown", "countdown"), fn("act")], 2)
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


def test_gold_answers_are_read_many_at_a_time(tmp_path: Path, start: Start) -> None:
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
    pool, read = start(fns), gold_name("gsm8k")
    answers = ["gold", "fine", "fine"] * 40
    golds = [dataclasses.replace(prompt(i), answer=answer) for i, answer in enumerate(answers)]
    check_gold(pool, enumerate(golds))
    while not (together := dict(pool.poll(60.0))):
        pass
    assert len(together) == 64  # of one call
    together |= collect(pool)
    assert [together[i][read].status for i in range(120)] == ["unparseable_gold", "", ""] * 40
    assert log.read_text().split() == [gold.id for gold in golds]

    answers = ["fine", "hang", "gold", "exit", "fine", "raise", "timeout_error", "segfault", "sys_exit", "fine"]
    golds = [dataclasses.replace(prompt(i), answer=answer) for i, answer in enumerate(answers)]
    blames = [BLAMES[answer] for answer in answers]
    for seconds in PATIENCE:
        pool = start(fns, 1, seconds)
        check_gold(pool, enumerate(golds))
        together = collect(pool)
        alone = {}
        for i, gold in enumerate(golds):
            check_gold(pool, [(i, gold)])
            alone |= collect(pool)
        if [alone[i][read].status for i in range(10)] == [together[i][read].status for i in range(10)] == blames:
            break
    assert [together[i][read][:4] for i in range(10)] == [alone[i][read][:4] for i in range(10)]
    assert [alone[i][read].status for i in range(10)] == blames


def test_built_ins_and_the_example_through_the_pool(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    specs = ["gsm8k", "boxed_math", "format", "examples/custom_reward.py:score", "rewards.gsm8k.gsm8k_strict"]
    pool = start([Fn(f"f{i}", spec) for i, spec in enumerate(specs)], 1, 60.0)
    pool.ready(60)
    pool.submit(0, prompt(words=4), Response("two WORDS \\boxed{3} ok"))
    outcomes = collect(pool)[0]
    assert [outcomes[f"f{i}"].reward for i in range(5)] == [1.0, 1.0, 0.0, 0.875, 0.0]
    assert outcomes["f3"].parts == {"length": 1.0, "shouting": 0.25, "words": 4.0}


def test_a_replacement_starts_where_the_first_did(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    pool = start([Fn("score", "examples/custom_reward.py:score")], 1, 60.0)
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
            while time.monotonic() < began + 2 or not running:
                seen = page.running()
                if seen.number:
                    running.append(time.monotonic() - seen.started)
            assert max(running) < 60
        finally:
            child.kill()
            child.wait()
