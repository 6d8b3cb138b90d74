"""Whole runs from the command line: real Ray, vLLM and DeepSpeed on a tiny model. Each takes many processes'
start, so a test looks at all that one run can show, and then ends it in a way of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf

from rlcore.compose.compose import as_config, compose
from rlcore.compose.unused_keys import idle
from rlcore.config import all_keys
from tests.close import assert_close
from tests.tiny import give_head, make_tiny_model

RECIPE = """
model: {{path: {model}}}
data:
  train: generate:arithmetic?size=64&seed=1
  eval: ["generate:arithmetic?size=8&seed=2&split=eval"]
  max_prompt_tokens: 200
reward: {{fns: ["{reward}:score"]}}
prompts_per_step: 4
rollouts_per_prompt: 4
rollout: {{max_response_tokens: 12, kv_cache_gib: 0.1}}
kl: {{coef: 0.01}}
actor: {{ranks: 2, learning_rate: 1e-3, minibatches_per_step: 2}}
ray: {{object_store_mib: 100}}
sync: {{bucket_mib: 16}}
"""
REWARD = """
import os
def score(prompt, response):
    if os.path.exists(os.environ.get("HANG_WHEN", "/nowhere")) and sum(response.encode()) % 4 == 0:
        import time; time.sleep(1000)
    return sum(c.isdigit() for c in response) / 10
"""
# Every part a run can have: a critic, a KL in the reward that adapts, a reference that follows, weights, a bonus.
EVERYTHING = [
    "algorithm=ppo", "actor.minibatches_per_step=2", "critic.ranks=1", "critic.learning_rate=1e-3",
    "critic.warmup_steps=1", "critic.whiten_returns=true", "kl.target=0.001", "kl.horizon=100",
    "reference.refresh_steps=2", "loss.entropy_coef=0.001", "correction.name=truncate_token",
]  # fmt: skip
# The least that can run, where a test is not about the other parts: each process takes seconds to start.
LEAST = ["actor.ranks=1", "kl.coef=0"]
LOGP = 4.8  # about the log-probability of each of the 128 tokens
PROGRAM = [sys.executable, "-c", "from rlcore.cli import main; main()"]


class Run:
    """An `rlcore` process of its own, and every process that belongs to it."""

    def __init__(self, *args: str, **env: str) -> None:
        self.marker = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*PROGRAM, *args], env={**os.environ, "TEST_MARKER": self.marker, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            # A shell's `&` starts what ignores Ctrl-C, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def finish(self, seconds: float = 400) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out

    def processes(self) -> list[psutil.Process]:
        found = []
        for p in psutil.process_iter():
            try:
                if p.pid != self.process.pid and p.environ().get("TEST_MARKER") == self.marker:
                    found.append(p)
            except psutil.Error:
                continue
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]

    def pid_of(self, text: str) -> int:
        """The first process whose command line holds `text`."""
        return next(p.pid for p in self.processes() if text in " ".join(p.cmdline()))

    def wait_for_step(self, run_dir: Path, step: int, seconds: float = 400) -> None:
        until = time.monotonic() + seconds
        while not any(line["step"] >= step for line in metrics(run_dir)):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until, f"step {step} was not reached"
            time.sleep(0.1)

    def ends_for(self, process: str, role: str) -> None:
        """Kill the first process whose command line holds `process`: the run must end and name the role."""
        os.kill(self.pid_of(process), signal.SIGKILL)
        code, out = self.finish(60)
        assert code == 4 and role in out and "died during phase" in out, out
        assert self.nothing_left() == []

    def nothing_left(self, seconds: float = 30) -> list[str]:
        until = time.monotonic() + seconds
        while self.processes() and time.monotonic() < until:
            time.sleep(0.2)
        return [" ".join(p.cmdline())[:100] for p in self.processes()]


def metrics(run_dir: Path) -> list[dict]:
    """Of each step; a last line that is being written, or of which a kill has left a part, is none."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def untimed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("time", "perf/", "sync/seconds"))} for row in rows]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("recipe")
    (home / "reward.py").write_text(REWARD)
    path, model = home / "tiny.yaml", make_tiny_model(home / "model")
    said = json.loads((model / "generation_config.json").read_text())
    # As published models have it: transformers would not save it. And the tokenizer ends a text with <eos>, the model's
    # own file with <user>: a response ends with either.
    (model / "generation_config.json").write_text(json.dumps(said | {"temperature": 0.6, "eos_token_id": 2}))
    path.write_text(RECIPE.format(model=model, reward=home / "reward.py"))
    return str(path)


