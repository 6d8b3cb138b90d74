"""Rows whose gold answer cannot be read, found when the data loads: with real rules in real workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.manager import RewardManager
from rlcore.build import _leave_out_unscorable
from rlcore.config import Config, DataConfig, RewardConfig
from rlcore.data import Prompts
from rlcore.errors import DataError
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def prompts(tmp_path: Path, tokenizer, answers: list[str]) -> Prompts:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "a", "answer": a}) + "\n" for a in answers))
    return Prompts([str(path)], DataConfig(shuffle=False), tokenizer, 0)


def leave_out(found: Prompts, tmp_path: Path, most: float) -> list[str]:
    cfg = Config(run_dir=str(tmp_path), reward=RewardConfig(fns=["gsm8k"], max_failed_fraction=most))
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


def test_too_many_of_them_end_the_run_before_it_begins(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "none", "#### 2", "#### "])
    with pytest.raises(DataError, match=r"(?s)2 of 4 rows .*max_failed_fraction 0\.4; .*rows\.jsonl, line 2: gsm8k"):
        leave_out(found, tmp_path, 0.4)


def test_nothing_is_said_of_good_rows(tmp_path: Path, tokenizer) -> None:
    found = prompts(tmp_path, tokenizer, ["#### 1", "#### 2"])
    assert leave_out(found, tmp_path, 0.0) == [] and len(found) == 2
    assert not (tmp_path / "unparseable_gold.txt").exists()
