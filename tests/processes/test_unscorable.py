"""Rows whose gold answer cannot be read, found when the data loads: with real rules in real workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards import BUILTIN
from rewards.manager import RewardManager
from rlcore.config import Config, DataConfig, RewardConfig
from rlcore.data.prompts import Prompts
from rlcore.errors import DataError
from rlcore.records import Prompt
from rlcore.train.build import _leave_out_unscorable
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
        _leave_out_unscorable(found, manager, cfg, said.append)
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
    """Good ones and bad ones, one that hangs its reader and one that ends its process."""
    (tmp_path / "change.py").write_text(
        "from rewards import GOLD, gsm8k\nfrom tests.processes.misbehaving import FAILS, act\n"
        "GOLD['gsm8k'] = __file__ + ':reads'\n"
        "def unused(prompt, response):\n    return 1.0\n"
        "def reads(prompt):\n"
        "    act(prompt, prompt.answer) if prompt.answer in FAILS else gsm8k.gsm8k_gold(prompt)\n"
    )
    answers = ["#### 1", "none", "3/4", "", "#### x", "2"] * 20
    answers[50:52] = "hang", "segfault"
    rows = [Prompt(f"rows:{i}", [1], answer) for i, answer in enumerate(answers)]
    fns = [f"{tmp_path}/change.py:unused", "gsm8k", "exact_match"]
    monkeypatch.setitem(BUILTIN, fns[0], fns[0])  # built-in rules share a process: the file changes a reader there
    manager = RewardManager(RewardConfig(fns=fns, workers=1, timeout_seconds=2.0), 32)
    try:
        manager.ready(60.0)
        together = manager.unscorable(rows, 60.0)
        assert together == [found for row in rows for found in manager.unscorable([row], 60.0)]
        why = {prompt.id: why for prompt, why in together}
        assert len(why) == 61 and why["rows:50"] == "gsm8k: took longer than 2 s (reward.timeout_seconds)"
        assert why["rows:51"] == "gsm8k: ended its process: signal SIGSEGV"
        assert why["rows:1"] == "gsm8k: prompt rows:1: no number in the gold answer 'none'"
    finally:
        manager.close()


def test_nothing_is_said_of_good_rows(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "#### 2"])
    assert leave_out(found, tmp_path, 0.0) == [] and len(found) == 2
    assert not (tmp_path / "unparseable_gold.txt").exists()