def every_key(args: list[str], path: Path) -> str:
    """A recipe that is `args` with all keys written down that can count: what nothing reads is said at the end."""
    name, *settings = args
    composed, _ = compose(name, settings)
    keys = dict.fromkeys(all_keys(), "here")
    left_out = {"run_dir", "algorithm", *idle(as_config(composed.config), keys)}
    recipe = OmegaConf.create()
    for key in all_keys().keys() - left_out:
        OmegaConf.update(recipe, key, OmegaConf.select(composed.config, key))
    OmegaConf.save(recipe, path)
    return str(path)


@pytest.fixture(scope="module")
def whole(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run of 5 steps with a checkpoint after step 3, every key set that can count, and a reward process that dies."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    args = [recipe, *EVERYTHING, "steps=5", "save_every_steps=3"]
    run = Run("train", every_key(args, run_dir.with_suffix(".yaml")), f"run_dir={run_dir}")
    run.wait_for_step(run_dir, 1)
    os.kill(run.pid_of("rlcore.isolated.caller"), signal.SIGKILL)
    code, out = run.finish()
    assert code == 0, out
    assert run.nothing_left() == []
    yield run_dir, out


def test_a_run_leaves_what_the_readme_says(whole: tuple[Path, str]) -> None:
    run_dir, out = whole
    rows = metrics(run_dir)
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4, 5]
    names = """reward/mean reward/std reward/part/score reward/failed_fraction group/zero_advantage_fraction
        response/tokens_mean response/truncated_fraction actor/loss actor/kl actor/entropy actor/clip_fraction
        actor/ratio_max actor/grad_norm actor/lr kl/coef group/drawn group/used
        critic/loss critic/grad_norm critic/lr critic/value critic/explained_variance critic/clip_fraction
        correction/weight correction/ess correction/clipped_fraction
        sync/seconds sync/bytes sync/logp_diff_max sync/logp_diff_mean rollout/staleness_steps
        perf/tokens_per_second time/rollout_s time/credit_s time/update_s time/publish_s""".split()
    assert not [n for n in names if rows[1].get(n) is None]
    assert "eval/arithmetic/accuracy" in rows[0] and "eval/arithmetic/accuracy" in rows[5]
    for row in rows[1:]:
        assert 0 < row["sync/logp_diff_max"]
        assert_close(row["sync/logp_diff_max"], torch.tensor(0.0), 40, "logp_diff_max", scale=LOGP)  # 1.7
    assert rows[1]["actor/lr"] == 0 and rows[1]["critic/lr"] > 0  # the critic's warm-up
    assert_close(rows[1]["actor/kl"], torch.tensor(0.0), 40, "actor/kl", scale=LOGP)  # 0
    assert 1e-5 < abs(rows[4]["actor/kl"])
    assert rows[5]["kl/coef"] != rows[1]["kl/coef"]
    for name in ("config.yaml", "events.jsonl", "rollouts/step_000005.jsonl", "checkpoints/step_000005/manifest.json"):
        assert (run_dir / name).is_file(), name
    first = json.loads((run_dir / "rollouts/step_000001.jsonl").read_text().splitlines()[0])
    assert {"reward", "response", "status", "finish", "version"} <= set(first)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (facts,) = (event for event in events if event["event"] == "data")
    assert facts["endings"] in out and facts["endings"] == "<eos> (1), learned; <user> (2)"
    files = sorted((run_dir / "rollouts").glob("*.jsonl"))
    said = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert "stop" in {each["finish"] for each in said} and "<assistant>" in " ".join(each["response"] for each in said)
    assert not [each for each in said if "<eos>" in each["response"] or "<user>" in each["response"]]
    (unread,) = (event["keys"] for event in events if event["event"] == "unread")
    assert unread.keys() == {"actor.offload", "rollout.device_memory_fraction", "cache_dir"}  # all others were read
    assert f"nothing read cache_dir ({run_dir}.yaml): it had no effect in this run" in out
    assert "actor.offload" in out and "had no effect on this kind of device" in out
    for text in ("before", "after", "exported model", "sample rollouts", "next: rlcore"):
        assert text in out


