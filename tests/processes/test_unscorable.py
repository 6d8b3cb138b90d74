"""What is found of the rewards when a run is built, with real rules in real workers: rows whose gold answer cannot be
read, and functions that cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards import BUILTIN
from rewards.manager import RewardManager
from rlcore.config import Config, DataConfig, RewardConfig
from rlcore.data.prompts import Prompts
from rlcore.errors import ConfigError, DataError
from rlcore.records import Prompt
from rlcore.train import reinforcement
from rlcore.train.prepare import leave_out_unscorable
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def prompts(tmp_path: Path, tokenizer, answers: list[str]) -> Prompts:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "a", "answer": a}) + "\n" for a in answers))
    return Prompts([str(path)], DataConfig(shuffle=False), tokenizer, 0)


def leave_out(found: Prompts, tmp_path: Path, most: float, rule: str = "gsm8k", **args: str) -> list[str]:
    reward = RewardConfig(fns=[rule], args={rule: args}, max_failed_fraction=most)
    cfg = Config(run_dir=str(tmp_path), reward=reward)
    manager, said = RewardManager(cfg.reward, 32), list[str]()
    try:
        manager.ready(60.0)
        leave_out_unscorable(found, manager, cfg, said.append)
    finally:
        manager.close()
    return said


def test_they_are_left_out_and_listed_by_file_and_line(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "none", "#### 2", "#### "])
    (said,) = leave_out(found, tmp_path, 0.5)
    assert [p.id for p in found.all()] == ["rows:0", "rows:2"]
    assert [p.id for p in found.take(3)] == ["rows:0", "rows:2", "rows:0@2"]
    listed = (tmp_path / "unparseable_gold.txt").read_text()
    for text in (said, listed):
        assert f"{tmp_path}/rows.jsonl, line 2: gsm8k: " in text and f"{tmp_path}/rows.jsonl, line 4: gsm8k: " in text
    assert said.startswith("data: 2 of 4 rows of ")


def test_they_are_left_out_where_another_rule_reads_them(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "none", "#### 2"])
    assert leave_out(found, tmp_path, 0.5, "length_cosine", of="format") == [] and len(found) == 3
    (said,) = leave_out(found, tmp_path, 0.5, "length_cosine", of="gsm8k")
    assert [p.id for p in found.all()] == ["rows:0", "rows:2"]
    assert f"{tmp_path}/rows.jsonl, line 2: length_cosine: prompt rows:1: no number" in said


def test_too_many_of_them_end_the_run_before_it_begins(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "none", "#### 2", "#### "])
    with pytest.raises(DataError, match=r"(?s)2 of 4 rows .*max_failed_fraction 0\.4; .*rows\.jsonl, line 2: gsm8k"):
        leave_out(found, tmp_path, 0.4)


def test_many_at_a_time_are_the_same_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good ones and bad ones, and one that ends its process."""
    change = tmp_path / "change.py"  # of the reader of a rule, in its own process: it must share one with the rules
    change.write_text(
        "import os\nfrom rewards import GOLD, gsm8k\nGOLD['gsm8k'] = __file__ + ':reads'\n"
        "def unused(prompt, response):\n    return 1.0\n"
        "def reads(prompt):\n"
        "    os._exit(7) if prompt.answer == 'exit' else gsm8k.gsm8k_gold(prompt)\n"
    )
    monkeypatch.setitem(BUILTIN, f"{change}:unused", f"{change}:unused")
    answers = ["#### 1", "none", "3/4", "", "#### x", "2"] * 20
    answers[50] = "exit"
    rows = [Prompt(f"rows:{i}", [1], answer) for i, answer in enumerate(answers)]
    manager = RewardManager(RewardConfig(fns=[f"{change}:unused", "gsm8k", "exact_match"], workers=1), 32)
    try:
        manager.ready(60.0)
        together = manager.unscorable(rows, 60.0)
        assert together == [found for row in rows for found in manager.unscorable([row], 60.0)]
    finally:
        manager.close()
    why = {prompt.id: reason for prompt, reason in together}
    assert len(why) == 61 and why["rows:50"] == "gsm8k: ended its process: exit code 7"
    assert why["rows:1"] == "gsm8k: prompt rows:1: no number in the gold answer 'none'"


def test_nothing_is_said_of_good_rows(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "#### 2"])
    assert leave_out(found, tmp_path, 0.0) == [] and len(found) == 2
    assert not (tmp_path / "unparseable_gold.txt").exists()


def test_a_reward_that_cannot_be_loaded_is_refused_before_a_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warming up an embedded model takes minutes."""
    monkeypatch.setattr(reinforcement, "with_directory", lambda cfg, say: pytest.fail("a model is made"))
    cfg = Config(run_dir=str(tmp_path))
    cfg.reward.fns = ["code"]
    with pytest.raises(ConfigError, match="reward.args.code.allow"):
        reinforcement.Reinforcement(cfg, lambda text: None)
