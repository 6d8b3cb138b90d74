"""Rows of which one gold answer cannot be read, as rewards and prompts at once."""

from __future__ import annotations

from rlcore.records import Prompt


class Rows:
    sources = "a.jsonl"

    def __init__(self, rows: int, why: str) -> None:
        self.left, self.why = [Prompt(f"a:{i}", [i], "x") for i in range(rows)], why

    def __len__(self) -> int:
        return len(self.left)

    def all(self) -> list[Prompt]:
        return self.left

    def at(self, prompt: Prompt) -> str:
        return f"a.jsonl, line {prompt.id[2:]}"

    def without(self, ids: set[str]) -> None:
        self.left = [prompt for prompt in self.left if prompt.id not in ids]

    def unscorable(self, prompts: list[Prompt], deadline_seconds: float) -> list[tuple[Prompt, str]]:
        return [(prompts[7], self.why)]
