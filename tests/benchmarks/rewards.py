"""How fast answers are scored: `make bench-rewards`.

10,000 answers as GSM8K and MATH have them, a hundred of them pathological, through the reward manager and its killable
workers, and through a plain loop that calls math-verify with its own timeouts, as most trainers do. The two take turns
on the same parts of the data (A B A B); a part that the loop does not finish within its limit counts up to there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

from rewards.manager import RewardManager
from rlcore.config import RewardConfig
from rlcore.records import Prompt, Response

PATHOLOGICAL = (
    "9^{9^{9}}", "9**9**9", "10^{10^{10}}", "2^{99999999999}", "(2^{3^{7}})!", "123456789!", "((99!)!)!",
    "7^{7^{7^{7}}}", "\\binom{99999999}{4999999}", "(10^{9})!", "1" * 5000, "\\frac{" * 60 + "1" + "}{2}" * 60,
    "(" * 300 + "1" + ")" * 300,
    "\\sqrt{" * 200 + "2" + "}" * 200, "x^{10000000000}+1", "\\sum_{k=1}^{10^{9}} k^{k}", "3^{4^{5^{6}}} \\mod 7",
    "(x+y)^{2000}", "\\prod_{i=1}^{10000000} i", "e^{e^{e^{e^{e^{9}}}}}",
)  # fmt: skip


def answers(count: int, seed: int = 0) -> list[tuple[str, str, bool]]:
    """(gold, response, whether it is pathological), mixed."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        if i % 100 == 99:
            made.append(
                (str(rng.randint(1, 99)), f"So it is \\boxed{{{PATHOLOGICAL[i // 100 % len(PATHOLOGICAL)]}}}", True)
            )
        elif rng.random() < 0.5:
            value = rng.randint(1, 5000)
            said = value if rng.random() < 0.6 else rng.randint(1, 5000)
            text = f"She has {value} - 1 + 1 left. The answer is \\boxed{{{said:,}}}."
            made.append((f"It adds up.\n#### {value}", text, False))
        else:
            gold, same, other = _mathematics(rng)
            made.append(
                (f"Hence \\boxed{{{gold}}}.", f"Therefore $\\boxed{{{same if rng.random() < 0.6 else other}}}$", False)
            )
    rng.shuffle(made)
    return made


def _mathematics(rng: random.Random) -> tuple[str, str, str]:
    """A gold answer, another way to write it, and something else."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    return rng.choice([
        (f"\\frac{{{a}}}{{{b}}}", f"\\dfrac{{{a * c}}}{{{b * c}}}", f"\\frac{{{b}}}{{{a + b}}}"),
        (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{b}}} \\cdot {a}", f"{b}\\sqrt{{{a}}}"),
        (f"({a}, {b}]", f"\\left({a},{b}\\right]", f"[{a}, {b}]"),
        (f"x^2+{a}x+{b}", f"{b}+{a}x+x^{{2}}", f"x^2-{a}x+{b}"),
        (f"\\{{{a}, {a + b}\\}}", f"\\{{{a + b},{a}\\}}", f"\\{{{a}, {b}\\}}"),
        (f"{a}\\pi", f"\\pi \\cdot {a}", f"{a}"),
        (f"{a}\\%", f"{a}\\%", f"{b + 100}\\%"),
        (f"\\begin{{pmatrix}}{a} \\\\ {b}\\end{{pmatrix}}", f"\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}", f"({b})"),
    ])  # fmt: skip


def pooled(part: list[tuple[str, str, bool]], workers: int, timeout_seconds: float) -> dict[str, float]:
    """Through the reward manager, all submitted at once. `worst`: seconds from one result to the next."""
    cfg = RewardConfig(fns=["boxed_math"], workers=workers, timeout_seconds=timeout_seconds)
    manager = RewardManager(cfg, 1024)
    manager.ready(120)
    began = last = time.monotonic()
    worst, right, failed = 0.0, 0, 0
    try:
        for i, (gold, text, _) in enumerate(part):
            manager.submit(i, Prompt(f"b:{i}", [], gold), Response(text))
        while manager.pending:
            for _, result in manager.poll(1.0):
                now = time.monotonic()
                worst, last = max(worst, now - last), now
                right += result.reward == 1.0
                failed += result.reward is None
        return {"done": len(part), "seconds": last - began, "worst": worst, "right": right, "failed": failed}
    finally:
        manager.close()


def plain(part: list[tuple[str, str, bool]], limit_seconds: float) -> dict[str, float]:
    """math-verify in a loop, in a process of its own that is killed at the limit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.rewards", "--loop"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        out, _ = process.communicate(json.dumps(part), timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    done = len(lines)
    seconds = lines[-1]["at"] if done == len(part) else limit_seconds
    gaps = [b["at"] - a["at"] for a, b in zip(lines, lines[1:], strict=False)]
    return {"done": done, "seconds": seconds, "worst": max(gaps, default=0.0), "right": sum(x["right"] for x in lines)}


def loop() -> None:
    """What `plain` starts: a line after every answer."""
    import math_verify

    part = json.load(sys.stdin)
    math_verify.verify(math_verify.parse("$1$"), math_verify.parse("$1$"))
    began = time.monotonic()
    for gold, text, _ in part:
        wanted = gold.rpartition("####")[2].strip() if "####" in gold else gold
        try:
            right = math_verify.verify(
                math_verify.parse(f"${wanted}$" if "boxed" not in wanted else wanted), math_verify.parse(text)
            )
        except Exception:
            right = False
        print(json.dumps({"at": time.monotonic() - began, "right": bool(right)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds the loop may take for one half")
    asked = parser.parse_args()
    if asked.loop:
        loop()
        return
    made = answers(asked.count)
    halves = [made[: asked.count // 2], made[asked.count // 2 :]]
    rates: dict[str, list[float]] = {"pool": [], "loop": []}
    for half in halves:
        for name in rates:
            found = pooled(half, asked.workers, asked.timeout) if name == "pool" else plain(half, asked.limit)
            rates[name].append(found["done"] / found["seconds"])
            print(name, {k: round(v, 2) for k, v in found.items()}, f"{rates[name][-1]:.0f} samples/s", flush=True)
    pool, ours = (statistics.median(rates[n]) for n in ("pool", "loop"))
    print(f"pool ({asked.workers} workers) {pool:.0f} samples/s, loop {ours:.0f} samples/s: {pool / ours:.1f} times")


if __name__ == "__main__":
    main()
