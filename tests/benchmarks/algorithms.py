"""`make bench-learning`: the demo task with every algorithm of recipes/algorithm, three seeds each, at equal samples.

Prints the table of the README. Finished runs are kept in the directory given (default runs/bench-learning) and not run
again, so a stopped benchmark goes on. `python -m tests.benchmarks.algorithms DIR NAME...` runs only those.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlcore.compose.compose import compose
from rlcore.compose.recipe import algorithm_names

PROGRAM = [sys.executable, "-c", "from rlcore.cli import main; main()"]
SEEDS = (0, 1, 2)
STEPS, PROMPTS, SAMPLES = 16, 32, 8
# One process a role: two cores are shared by all of them.
COMMON = [
    f"steps={STEPS}", f"prompts_per_step={PROMPTS}", f"rollouts_per_prompt={SAMPLES}", "actor.learning_rate=2e-4",
    "actor.warmup_steps=2", "actor.ranks=1",
]  # fmt: skip
# What makes the samples drawn equal, or fits an algorithm's number of updates to so short a run.
OWN = {
    "dapo": [f"prompts_per_step={PROMPTS // 2}", "rollout.dynamic_draws=2"],
    "remax": [f"rollouts_per_prompt={SAMPLES - 1}"],  # and one greedy
}


def run(algorithm: str, seed: int, directory: Path) -> list[dict[str, float]]:
    """The metrics of a finished run, made if it is not there."""
    run_dir = directory / f"{algorithm}-{seed}"
    if not (run_dir / "export" / "config.json").is_file():
        if run_dir.exists():
            run_dir.rename(run_dir.with_name(f"{run_dir.name}-unfinished-{time.time():.0f}"))
        settings = [f"algorithm={algorithm}", f"seed={seed}", f"run_dir={run_dir}", *COMMON, *OWN.get(algorithm, [])]
        if compose("demo", settings)[0].config.kl.coef > 0:
            settings.append("reference.ranks=1")
        began = time.monotonic()
        done = subprocess.run([*PROGRAM, "train", "demo", *settings], text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{algorithm}, seed {seed}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        rows = metrics(run_dir)
        before, after = accuracies(rows)
        print(f"{algorithm}, seed {seed}: {before:.1%} -> {after:.1%} in {time.monotonic() - began:.0f} s", flush=True)
    return metrics(run_dir)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def accuracies(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Held-out accuracy before the first step and after the last."""
    found = [row["eval/arithmetic/accuracy"] for row in rows if "eval/arithmetic/accuracy" in row]
    return found[0], found[-1]


def drawn(rows: list[dict[str, float]]) -> float:
    """Samples drawn for training in a run; of ReMax's, one a prompt is greedy."""
    return SAMPLES * sum(row.get("group/drawn", 0.0) for row in rows)


def row_of(algorithm: str, runs: list[list[dict[str, float]]]) -> str:
    before = [accuracies(rows)[0] for rows in runs]
    after = [accuracies(rows)[1] for rows in runs]
    samples = statistics.fmean(drawn(rows) for rows in runs)
    each = ", ".join(f"{a:.1%}" for a in after)
    return (
        f"| `{algorithm}` | {statistics.fmean(before):.1%} | {statistics.fmean(after):.1%} | {each} "
        f"| {max(after) - min(after):.1%} | {samples:.0f} |"
    )


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench-learning")
    names = sys.argv[2:] or algorithm_names()
    rows = []
    for name in names:
        rows.append(row_of(name, [run(name, seed, directory) for seed in SEEDS]))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores; rlcore train demo {' '.join(COMMON)}")
    for name, settings in OWN.items():
        print(f"{name}: {' '.join(settings)}")
    print("\n| algorithm | before | after | seeds 0, 1, 2 | spread | samples |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
