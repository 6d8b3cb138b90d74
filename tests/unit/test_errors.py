"""The one "did you mean"."""

from __future__ import annotations

import pytest

from rlcore.config import all_keys
from rlcore.errors import nearest


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("actor.rank", all_keys(), "actor.ranks"),
        ("rolout.engines", all_keys(), "rollout.engines"),
        ("learning_rate", all_keys(), "actor.learning_rate"),  # a bare last part
        ("clip_hgh", all_keys(), "loss.clip_high"),
        ("PPO", ["grpo", "ppo"], "ppo"),  # case is no distance
        ("anwser", ["Question", "Answer"], "Answer"),
        ("trian.jsonl", ["test.jsonl", "train.jsonl"], "train.jsonl"),
        ("gone.jsonl", ["mathematics_of_1998.jsonl"], None),  # what two files have in common is no name
        ("xxxxx", ["grpo", "ppo"], None),
        ("a", [], None),
    ],
)
def test_the_nearest_name(word: str, known: list[str], found: str | None) -> None:
    assert nearest(word, known) == (f"; did you mean {found}?" if found else "")