def test_the_export_loads_and_is_the_last_checkpoint(whole: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir, _ = whole
    exported = AutoModelForCausalLM.from_pretrained(run_dir / "export")
    saved = AutoModelForCausalLM.from_pretrained(run_dir / "checkpoints/step_000005/model")
    older = AutoModelForCausalLM.from_pretrained(run_dir / "checkpoints/step_000003/model")
    ids = torch.arange(4, 40)[None]
    assert torch.equal(exported(ids).logits, saved(ids).logits)
    assert not torch.equal(exported(ids).logits, older(ids).logits)
    assert AutoTokenizer.from_pretrained(run_dir / "export").chat_template
    assert exported.generation_config.temperature == 0.6
    assert exported.generation_config.eos_token_id == [1, 2]


def test_two_engines_and_one_rank_give_the_same_run_and_killed_it_resumes_to_the_same_numbers(
    recipe: str, whole: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    other = ("rollout.engines=2", "actor.ranks=1", "actor.microbatch_tokens=300")
    run = Run("train", recipe, *EVERYTHING, *other, "steps=100000", "save_every_steps=5", f"run_dir={run_dir}")
    run.wait_for_step(run_dir, 7)
    run.process.kill()
    run.finish()
    assert run.nothing_left() == []
    assert (run_dir / "checkpoints/step_000005/reference").is_dir()  # the policy's weights after step 4
    if (run_dir / "checkpoints/step_000010").exists():
        pytest.fail("it was killed too late to show anything")

    for name in ("step_000001.jsonl", "step_000002.jsonl", "step_000003.jsonl"):
        mine, theirs = ((d / "rollouts" / name).read_text().splitlines() for d in (run_dir, whole[0]))
        assert [json.loads(a)["response"] for a in mine] == [json.loads(b)["response"] for b in theirs]
    before, theirs = metrics(run_dir), metrics(whole[0])[3]
    for name in ("actor/loss", "actor/grad_norm", "critic/loss", "critic/explained_variance", "reward/mean"):
        assert_close(before[3][name], torch.tensor(theirs[name]), 800, name)  # 47

    resumed = Run("resume", str(run_dir))
    resumed.wait_for_step(run_dir, before[-1]["step"] + 1)
    assert untimed(metrics(run_dir))[: len(before)] == untimed(before)
    resumed.ends_for("ray::CriticRank", "critic rank 0")


OWN = """
from rlcore.algo.advantage import outcome
def against_greedy(batch, cfg):
    assert not batch.baseline.isnan().any()
    return ((outcome(batch) - batch.baseline)[batch.rollout_of_token] * batch.mask).float()
def plain(logp, batch, cfg):
    return -logp * batch.advantage, {"mine": logp.detach()}
"""


def test_own_functions_greedy_baselines_and_drawing_again_until_rewards_hang(recipe: str, tmp_path: Path) -> None:
    """A quarter of the samples then gets no reward: more than a run goes on with."""
    (tmp_path / "own.py").write_text(OWN)
    run_dir, flag = tmp_path / "run", tmp_path / "hang"
    args = (f"advantage.name={tmp_path}/own.py:against_greedy", f"loss.name={tmp_path}/own.py:plain", "steps=100000")
    filters = ("rollout.greedy_baseline=true", "rollout.dynamic_draws=2", "reward.overlong_fraction=0.5")
    rewards = ("reward.timeout_seconds=2", "reward.workers=4")
    run = Run("train", recipe, *LEAST, *args, *filters, *rewards, f"run_dir={run_dir}", HANG_WHEN=str(flag))
    run.wait_for_step(run_dir, 2)
    flag.write_text("")
    code, out = run.finish(120)
    assert code == 3 and "score ended with status 'timeout'" in out, out
    assert (run_dir / "quarantine.jsonl").read_text().count("\n") >= 1
    assert run.nothing_left() == []

    rows = metrics(run_dir)
    assert rows[1]["actor/mine"] < 0
    for step, row in enumerate(rows[1:3], 1):
        lines = [json.loads(x) for x in (run_dir / f"rollouts/step_{step:06d}.jsonl").read_text().splitlines()]
        assert len(lines) == 5 * row["group/drawn"]  # 4 samples and a greedy answer a prompt
        assert sum(x["use"] == "baseline" for x in lines) == row["group/drawn"]
        assert sum(x["use"] == "loss" for x in lines) == 4 * row["group/used"]
        assert 4 <= row["group/drawn"] <= 8 and 1 <= row["group/used"] <= 4
        assert row["reward/part/overlong"] <= 0 and row["actor/grad_norm"] > 0


@pytest.mark.parametrize(
    ("process", "role", "args"),
    [
        ("ray::ActorRank", "actor rank", ["kl.coef=0"]),
        ("ray::ReferenceRank", "reference rank 0", ["actor.ranks=1"]),
        ("ray::Engine", "rollout rank 0", LEAST),
    ],
)
def test_a_killed_worker_ends_the_run_by_name(
    recipe: str, tmp_path: Path, process: str, role: str, args: list[str]
) -> None:  # fmt: skip
    run = Run("train", recipe, *args, "steps=100000", f"run_dir={tmp_path}")
    run.wait_for_step(tmp_path, 1)
    run.ends_for(process, role)


OF_EVERY_KIND = """
import asyncio
async def slow(prompt, response):
    await asyncio.sleep(0.01)
    return {"score": 0.5, "words": len(prompt.messages[-1]["content"].split())}
def even(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(answer)
    return [None if len(c) % 2 else 1.0 for c in completions]
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(data_source == "arithmetic" and int(ground_truth) >= 0)
class Held:
    def __init__(self, bonus):
        self.bonus = bonus
    def __call__(self, prompt, response):
        return self.bonus
"""


def test_rewards_of_every_kind_score_one_run_until_ctrl_c(recipe: str, tmp_path: Path) -> None:
    """User functions of every shape and a reward model on Ray: each part is logged, and a reward is their sum."""
    run_dir, model = tmp_path / "run", make_tiny_model(tmp_path / "scorer", seed=1)
    give_head(model, model)
    (tmp_path / "kinds.py").write_text(OF_EVERY_KIND)
    fns = [*(f"{tmp_path}/kinds.py:{n}" for n in ("slow", "even", "compute_score", "Held")), "reward_model"]
    run = Run(
        "train", recipe, *LEAST, "steps=100000", f"run_dir={run_dir}", f"reward.fns=[{','.join(fns)}]",
        f"reward_model.path={model}", "reward.args.Held.bonus=0.25", "reward.weights=[1,1,1,1,2]", "reward.gate=[slow]",
    )  # fmt: skip
    run.wait_for_step(run_dir, 1)
    run.process.send_signal(signal.SIGINT)
    code, out = run.finish(60)
    assert code == 130 and "stopped by Ctrl-C" in out, out
    assert run.nothing_left() == []

    rollouts = [json.loads(line) for line in (run_dir / "rollouts/step_000001.jsonl").open()]
    assert len(rollouts) == 16
    for r in rollouts:
        parts = r["parts"]
        assert parts["slow"] == 0.5 and parts["compute_score"] == 1.0 and parts["Held"] == 0.25 and parts["words"] > 0
        expected = 0.5 + parts.get("even", 0.0) + 1.0 + 0.25 + 2 * parts["reward_model"]
        assert_close(r["reward"], expected, 10, "reward")  # 0
        assert r["status"] == {} and parts["gated"] == 0.0
    assert len({r["parts"]["reward_model"] for r in rollouts}) > 1
    assert {"reward/part/reward_model", "reward/part/slow", "reward/part/words"} <= metrics(run_dir)[1].keys()
