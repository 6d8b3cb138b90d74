"""Rewards in the signatures of other frameworks run as they are; the names of the parameters tell which.

reward.fns=[examples/peer_rewards.py:brevity,examples/peer_rewards.py:compute_score]
"""

from __future__ import annotations

from typing import Any


def brevity(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
    """TRL's: a list for a batch; every dataset column is there by its name. None: the function does not apply."""
    asked = columns.get("brief", [True] * len(completions))
    return [max(0.0, 1 - len(_text(c)) / 200) if brief else None for c, brief in zip(completions, asked, strict=True)]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> dict:
    """veRL's: `score` is the reward, the other numbers are parts."""
    last = solution_str.split()[-1].strip(".") if solution_str.split() else ""
    return {"score": float(last == ground_truth), "words": len(solution_str.split())}


def _text(completion: Any) -> str:
    """A completion is text, or a list of messages where the prompt is one."""
    return completion if isinstance(completion, str) else completion[0]["content"]
